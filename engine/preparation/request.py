"""What a preparation is asked for, what it has planned, and how far it is."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.preparation.hub import HubFolder
from engine.preparation.inputs import Input, Place
from engine.system import hashes_of

PIPELINE = 2  # raised when the same request would give other files


@dataclass(frozen=True)
class Request:
    """What the user asks for."""

    name: str
    inputs: list[str]
    tokenizer: str = "char"  # one of NAMED, or a file
    vocab_size: int = 8192  # of a vocabulary that is learned
    val: float | str = 0.1  # a share, or a path
    field: str = "text"
    errors: str = "strict"
    documents: bool = False
    dedup: bool = False
    shard_tokens: int | None = None
    workers: int | None = None
    sources: list[dict[str, Any]] | None = None  # of the text, where known better than by its path
    remote: HubFolder | None = None  # in place of inputs


@dataclass
class Plan:
    """What must be known before the first token is written."""

    tokenizer: dict[str, Any]
    characters: list[int] | None  # of each piece of one long text
    val_below: int | None  # which documents are for validation, as in Job


@dataclass
class State:
    """How far the encoding is. It is saved together with the files that it speaks of."""

    number: int = 0  # of the next piece
    place: Place = field(default_factory=Place)
    # [name, tokens] of each file.
    files: dict[str, list[list[Any]]] = field(default_factory=lambda: {"train": [], "val": []})
    documents: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    characters: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    text_bytes: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    dropped: dict[str, int] = field(default_factory=dict)
    draws: list[int] = field(default_factory=list)  # the lowest and the highest of a document


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
