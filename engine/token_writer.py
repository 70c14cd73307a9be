"""Token files under way: written in order, cut into shards where asked, put back to what was saved."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np


class TokenWriter:
    """Writes the ids of each split to train.bin and val.bin, or to shards: train-000000.bin, …

    `files` lists [name, tokens] for each split and is kept up to date; what it lists at the start is what the
    files hold, and more of them is cut off.
    """

    def __init__(
        self, folder: Path, files: dict[str, list[list[Any]]], dtype: np.dtype, shard_tokens: int | None
    ) -> None:
        self.folder, self.files, self.dtype, self.shard_tokens = folder, files, dtype, shard_tokens
        self._open: dict[str, io.FileIO] = {}
        for split in files:
            if files[split]:
                name, tokens = files[split][-1]
                self._open[split] = io.FileIO(folder / name, "r+")
                self._open[split].truncate(tokens * dtype.itemsize)
                self._open[split].seek(0, os.SEEK_END)
            else:
                self._next(split)

    def _next(self, split: str) -> None:
        """Begin a split's next file."""
        if split in self._open:
            os.fsync(self._open[split].fileno())
            self._open[split].close()
        number = len(self.files[split])
        name = f"{split}.bin" if self.shard_tokens is None else f"{split}-{number:06d}.bin"
        self.files[split].append([name, 0])
        self._open[split] = io.FileIO(self.folder / name, "w")

    def write(self, split: str, ids: np.ndarray) -> None:
        """Append ids to a split."""
        assert ids.dtype == self.dtype, "the ids are not of the file's type"
        while len(ids):
            if self.files[split][-1][1] == self.shard_tokens:
                self._next(split)
            entry = self.files[split][-1]
            part = ids if self.shard_tokens is None else ids[: self.shard_tokens - entry[1]]
            content = memoryview(part).cast("B")
            while content:  # a disk that fills takes a part, and the next call raises OSError
                content = content[self._open[split].write(content) :]
            entry[1] += len(part)
            ids = ids[len(part) :]

    def sync(self) -> None:
        """Make sure that what was written outlives a power cut."""
        for file in self._open.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()


def are_intact(folder: Path, files: dict[str, list[list[Any]]], dtype: np.dtype) -> bool:
    """Whether the files listed are there, and hold at least what the list says."""
    listed = [(folder / name, tokens) for entries in files.values() for name, tokens in entries]
    return all(path.is_file() and path.stat().st_size >= tokens * dtype.itemsize for path, tokens in listed)
