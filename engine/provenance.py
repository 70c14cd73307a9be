"""Where a data set's text is from, and by what a preparation that was interrupted knows its own work."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from engine.readers import Input
from engine.request import Request
from engine.workers import hashes_of

PIPELINE = 2  # raised when the same request would give other files


def identity_of(request: Request, inputs: list[Input], spool: Path) -> str:
    """A hash of what is asked for and of the files' sizes and times: the same for the same work.

    `spool` is the file that standard input was written to.
    """
    files = []
    for item in inputs:
        if item.format == "hub" or item.address:
            version: Any = item.sha256
        elif Path(item.path) == spool:
            version = hashes_of([spool])
        else:
            version = [os.stat(item.path).st_size, os.stat(item.path).st_mtime_ns]
        files.append([item.path, item.val, version])
    asked = dataclasses.asdict(request) | {"workers": None}
    return hashlib.sha256(json.dumps([PIPELINE, asked, files]).encode()).hexdigest()


def sources_of(inputs: list[Input], spool: Path) -> list[dict[str, Any]]:
    """What each argument stood for; several files have one hash, of a list as sha256sum writes it."""
    groups: dict[str, list[Input]] = {}
    for item in inputs:
        groups.setdefault(item.argument, []).append(item)
    sources = []
    for argument, items in groups.items():
        if items[0].format == "hub":
            sources.append({"name": argument})
            continue
        if items[0].address:
            sources += [{"name": argument, "address": item.address, "sha256": item.sha256} for item in items]
            continue
        name = "standard input" if argument == str(spool) else Path(argument).name or argument
        hashes = hashes_of([Path(item.path) for item in items])
        if len(items) == 1:
            sources.append({"name": name, "sha256": hashes[0]})
        else:
            lines = [f"{sha256}  {item.path}\n" for item, sha256 in zip(items, hashes, strict=True)]
            together = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
            sources.append({"name": name, "files": len(items), "sha256": together})
    return sources
