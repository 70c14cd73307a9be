"""Token files that other programs made, taken as they are: only meta.json is written.

    nanoGPT                  bare uint16 ids: data/NAME/train.bin, val.bin
    llm.c, modded-nanogpt    shards with a header of 256 int32: a magic number, a version, a count of tokens;
                             20240520: uint16 ids of GPT-2's vocabulary; 20240801: uint32 ids of a larger one

A file is for validation where its name says "val".
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.dataset import DATA_FOLDER, FORMAT, tokens_of
from engine.errors import UserError
from engine.preparation.encoding import id_type
from engine.preparation.inputs import STDIN, find_inputs
from engine.preparation.output import STAGING, check_lengths, check_name, move_into_place, staging_folder
from engine.system import hashes_of
from engine.text.characters import NumberTokenizer
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict
from engine.text.tokenizer_files import tokenizer_of_file

HEADER_BYTES = 256 * 4
ID_TYPES = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}  # by magic number
READ_AT_ONCE = 2**24  # ids


def holds_token_files(folder: Path) -> bool:
    """Whether a folder holds token files and no meta.json that describes them."""
    undescribed = folder.is_dir() and not (folder / "meta.json").exists() and not (folder / STAGING).exists()
    return undescribed and any(folder.glob("*.bin"))


def are_token_files(inputs: list[str]) -> bool:
    """Whether all inputs are token files. Raises UserError for a missing one."""
    return STDIN not in inputs and all(item.path.endswith(".bin") for item in find_inputs(inputs))


def describe_token_files(
    name: str, paths: list[str], tokenizer: str | None, say: Callable[[str], None], root: Path = DATA_FOLDER
) -> Path:
    """Write a meta.json for token files, without `paths` those in data/NAME, and link to them."""
    check_name(name, root)
    folder = root / name
    files = _files_to_describe(name, paths, folder)
    headers = [read_header(file) for file in files]
    vocabulary = _vocabulary(tokenizer, headers, files)
    dtype = headers[0]
    if dtype is None:
        dtype = np.dtype("<u2") if vocabulary is None else id_type(vocabulary.vocab_size)
    entries, largest = _entries(files, headers, dtype)
    vocabulary = vocabulary or NumberTokenizer(largest + 1)
    if largest >= vocabulary.vocab_size:
        raise UserError(
            f"{name} holds the token id {largest:,}, and the vocabulary has {vocabulary.vocab_size:,} "
            "entries; name the right one with --tokenizer FILE, or --tokenizer numbers if there is none"
        )
    meta = {
        "format": FORMAT,
        "name": name,
        "dtype": dtype.name,
        "vocab_size": vocabulary.vocab_size,
        "tokenizer": vocabulary.to_dict(),
        "text_bytes": {},
        "files": entries,
        "sources": [{"name": "token files of another program"}],
    }
    tokens = tokens_of(meta)
    check_lengths(name, tokens, say)
    with staging_folder(folder) as staging:
        for file in files:
            if file.resolve() != (folder / file.name).resolve():  # a link would destroy it
                (staging / file.name).symlink_to(file.resolve())
        move_into_place(staging, folder, meta)
    say(
        f"{folder}: {tokens['train']:,} training and {tokens['val']:,} validation tokens as they were, "
        f"vocabulary {vocabulary.vocab_size:,} ({vocabulary.to_dict()['kind']})"
    )
    return folder


def _files_to_describe(name: str, paths: list[str], folder: Path) -> list[Path]:
    if not paths and (folder / "meta.pkl").exists():
        raise UserError(
            f"the vocabulary of {folder} is in its meta.pkl, which is not read: such a file can run any "
            f"program; prepare the data set again from its text: "
            f"python prepare.py {shlex.quote(name)} --input FILE"
        )
    files = [Path(item.path) for item in find_inputs(paths)] if paths else sorted(folder.glob("*.bin"))
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        raise UserError(f"two of the token files have the same name: {sorted(names)[:6]}")
    for split in {"train", "val"} - {_split_of(file) for file in files}:
        raise UserError(f"none of the token files is for {split}: their names must say train or val")
    return files


def _split_of(file: Path) -> str:
    return "val" if "val" in file.name else "train"


def read_header(file: Path) -> np.dtype | None:
    """The type of ids by a file's header; None without one. Raises UserError."""
    try:
        with open(file, "rb") as content:
            numbers = content.read(HEADER_BYTES)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if len(numbers) < HEADER_BYTES:
        return None
    magic, _, tokens = np.frombuffer(numbers, "<i4", 3).tolist()
    if magic not in ID_TYPES:
        return None
    size, expected = file.stat().st_size, HEADER_BYTES + tokens * ID_TYPES[magic].itemsize
    if size != expected:
        raise UserError(f"{file} has {size:,} bytes where its header says {expected:,}; get it again")
    return ID_TYPES[magic]


def _vocabulary(tokenizer: str | None, headers: list[np.dtype | None], files: list[Path]) -> Tokenizer | None:
    if tokenizer == "numbers" or (tokenizer is None and np.dtype("<u4") in headers):
        return None
    if tokenizer in (None, "gpt2", "bytes"):
        return tokenizer_from_dict({"kind": tokenizer or "gpt2"})
    if tokenizer in ("char", "bpe"):
        raise UserError(
            f"{files[0]} holds token ids, whose vocabulary is given; name it with --tokenizer FILE"
        )
    return tokenizer_of_file(Path(tokenizer))


def _entries(
    files: list[Path], headers: list[np.dtype | None], dtype: np.dtype
) -> tuple[list[dict[str, Any]], int]:
    entries: list[dict[str, Any]] = []
    largest = -1
    for file, header, sha256 in zip(files, headers, hashes_of(files), strict=True):
        if header is not None and header != dtype:
            raise UserError(f"{file} holds {header.name} ids, the other files {dtype.name}; keep them apart")
        size, header_bytes = file.stat().st_size, 0 if header is None else HEADER_BYTES
        tokens, rest = divmod(size - header_bytes, dtype.itemsize)
        if rest:
            raise UserError(f"{file} is no file of {dtype.name} ids: it has {size:,} bytes")
        largest = max(largest, largest_id(file, dtype, header_bytes, tokens))
        entry = {"path": file.name, "split": _split_of(file), "tokens": tokens}
        entries.append(entry | {"header_bytes": header_bytes, "sha256": sha256})
    return entries, largest


def largest_id(file: Path, dtype: np.dtype, header_bytes: int, tokens: int) -> int:
    """The largest id of a file; -1 for an empty one."""
    if not tokens:
        return -1
    ids = np.memmap(file, dtype=dtype, mode="r", offset=header_bytes, shape=(tokens,))
    return max(int(ids[first : first + READ_AT_ONCE].max()) for first in range(0, tokens, READ_AT_ONCE))
