"""The files of an unfinished data set: written in a folder inside data/NAME, moved into place at the end.

with staging_folder(data/NAME) as staging:      held by this process alone
    TokenWriter(staging, ...)                   writes the ids
    move_into_place(staging, data/NAME, meta)   meta.json last
"""

import contextlib
import io
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from engine.data.dataset import read_meta
from engine.errors import UserError
from engine.system import write_whole

STAGING = ".partial"  # the folder's name
STATE = "state.json"  # there where a long preparation has saved how far it is
RANK_FILE = "tokenizer.tiktoken"
FEWEST_TOKENS = 2  # of a split
USUAL_BLOCK = 256  # tokens; splits no longer than that are remarked upon


def check_name(name: str, root: Path) -> None:
    """Raise UserError for what cannot be a folder in data/."""
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"{name!r} cannot name a data set: it becomes a folder in {root}")


def check_lengths(name: str, tokens: Mapping[str, int], say: Callable[[str], None]) -> None:
    """Raise UserError where a split is too short for any model; say where it is shorter than most blocks."""
    for split, number in tokens.items():
        if number < FEWEST_TOKENS:
            raise UserError(
                f"the {split} split of {name} has {number} of the {FEWEST_TOKENS} tokens that any sequence "
                f"takes, one to read and one to predict; give more text, or another --val"
            )
    shortest = min(tokens, key=tokens.__getitem__)
    if tokens[shortest] <= USUAL_BLOCK:
        say(
            f"{name}: note: the {shortest} split has {tokens[shortest]} tokens, so a model of it can have a "
            f"--block_size of {tokens[shortest] - 1} at most"
        )


@contextlib.contextmanager
def staging_folder(folder: Path, name: str = STAGING) -> Iterator[Path]:
    """A folder inside data/NAME for unfinished work, locked by this process.

    It is deleted at the end, also after an error, unless it holds a saved state to continue from.
    """
    staging = folder / name
    made = [parent for parent in (folder, folder.parent) if not parent.exists()]
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(staging / "lock")
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise UserError(f"another process is preparing {folder}; wait for it") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from error
    try:
        yield staging
        (staging / STATE).unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise  # not the disk: a library of the network's
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder} cannot be written: {reason}; what was there has not changed; "
            f"put it right and run the same command again"
        ) from error
    finally:
        if not (staging / STATE).exists():
            shutil.rmtree(staging, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty: all went well
                for parent in made:
                    parent.rmdir()
        lock.release()


class TokenWriter:
    """Writes the ids of each split to train.bin and val.bin, or to shards: train-000000.bin, …

    `files` lists [name, tokens] for each split and is kept up to date. Files that it lists at the start are
    continued; what they hold beyond the listed tokens is cut off. `suffix` comes before .bin in all names.
    """

    def __init__(
        self,
        folder: Path,
        files: dict[str, list[list[Any]]],
        dtype: np.dtype,
        shard_tokens: int | None,
        suffix: str = "",
    ) -> None:
        self.folder, self.files, self.dtype, self.shard_tokens = folder, files, dtype, shard_tokens
        self.suffix = suffix
        self._open: dict[str, io.FileIO] = {}
        for split in files:
            if files[split]:
                name, tokens = files[split][-1]
                self._open[split] = io.FileIO(folder / name, "r+")
                self._open[split].truncate(tokens * dtype.itemsize)
                self._open[split].seek(0, os.SEEK_END)
            else:
                self._next_file(split)

    def _next_file(self, split: str) -> None:
        """Begin a split's next file."""
        if split in self._open:
            os.fsync(self._open[split].fileno())
            self._open[split].close()
        number = len(self.files[split])
        name = split if self.shard_tokens is None else f"{split}-{number:06d}"
        name += f"{self.suffix}.bin"
        self.files[split].append([name, 0])
        self._open[split] = io.FileIO(self.folder / name, "w")

    def write(self, split: str, ids: np.ndarray) -> None:
        """Append ids to a split."""
        assert ids.dtype == self.dtype, "the ids are not of the file's type"
        while len(ids):
            if self.files[split][-1][1] == self.shard_tokens:
                self._next_file(split)
            entry = self.files[split][-1]
            part = ids if self.shard_tokens is None else ids[: self.shard_tokens - entry[1]]
            content = part.data.cast("B")
            while content:  # a disk that fills takes a part, and the next call raises OSError
                content = content[self._open[split].write(content) :]
            entry[1] += len(part)
            ids = ids[len(part) :]

    def sync(self) -> None:
        """Make sure that what was written outlives a power cut."""
        for file in self._open.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self._open.values():
            file.close()


def are_intact(folder: Path, files: dict[str, list[list[Any]]], dtype: np.dtype) -> bool:
    """Whether the files listed are there, and hold at least what the list says."""
    listed = [(folder / name, tokens) for entries in files.values() for name, tokens in entries]
    return all(path.is_file() and path.stat().st_size >= tokens * dtype.itemsize for path, tokens in listed)


def move_into_place(
    staging: Path, folder: Path, meta: dict[str, Any], token_files: list[str] | None = None
) -> None:
    """Move the new files into their places, meta.json last; delete those that only the old one lists.

    `token_files` are those to be moved, if not all that `meta` lists: others lie in their places already.
    """
    write_whole(staging / "meta.json", json.dumps(meta, indent=1).encode())
    old: list[str] = []
    with contextlib.suppress(UserError):  # there was no data set, or none that can be read
        old = [*_listed(read_meta(folder / "meta.json")), RANK_FILE]
    (folder / "meta.json").unlink(missing_ok=True)
    listed = _listed(meta)
    ranks = [RANK_FILE] if (staging / RANK_FILE).exists() else []
    for name in [*(listed if token_files is None else token_files), *ranks, "meta.json"]:
        os.replace(staging / name, folder / name)
    for name in set(old) - set(listed) - set(ranks):
        (folder / name).unlink(missing_ok=True)


def _listed(meta: dict[str, Any]) -> list[str]:
    """The files that a meta.json lists, of tokens and of masks."""
    return [file[kind] for file in meta["files"] for kind in ("path", "mask") if kind in file]
