"""Folders of files on the Hugging Face hub: listed, and each downloaded while the one before is read.

The environment variable HF_ENDPOINT names another address of the hub, as it does for the hub's own tools.
"""

import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from engine.errors import UserError
from engine.preparation.inputs import Input

ENDPOINT = "https://huggingface.co"
TIME_LIMIT = 30.0  # seconds without an answer
ATTEMPTS = 5
BLOCK = 2**20


@dataclass(frozen=True)
class HubFolder:
    """A folder in a data set's repository."""

    repository: str
    folder: str


def list_parquet(source: HubFolder, into: Path) -> list[Input]:
    """The Parquet files of a folder, ordered by name, to be downloaded into `into`. Raises UserError."""
    base = f"{os.environ.get('HF_ENDPOINT', ENDPOINT).rstrip('/')}"
    address: str | None = f"{base}/api/datasets/{source.repository}/tree/main/{quote(source.folder)}"
    entries: list[dict[str, Any]] = []
    try:
        while address:
            with _asked(address) as answer:
                entries += json.loads(answer.read())
                following = re.search(r'<([^>]+)>;\s*rel="next"', answer.headers.get("Link") or "")
            address = following[1] if following else None
        files = sorted(
            (entry for entry in entries if entry["path"].endswith(".parquet")),
            key=lambda entry: entry["path"],
        )
        found = [
            Input(
                str(into / Path(entry["path"]).name),
                "parquet",
                f"{source.repository}/{source.folder}",
                int(entry["size"]),
                address=f"{base}/datasets/{source.repository}/resolve/main/{quote(entry['path'])}",
                sha256=str(entry["lfs"]["oid"]),
            )
            for entry in files
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the files of {source.repository} cannot be listed: {address}: {getattr(error, 'reason', error)}"
        ) from error
    if not found:
        raise UserError(f"{source.repository} has no Parquet files in {source.folder}")
    return found


def _asked(address: str, offset: int = 0) -> Any:
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    if not address.startswith(("http://", "https://")):
        raise ValueError("only http and https addresses are read")
    return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIME_LIMIT)


class Downloads:
    """The files that are read now and next; those before are deleted."""

    def __init__(self, inputs: list[Input]) -> None:
        self.inputs = inputs
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="downloads")
        self._coming: dict[int, Future[None]] = {}

    def arrive(self, index: int) -> None:
        """Wait for input number `index`, and let the next one come. Raises UserError."""
        for number, item in enumerate(self.inputs[:index]):
            if item.address:
                Path(item.path).unlink(missing_ok=True)
                self._coming.pop(number, None)
        for number in (index, index + 1):
            if number < len(self.inputs) and self.inputs[number].address and number not in self._coming:
                self._coming[number] = self._thread.submit(download, self.inputs[number])
        if index in self._coming:
            self._coming[index].result()

    def close(self) -> None:
        """Let the download under way end."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def download(item: Input) -> None:
    """Download a file to its path, going on where an earlier attempt stopped, and check its SHA-256."""
    path = Path(item.path)
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    for attempt in range(ATTEMPTS):
        try:
            _download_rest(item, part)
            break
        except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
            if attempt + 1 == ATTEMPTS:
                reason = getattr(error, "reason", error)
                raise UserError(
                    f"{item.address} cannot be downloaded: {reason}; the same command goes on"
                ) from error
            time.sleep(2**attempt)
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != item.sha256:
        part.unlink()
        raise UserError(f"{item.address} arrived damaged (its SHA-256 differs); run the same command again")
    os.replace(part, path)


def _download_rest(item: Input, part: Path) -> None:
    offset = part.stat().st_size if part.exists() else 0
    if offset == item.size:
        return
    with _asked(item.address, offset) as answer, open(part, "ab") as file:
        if offset and answer.status != 206:  # the server sends it from the beginning
            file.truncate(0)
        while block := answer.read(BLOCK):
            file.write(block)
    if part.stat().st_size != item.size:
        raise ConnectionError(f"{part.stat().st_size:,} of {item.size:,} bytes arrived")
