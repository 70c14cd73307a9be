"""Token files: opened, checked against their meta.json, and read.

A data set is a folder: meta.json, and the files of token ids that it lists (little-endian uint16 or uint32).
One of conversations has a mask beside each: bit i says whether token i is a target, that is trained on.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from engine.errors import UserError, did_you_mean
from engine.json_files import COUNT, check_fields, read_json_object
from engine.system import hashes_of
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict

FORMAT = 1
HASH_AT_OPEN_UP_TO = 10**9  # bytes; larger data sets are hashed by `prepare.py --verify NAME`
DATA_FOLDER = Path("data")
# The data sets that prepare.py knows how to make: engine/preparation/recipes.py.
KNOWN = (
    "shakespeare_char", "shakespeare", "openwebtext", "fineweb", "fineweb_100B", "assistant_base",
    "assistant_chat",
)  # fmt: skip
# The fields of a meta.json, and of an entry of its list of files.
FIELDS = {
    "dtype": Literal["uint16", "uint32"],
    "vocab_size": Annotated[int, range(1, 2**32 + 1)],
    "text_bytes": dict[str, COUNT],
    "tokenizer": dict,
    "files": list[dict],
    "conversations": dict[str, COUNT],
}
FIELDS_OF_A_FILE = {
    "path": str,
    "split": Literal["train", "val"],
    "tokens": COUNT,
    "header_bytes": COUNT,
    "sha256": str,
    "mask": str,
    "mask_sha256": str,
}
NO_TARGET = -100  # in the targets, instead of the id of a token that is not learned
ADVICE = "prepare the data set again"


class Split:
    """The token ids of one split, read from disk as they are asked for."""

    def __init__(
        self, name: str, folder: Path, entries: list[dict[str, Any]], dtype: np.dtype, vocab_size: int
    ) -> None:
        self.name, self.vocab_size = name, vocab_size
        self._parts: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        for entry in entries:
            if tokens := entry["tokens"]:
                file, begin = folder / entry["path"], entry["header_bytes"]
                self._parts.append(np.memmap(file, dtype=dtype, mode="r", offset=begin, shape=(tokens,)))
                if "mask" in entry:
                    self._masks.append(np.memmap(folder / entry["mask"], dtype=np.uint8, mode="r"))
        self.is_masked = bool(self._masks)  # only some tokens are targets
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)
        self.tokens = int(self._ends[-1]) if self._parts else 0

    def _stretches(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """For each file that holds some of the tokens: its number, and where they begin and end in it."""
        while count:
            number = int(np.searchsorted(self._ends, start, side="right"))
            begin = start - (int(self._ends[number]) - len(self._parts[number]))
            end = min(begin + count, len(self._parts[number]))
            yield number, begin, end
            start, count = start + end - begin, count - (end - begin)

    def read(self, start: int, count: int) -> np.ndarray:
        """Ids `start` to `start + count` (int64), across files where they meet."""
        found = [self._parts[number][begin:end] for number, begin, end in self._stretches(start, count)]
        return np.concatenate(found).astype(np.int64) if found else np.zeros(0, dtype=np.int64)

    def are_targets(self, start: int, count: int) -> np.ndarray:
        """Whether the tokens are trained on, (count,) bool."""
        targets = np.ones(count, dtype=bool)
        if self._masks:
            done = 0
            for number, begin, end in self._stretches(start, count):
                bits = np.unpackbits(self._masks[number][begin // 8 : (end + 7) // 8], bitorder="little")
                targets[done : done + end - begin] = bits[begin % 8 :][: end - begin]
                done += end - begin
        return targets

    def windows(self, starts: np.ndarray, block_size: int) -> np.ndarray:
        """Rows of ids (B, T + 1) int64, from each start on. Raises UserError for an unknown id."""
        rows = np.stack([self.read(int(start), block_size + 1) for start in starts])
        self.check_ids(rows)
        return rows

    def aligned_windows(
        self, starts: np.ndarray, block_size: int, separator: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows like those of `windows`, each moved on to the first document that begins in its window.

        Returns ids and targets, each (B, T): a row ends where that of the next window begins, so that no
        target comes twice; what follows, and what a mask leaves out, is NO_TARGET. So are a conversation's
        words where its beginning lies outside the row.
        """
        rows = np.full((len(starts), block_size + 1), separator, dtype=np.int64)
        targets = np.full((len(starts), block_size), NO_TARGET, dtype=np.int64)
        for number, start in enumerate(starts.tolist()):
            ids = self.read(start, min(2 * block_size, self.tokens - start))
            begin = _first(ids[:block_size] == separator)
            end = min(begin + block_size, block_size + _first(ids[block_size:] == separator))
            if self.is_masked and separator not in ids[block_size:]:
                end = begin + block_size  # the next row has no beginning, so nothing is learned there
            row = ids[begin : end + 1]
            learned = self.are_targets(start + begin + 1, len(row) - 1)
            if self.is_masked and row[0] != separator:
                learned[:] = False
            rows[number, : len(row)] = row
            targets[number, : len(learned)] = np.where(learned, row[1:], NO_TARGET)
        self.check_ids(rows)
        return rows[:, :-1], targets

    def check_ids(self, ids: np.ndarray) -> None:
        """Raise UserError for an id that the vocabulary does not have."""
        if ids.max() >= self.vocab_size:
            raise UserError(
                f"the {self.name} split holds the token id {ids.max()}, but its vocabulary has "
                f"{self.vocab_size} entries; prepare the data set again"
            )


def _first(found: np.ndarray) -> int:
    return int(found.argmax()) if len(found) else 0  # 0 where there is none


@dataclass(frozen=True)
class Dataset:
    """An open data set: both splits, tokenizer, and a hash of its content."""

    name: str
    folder: Path
    meta: dict[str, Any]
    tokenizer: Tokenizer
    train: Split
    val: Split
    fingerprint: str

    def separator(self, documents: str) -> int | None:
        """The token that begins a document; None for "joined". Raises UserError."""
        if self.train.is_masked and documents != "aligned":
            raise UserError(
                f"{self.folder} holds conversations, and each is read from its beginning: add "
                f"--documents=aligned"
            )
        if documents == "joined":
            return None
        if self.tokenizer.end_of_text is None:
            raise UserError(
                f"documents is {documents!r}, but the vocabulary of {self.folder} has no end-of-text token "
                f"to tell where they begin; prepare it with --tokenizer gpt2 or bpe"
            )
        return self.tokenizer.end_of_text

    def bytes_per_token(self, split: Split) -> float | None:
        """Bytes of text for each token of a split, where they are recorded."""
        text_bytes = self.meta.get("text_bytes", {}).get(split.name)
        return text_bytes / split.tokens if text_bytes and split.tokens else None


def open_dataset(name: str, block_size: int, root: Path = DATA_FOLDER) -> Dataset:
    """Open data/NAME, sizes, hashes (up to 1 GB) and lengths checked. Raises UserError."""
    folder = root / name
    path = folder / "meta.json"
    if not path.is_file() or _name_of_path(name, root) is not None:
        raise UserError(no_dataset(name, root))
    meta = read_meta(path)
    files = list(_listed(folder, meta))
    for file, size, _ in files:
        again = f"prepare it again: python prepare.py {shlex.quote(name)}"
        if not file.is_file():
            raise UserError(f"the token file {file} is missing; {again}")
        if file.stat().st_size != size:
            raise UserError(
                f"{file} has {file.stat().st_size} bytes where its meta.json says {size}; {again}"
            )
    if sum(size for _, size, _ in files) <= HASH_AT_OPEN_UP_TO:
        verify_hashes(folder, meta, name)
    dtype = np.dtype(meta["dtype"]).newbyteorder("<")
    splits = {}
    for split in ("train", "val"):
        entries = [entry for entry in meta["files"] if entry["split"] == split]
        splits[split] = Split(split, folder, entries, dtype, meta["vocab_size"])
        if splits[split].tokens <= block_size:
            raise UserError(
                f"the {split} split of {folder} has {splits[split].tokens} tokens, which is not longer than "
                f"block_size {block_size}; take a longer text or a smaller --block_size"
            )
    tokenizer = tokenizer_from_dict(meta["tokenizer"])
    if tokenizer.vocab_size != meta["vocab_size"]:
        raise UserError(
            f"{path}: vocab_size {meta['vocab_size']} is not its tokenizer's {tokenizer.vocab_size}"
        )
    named = ("path", "split", "tokens", "sha256", "mask", "mask_sha256")
    identity = [[entry[field] for field in named if field in entry] for entry in meta["files"]]
    fingerprint = hashlib.sha256(json.dumps([identity, meta["tokenizer"]]).encode()).hexdigest()
    return Dataset(name, folder, meta, tokenizer, **splits, fingerprint=fingerprint)


def tokens_of(meta: dict[str, Any]) -> dict[str, int]:
    """The number of tokens of each split in a meta.json."""
    tokens = {"train": 0, "val": 0}
    for entry in meta["files"]:
        tokens[entry["split"]] += entry["tokens"]
    return tokens


def no_dataset(name: str, root: Path) -> str:
    """The sentence for a missing data set: a similar name, and the command that makes it."""
    meant = _name_of_path(name, root)
    if meant is not None:
        return f"{name} is a path, and data sets go by their names in {root}/; did you mean {meant}?"
    names = sorted(path.parent.name for path in root.glob("*/meta.json"))
    there = f"there are: {', '.join(names)}" if names else "there is none yet"
    if name in KNOWN:
        return f"there is no data set {root / name} ({there}); make it: python prepare.py {name}"
    return (
        f"there is no data set {root / name} ({there}), and no recipe for it (known are {', '.join(KNOWN)})"
        f"{did_you_mean(name, [*names, *KNOWN], otherwise=';')} "
        f"from text of yours: python prepare.py {shlex.quote(name)} --input FILE"
    )


def _name_of_path(name: str, root: Path) -> str | None:
    """The name of the data set in `root` to which a path such as "base/" points; None for a name."""
    if Path(name).name == name:
        return None
    for path in (Path(name), root / name):
        if path.parent.resolve() == root.resolve() and (path.is_dir() or path.name in KNOWN):
            return path.name
    return None


def read_meta(path: Path) -> dict[str, Any]:
    """The content of a meta.json, checked. Raises UserError."""
    meta = read_json_object(path, ADVICE)
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {str(meta.get('format'))[:20]}, where this program reads {FORMAT}; {ADVICE}"
        )
    check_fields(meta, FIELDS, str(path), optional=("text_bytes", "conversations"), advice=ADVICE)
    if not meta["files"]:
        raise UserError(f"{path}: files is empty; {ADVICE}")
    masked = sum("mask" in entry for entry in meta["files"])
    if masked not in (0, len(meta["files"])):
        raise UserError(f"{path}: some files have a mask and others have none; {ADVICE}")
    if masked and "longest" not in meta.get("conversations", {}):
        raise UserError(f"{path}: nothing says how long the longest conversation is; {ADVICE}")
    for entry in meta["files"]:
        optional = () if masked else ("mask", "mask_sha256")
        check_fields(entry, FIELDS_OF_A_FILE, f"{path}: an entry of files", optional=optional, advice=ADVICE)
        for file in (entry["path"], entry.get("mask", entry["path"])):
            if not file or "\0" in file or Path(file).is_absolute() or ".." in Path(file).parts:
                raise UserError(
                    f"{path}: the path of a token file must lie inside the data set's folder; {ADVICE}"
                )
    return meta


def _listed(folder: Path, meta: dict[str, Any]) -> Iterator[tuple[Path, int, str]]:
    for entry in meta["files"]:
        size = entry["header_bytes"] + entry["tokens"] * np.dtype(meta["dtype"]).itemsize
        yield folder / entry["path"], size, entry["sha256"]
        if "mask" in entry:
            yield folder / entry["mask"], (entry["tokens"] + 7) // 8, entry["mask_sha256"]


def verify_hashes(folder: Path, meta: dict[str, Any], name: str) -> None:
    """Raise UserError if the SHA-256 of a file is not the recorded one."""
    files = list(_listed(folder, meta))
    for (file, _, sha256), found in zip(files, hashes_of([file for file, _, _ in files]), strict=True):
        if found != sha256:
            again = f"prepare it again: python prepare.py {shlex.quote(name)}"
            raise UserError(f"{file} is damaged (SHA-256 differs); {again}")
