"""Files opened as if they were not compressed: gzip, xz, bzip2 and zstd, by the suffix of their name."""

import bz2
import gzip
import io
import lzma
import shlex
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from engine.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# The suffixes of compressed files, and what decompresses one on the command line.
UNPACK = {".gz": "gzip -cd", ".xz": "xz -cd", ".bz2": "bzip2 -cd", ".zst": "zstd -cd"}
# `zstd --long=31` writes files that refer back by so much; the library's own limit is 2²⁷ bytes.
ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 31}
OPENERS: dict[str, Callable[[io.BufferedReader], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": partial(zstd.open, options=ZSTD_OPTIONS),
}


@contextmanager
def open_decompressed(path: str) -> Iterator[tuple[io.BufferedIOBase, Callable[[], float]]]:
    """A file's content, decompressed, and what tells the share read so far. Raises UserError."""
    try:
        with open(path, "rb") as raw, OPENERS.get(Path(path).suffix.lower(), nullcontext)(raw) as content:
            size = max(1, Path(path).stat().st_size)
            yield content, lambda: min(1.0, raw.tell() / size)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zstd.ZstdError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); get it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def without_suffix(path: str) -> Path:
    """The path of a compressed file once it is decompressed; of another one itself."""
    return Path(path).with_suffix("") if Path(path).suffix.lower() in UNPACK else Path(path)


def filter_command(command: str, path: str, addition: str, suffix: str | None = None) -> str:
    """A line for the shell that sends a file, decompressed, through a command into a new file beside it.

    filter_command("tr -d x", "my text.gz", "new")  ->  "gzip -cd 'my text.gz' | tr -d x > 'my text.new'"
    """
    plain = without_suffix(path)
    into = plain.with_name(f"{plain.stem}.{addition}{plain.suffix if suffix is None else suffix}")
    unpack = UNPACK.get(Path(path).suffix.lower())
    if unpack is None:
        return f"{command} < {shlex.quote(path)} > {shlex.quote(str(into))}"
    return f"{unpack} {shlex.quote(path)} | {command} > {shlex.quote(str(into))}"
