"""Data sets that the program knows how to get, and short ways to prepare a file or a text."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.adopt import adopt, holds_token_files
from engine.dataset import DATA_FOLDER, no_dataset
from engine.errors import UserError
from engine.hub import HubFolder
from engine.partial import check_name, partial_folder
from engine.pipeline import Request, prepare
from engine.sources import MIRROR_VARIABLE, shakespeare

# Those that are made in seconds: name and tokenizer. train.py prepares them by itself.
RECIPES = {"shakespeare_char": "char", "shakespeare": "gpt2"}
VALIDATION_FRACTION = 0.1
# Those that are downloads of many gigabytes: where their Parquet files are, and how large they are.
LARGE = {
    "openwebtext": (HubFolder("Skylion007/openwebtext", "plain_text"), "24 GB, 9 billion tokens"),
    "fineweb": (HubFolder("HuggingFaceFW/fineweb", "sample/10BT"), "31 GB, 10 billion tokens"),
    "fineweb_100B": (HubFolder("HuggingFaceFW/fineweb", "sample/100BT"), "300 GB, 100 billion tokens"),
}
LARGE_VALIDATION_FRACTION = 0.0005


def prepare_recipe(name: str, say: Callable[[str], None], root: Path = DATA_FOLDER) -> Path:
    """Fetch and prepare a small data set by its name, or describe the token files that lie in its folder.

    Raises UserError for a name without a recipe.
    """
    if name not in RECIPES and holds_token_files(root / name):
        return adopt(name, [], None, say, root)
    if name in LARGE:
        raise UserError(
            f"there is no data set {root / name} yet, and making it takes a download ({LARGE[name][1]}); "
            f"start it with: python prepare.py {name}"
        )
    if name not in RECIPES:
        raise UserError(no_dataset(name, root))
    folder = root / name
    existed = folder.is_dir()
    try:
        text, source = shakespeare(folder, say)
        return write_dataset(name, text, RECIPES[name], VALIDATION_FRACTION, [source], say, root)
    except UserError:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def prepare_large(request: Request, say: Callable[[str], None], root: Path = DATA_FOLDER) -> Path:
    """Download and prepare one of LARGE; from the folder PLAINGPT_MIRROR/NAME where there is one."""
    source, size = LARGE[request.name]
    mirror = Path(os.environ.get(MIRROR_VARIABLE) or ".nowhere", request.name)
    if mirror.is_dir():
        return prepare(dataclasses.replace(request, inputs=[str(mirror)]), say, root)
    say(f"{request.name}: downloading {source.repository}, {source.folder} ({size}), a file at a time")
    return prepare(dataclasses.replace(request, remote=source), say, root)


def prepare_files(
    name: str,
    paths: list[str],
    tokenizer: str,
    val: float,
    say: Callable[[str], None],
    root: Path = DATA_FOLDER,
) -> Path:
    """Prepare a data set from text files, joined in the given order. Raises UserError for what is no text."""
    return prepare(Request(name, paths, tokenizer, val=val), say, root)


def write_dataset(
    name: str,
    text: str,
    tokenizer: str,
    val: float,
    sources: list[dict[str, Any]],
    say: Callable[[str], None],
    root: Path = DATA_FOLDER,
) -> Path:
    """Tokenise a text and write data/NAME: its first part for training, the last `val` for validation."""
    check_name(name, root)
    with partial_folder(root / name, ".text") as folder:
        path = folder / "text"
        path.write_bytes(text.encode("utf-8"))
        return prepare(Request(name, [str(path)], tokenizer, val=val, sources=sources), say, root)
