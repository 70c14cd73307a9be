"""The files of an unfinished data set: written in a folder inside data/NAME, moved into place at the end."""

import contextlib
import io
import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from engine.data.dataset import read_meta
from engine.errors import UserError
from engine.system import hashes_of, write_whole

STAGING = ".partial"  # the folder's name
STATE = "state.json"  # there where a long preparation has saved how far it is
RANK_FILE = "tokenizer.tiktoken"
TARGETS = ".targets.bin"  # the end of the name of a file with a byte for each token: whether it is a target
Files = dict[str, list[list[Any]]]  # [name, tokens] of each file, by split
FEWEST_TOKENS = 2  # of a split
USUAL_BLOCK = 256  # tokens; splits no longer than that are remarked upon


def check_name(name: str, root: Path) -> None:
    """Raise UserError for a name that no data set's folder can have."""
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"{name!r} cannot name a data set: it becomes a folder in {root}")


def check_lengths(name: str, tokens: Mapping[str, int], say: Callable[[str], None]) -> None:
    """Raise UserError for a split that is too short to train on; note one that is shorter than usual."""
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
    """A folder in data/NAME, locked; deleted at the end if it holds no STATE to go on from."""
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

    `files` is kept up to date. Those that it lists at the start are continued, and cut off after the listed
    tokens. With two `dtypes` a second file lies beside each, train.targets.bin, with a number for each token.
    """

    def __init__(self, folder: Path, files: Files, dtypes: list[np.dtype], shard_tokens: int | None) -> None:
        self.folder, self.files, self.dtypes, self.shard_tokens = folder, files, dtypes, shard_tokens
        self._open: dict[str, list[io.FileIO]] = {}
        for split in files:
            if files[split]:
                self._open_last(split, "r+")
            else:
                self._next_file(split)

    def _open_last(self, split: str, mode: str) -> None:
        name, tokens = self.files[split][-1]
        self._open[split] = []
        for path, dtype in zip(_paths(self.folder, name), self.dtypes, strict=False):
            file = io.FileIO(path, mode)
            file.truncate(tokens * dtype.itemsize)
            file.seek(0, os.SEEK_END)
            self._open[split].append(file)

    def _next_file(self, split: str) -> None:
        for file in self._open.get(split, ()):
            os.fsync(file.fileno())
            file.close()
        number = "" if self.shard_tokens is None else f"-{len(self.files[split]):06d}"
        self.files[split].append([f"{split}{number}.bin", 0])
        self._open_last(split, "w")

    def write(self, split: str, *arrays: np.ndarray) -> None:
        """Append ids, and with two dtypes their targets, to a split. Raises OSError if the disk is full."""
        assert [array.dtype for array in arrays] == self.dtypes, "the numbers are not of the files' types"
        while len(arrays[0]):
            if self.files[split][-1][1] == self.shard_tokens:
                self._next_file(split)
            entry = self.files[split][-1]
            room = len(arrays[0]) if self.shard_tokens is None else self.shard_tokens - entry[1]
            for file, array in zip(self._open[split], arrays, strict=True):
                content = array[:room].data.cast("B")
                while content:  # a disk that fills takes a part, and the next call raises OSError
                    content = content[file.write(content) :]
            entry[1] += len(arrays[0][:room])
            arrays = tuple(array[room:] for array in arrays)

    def sync(self) -> None:
        """Make sure that what was written outlives a power cut."""
        for file in itertools.chain(*self._open.values()):
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in itertools.chain(*self._open.values()):
            file.close()


def _paths(folder: Path, name: str) -> list[Path]:
    return [folder / name, folder / name.replace(".bin", TARGETS)]


def are_intact(folder: Path, files: Files, dtypes: list[np.dtype]) -> bool:
    """Whether all files exist with at least the tokens that a saved state lists."""
    for name, tokens in itertools.chain(*files.values()):
        for path, dtype in zip(_paths(folder, name), dtypes, strict=False):
            if not path.is_file() or path.stat().st_size < tokens * dtype.itemsize:
                return False
    return True


def write_masks(staging: Path, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write a mask for each file, bit i (a byte's lowest first) for token i; returns the new entries."""
    found = []
    for entry in entries:
        tokens, targets = _paths(staging, entry["path"])
        mask = tokens.with_suffix(".mask.bin")
        flags = np.fromfile(targets, dtype=np.uint8)
        assert len(flags) == entry["tokens"], "each token says whether it is a target"
        write_whole(mask, np.packbits(flags, bitorder="little").tobytes())
        found.append(entry | {"mask": mask.name, "mask_sha256": hashes_of([mask])[0]})
    return found


def move_into_place(staging: Path, folder: Path, meta: dict[str, Any]) -> None:
    """Move what is staged into place, meta.json last; delete what only the old one lists."""
    write_whole(staging / "meta.json", json.dumps(meta, indent=1).encode())
    old: list[str] = []
    with contextlib.suppress(UserError):  # there was no data set, or none that can be read
        old = [*_listed(read_meta(folder / "meta.json")), RANK_FILE]
    (folder / "meta.json").unlink(missing_ok=True)
    listed = _listed(meta)
    moved = [name for name in (*listed, RANK_FILE, "meta.json") if os.path.lexists(staging / name)]
    for name in moved:
        os.replace(staging / name, folder / name)
    for name in set(old) - set(listed) - set(moved):
        (folder / name).unlink(missing_ok=True)


def _listed(meta: dict[str, Any]) -> list[str]:
    return [file[kind] for file in meta["files"] for kind in ("path", "mask") if kind in file]
