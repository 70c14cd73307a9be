"""Files opened as if they were not compressed: gzip, xz, bzip2 and zstd, by the suffix of their name."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from engine.errors import UserError

SUFFIXES = (".gz", ".xz", ".bz2", ".zst")
BLOCK = 2**17


@contextmanager
def opened(path: str) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """The content of a file, decompressed and seekable; and a function that tells the share read so far.

    Raises UserError, naming the file, for one that cannot be read, is damaged, or ends too early.
    """
    try:
        with open(path, "rb") as raw, _decompressed(raw, path) as content:
            size = max(1, Path(path).stat().st_size)
            yield content, lambda: min(1.0, raw.tell() / size)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); get it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _decompressed(raw: BinaryIO, path: str) -> BinaryIO:
    match Path(path).suffix.lower():
        case ".gz":
            return gzip.GzipFile(fileobj=raw)
        case ".xz":
            return lzma.open(raw)
        case ".bz2":
            return bz2.open(raw)
        case ".zst":
            return _ZstdFile(raw, path)
    return raw


class _ZstdFile(io.RawIOBase):
    """The content of all frames of a zstd file. EOFError for one that is damaged or ends inside a frame.

    The streams of the package zstandard take a file that was cut short for a complete
    one, so frames are read here.
    """

    def __init__(self, file: BinaryIO, path: str) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise UserError(
                f"{path}: zstd files need the package zstandard: pip install zstandard"
            ) from error
        self._file, self._zstandard = file, zstandard
        self._rewind()

    def _rewind(self) -> None:
        self._file.seek(0)
        self._frame, self._fresh = self._new_frame(), True
        self._ready, self._position = b"", 0

    def _new_frame(self) -> Any:
        return self._zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position of the content, by reading up to it."""
        assert whence == 0, "only positions from the start"
        if offset < self._position:
            self._rewind()
        while self._position < offset and self.read(min(BLOCK, offset - self._position)):
            pass
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        parts, wanted = [], 2**62 if size < 0 else size
        while wanted and self._fill():
            parts.append(self._ready[:wanted])
            self._ready = self._ready[wanted:]
            wanted -= len(parts[-1])
        content = b"".join(parts)
        self._position += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _fill(self) -> bool:
        """Have something ready; False at the end of the last frame."""
        while not self._ready:
            block = b""
            if self._frame.eof:
                block = self._frame.unused_data
                self._frame, self._fresh = self._new_frame(), True
            block = block or self._file.read(BLOCK)
            if not block and self._fresh:
                return False
            if not block:
                raise EOFError("the file ends inside a zstd frame")
            try:
                self._ready, self._fresh = self._frame.decompress(block), False
            except self._zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
        return True
