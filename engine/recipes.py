"""From text to a data set: token files and meta.json in data/NAME."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.dataset import DATA_FOLDER, FORMAT
from engine.errors import UserError
from engine.sources import shakespeare, write_whole
from engine.tokenizer import Tokenizer, make_tokenizer

# Data sets that the program knows how to get: name and tokenizer.
RECIPES = {"shakespeare_char": "char", "shakespeare": "gpt2"}
VALIDATION_FRACTION = 0.1


def prepare_recipe(name: str, say: Callable[[str], None], root: Path = DATA_FOLDER) -> Path:
    """Fetch and prepare a data set by its name. Raises UserError for a name without a recipe."""
    if name not in RECIPES:
        raise UserError(
            f"there is no data set {root / name}, and no recipe for it (there are: {', '.join(RECIPES)}); "
            f"from text of yours: python prepare.py {name} --input FILE"
        )
    folder = root / name
    existed = folder.is_dir()
    try:
        text, source = shakespeare(folder, say)
        return write_dataset(name, text, RECIPES[name], VALIDATION_FRACTION, [source], say, root)
    except UserError:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def prepare_files(
    name: str,
    paths: list[str],
    tokenizer: str,
    val: float,
    say: Callable[[str], None],
    root: Path = DATA_FOLDER,
) -> Path:
    """Prepare a data set from text files, joined in the given order. Raises UserError for what is no text."""
    texts, sources = [], []
    for path in paths:
        content = read_bytes(Path(path))
        try:
            texts.append(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{path} is not UTF-8 (byte {error.start}, line {line}); convert it: iconv -f ENCODING -t "
                f"UTF-8"
            ) from error
        sources.append({"name": Path(path).name, "sha256": hashlib.sha256(content).hexdigest()})
    return write_dataset(name, "".join(texts), tokenizer, val, sources, say, root)


def read_bytes(path: Path) -> bytes:
    """The content of a file that the user named. Raises UserError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def write_dataset(
    name: str,
    text: str,
    tokenizer_kind: str,
    val: float,
    sources: list[dict[str, str]],
    say: Callable[[str], None],
    root: Path = DATA_FOLDER,
) -> Path:
    """Tokenise a text and write data/NAME: its first part for training, the last `val` for validation."""
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"{name!r} cannot name a data set: it becomes a folder in {root}")
    if not text:
        raise UserError("the text is empty; there is nothing to learn from")
    tokenizer = make_tokenizer(tokenizer_kind, text)
    border = int((1 - val) * len(text))
    parts = {"train": text[:border], "val": text[border:]}
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    contents = {split: tokenizer.encode(part).astype(dtype).tobytes() for split, part in parts.items()}
    folder = root / name
    for split, content in contents.items():
        write_whole(folder / f"{split}.bin", content)
    meta = _describe(name, tokenizer, dtype, parts, contents, sources)
    write_whole(folder / "meta.json", json.dumps(meta, indent=1).encode())
    tokens = {split: len(content) // dtype.itemsize for split, content in contents.items()}
    say(
        f"{folder}: {tokens['train']:,} training and {tokens['val']:,} validation tokens, "
        f"vocabulary {tokenizer.vocab_size:,}"
    )
    return folder


def _describe(
    name: str,
    tokenizer: Tokenizer,
    dtype: np.dtype,
    parts: dict[str, str],
    contents: dict[str, bytes],
    sources: list[dict[str, str]],
) -> dict[str, Any]:
    """The content of meta.json."""
    return {
        "format": FORMAT,
        "name": name,
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.to_dict(),
        "text_bytes": {split: len(part.encode("utf-8")) for split, part in parts.items()},
        "files": [
            {
                "path": f"{split}.bin",
                "split": split,
                "tokens": len(content) // dtype.itemsize,
                "header_bytes": 0,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            for split, content in contents.items()
        ],
        "sources": sources,
    }
