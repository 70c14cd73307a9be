"""Token files that other programs made, taken as they are: only meta.json is written.

    nanoGPT                  bare uint16 ids: data/NAME/train.bin, val.bin
    llm.c, modded-nanogpt    shards with a header of 256 int32: a magic number, a version, a count of tokens;
                             20240520: uint16 ids of GPT-2's vocabulary; 20240801: uint32 ids of a larger one

A file is for validation where its name says "val".
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.dataset import DATA_FOLDER, FORMAT, tokens_of
from engine.errors import UserError
from engine.preparation.inputs import find_inputs
from engine.preparation.output import check_lengths, check_name, commit, partial_folder
from engine.system import hashes_of
from engine.text.characters import NumberTokenizer
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict
from engine.text.tokenizer_files import tokenizer_of_file

HEADER_BYTES = 1024
MAGIC = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}
AT_ONCE = 2**24  # ids


def holds_token_files(folder: Path) -> bool:
    """Whether a folder holds token files and no meta.json that describes them."""
    undescribed = (
        folder.is_dir() and not (folder / "meta.json").exists() and not (folder / ".partial").exists()
    )
    return undescribed and any(folder.glob("*.bin"))


def are_token_files(inputs: list[str]) -> bool:
    """Whether all that the inputs stand for are token files. Raises UserError for what is not there."""
    return "-" not in inputs and all(item.path.endswith(".bin") for item in find_inputs(inputs))


def adopt(
    name: str, paths: list[str], tokenizer: str | None, say: Callable[[str], None], root: Path = DATA_FOLDER
) -> Path:
    """Describe token files in data/NAME: those at `paths` through links, or without any those that lie there.

    `tokenizer` is one by name or file; None finds it out from the header and the ids. Raises UserError.
    """
    check_name(name, root)
    folder = root / name
    if not paths and (folder / "meta.pkl").exists():
        raise UserError(
            f"the vocabulary of {folder} is in its meta.pkl, which is not read: such a file can run any "
            f"program; prepare the data set again from its text: python prepare.py {name} --input FILE"
        )
    found = [Path(item.path) for item in find_inputs(paths)] if paths else sorted(folder.glob("*.bin"))
    names = [file.name for file in found]
    if len(set(names)) < len(names):
        raise UserError(f"two of the token files have the same name: {sorted(names)[:6]}")
    headers = [read_header(file) for file in found]
    vocabulary = _vocabulary(tokenizer, headers, found)
    dtype = headers[0][1] or np.dtype(
        "<u2" if vocabulary is None or vocabulary.vocab_size <= 2**16 else "<u4"
    )
    entries, largest = [], 0
    for file, (header_bytes, own, _), sha256 in zip(found, headers, hashes_of(found), strict=True):
        if (own or dtype) != dtype:
            raise UserError(f"{file} holds {own.name} ids, the other files {dtype.name}; keep them apart")
        tokens, rest = divmod(file.stat().st_size - header_bytes, dtype.itemsize)
        if rest:
            raise UserError(f"{file} is no file of {dtype.name} ids: it has {file.stat().st_size:,} bytes")
        largest = max(largest, largest_id(file, dtype, header_bytes, tokens))
        split = "val" if "val" in file.name else "train"
        entry = {
            "path": file.name,
            "split": split,
            "tokens": tokens,
            "header_bytes": header_bytes,
            "sha256": sha256,
        }
        entries.append(entry)
    vocabulary = vocabulary or NumberTokenizer(largest + 1)
    if largest >= vocabulary.vocab_size:
        raise UserError(
            f"{name} holds the token id {largest:,}, and the vocabulary has {vocabulary.vocab_size:,} "
            "entries; name the right one with --tokenizer FILE, or --tokenizer numbers if there is none"
        )
    for split in ("train", "val"):
        if not any(entry["split"] == split for entry in entries):
            raise UserError(f"none of the token files is for {split}: their names must say train or val")
    meta = _meta(name, dtype, vocabulary, entries)
    tokens = tokens_of(meta)
    check_lengths(name, tokens, say)
    with partial_folder(folder) as partial:
        for file in found:
            if paths:
                (partial / file.name).symlink_to(file.resolve())
        commit(partial, folder, meta, moved=bool(paths))
    say(
        f"{folder}: {tokens['train']:,} training and {tokens['val']:,} validation tokens as they were, "
        f"vocabulary {vocabulary.vocab_size:,} ({vocabulary.to_dict()['kind']})"
    )
    return folder


def read_header(file: Path) -> tuple[int, np.dtype | None, int]:
    """(bytes of the header, type of the ids, magic number) of a token file; (0, None, 0) without a header."""
    try:
        with open(file, "rb") as content:
            header = np.frombuffer(
                content.read(HEADER_BYTES), dtype="<i4", count=-1 if file.stat().st_size >= 1024 else 0
            )
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if len(header) < 256 or int(header[0]) not in MAGIC:
        return 0, None, 0
    dtype, tokens = MAGIC[int(header[0])], int(header[2])
    if file.stat().st_size != HEADER_BYTES + tokens * dtype.itemsize:
        raise UserError(
            f"{file} has {file.stat().st_size:,} bytes where its header says "
            f"{HEADER_BYTES + tokens * dtype.itemsize:,}; get it again"
        )
    return HEADER_BYTES, dtype, int(header[0])


def _vocabulary(
    tokenizer: str | None, headers: list[tuple[int, Any, int]], found: list[Path]
) -> Tokenizer | None:
    """The tokenizer asked for, or GPT-2's; None where the ids are numbers and no more is known."""
    if tokenizer == "numbers" or (tokenizer is None and any(magic == 20240801 for _, _, magic in headers)):
        return None
    if tokenizer in (None, "gpt2", "bytes"):
        return tokenizer_from_dict({"kind": tokenizer or "gpt2"})
    if tokenizer in ("char", "bpe"):
        raise UserError(
            f"{found[0]} holds token ids, whose vocabulary is given; name it with --tokenizer FILE"
        )
    return tokenizer_of_file(Path(tokenizer))


def largest_id(file: Path, dtype: np.dtype, header_bytes: int, tokens: int) -> int:
    """The largest id of a token file, -1 of an empty one."""
    if not tokens:
        return -1
    ids = np.memmap(file, dtype=dtype, mode="r", offset=header_bytes, shape=(tokens,))
    return max(int(ids[first : first + AT_ONCE].max()) for first in range(0, tokens, AT_ONCE))


def _meta(name: str, dtype: np.dtype, vocabulary: Tokenizer, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": name,
        "dtype": dtype.name,
        "vocab_size": vocabulary.vocab_size,
        "tokenizer": vocabulary.to_dict(),
        "text_bytes": {},
        "files": entries,
        "sources": [{"name": "token files of another program"}],
    }
