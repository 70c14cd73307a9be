"""What is requested of a preparation, and how far it is: saved with the request's hash, to go on from."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.preparation.hub import HubFolder
from engine.preparation.inputs import BEGINNING, STDIN, Input, Place
from engine.preparation.utf8 import STANDARD_INPUT
from engine.system import hashes_of

PIPELINE = 5  # raised when the same request would give other files, or a state be saved otherwise


@dataclass(frozen=True)
class Request:
    """What a data set is to be made of, and how."""

    name: str
    inputs: list[str]
    tokenizer: str = "char"  # one of NAMED, or a file
    vocab_size: int = 8192  # of a vocabulary that is learned
    val: float | str = 0.1  # a share, or a path
    field: str = "text"
    errors: str = "strict"
    documents: bool = False
    dedup: bool = False
    block_size: int = 1024  # tokens of a conversation; a longer one is cut
    shard_tokens: int | None = None
    workers: int | None = None
    sources: list[dict[str, Any]] | None = None  # of the text, where known better than by its path
    remote: HubFolder | None = None  # in place of inputs


@dataclass
class State:
    """How far the encoding is. It is saved together with the files that it speaks of."""

    number: int = 0  # of the next piece
    place: Place = BEGINNING
    # [name, tokens] of each file.
    files: dict[str, list[list[Any]]] = field(default_factory=lambda: {"train": [], "val": []})
    cut: int = 0  # conversations that were shortened
    longest: int = 0  # tokens of a conversation
    documents: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    characters: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    text_bytes: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    dropped: dict[str, int] = field(default_factory=dict)
    split_hashes: list[int] = field(default_factory=list)  # the lowest and the highest of a document
    # What the user is told in the end: how many, and in which file first.
    byte_order_marks: int = 0
    first_marked: str = ""
    carriage_returns: int = 0
    first_with_returns: str = ""

    def __post_init__(self) -> None:
        self.place = Place(*self.place)  # of a state that was saved a list

    @property
    def tokens(self) -> int:
        return sum(tokens for files in self.files.values() for _, tokens in files)


def version_of(item: Input) -> Any:
    """What differs once an input has changed."""
    if item.format == "hub":
        return None
    if item.hub_file is not None:
        return item.hub_file.sha256
    if item.argument == STDIN:
        return hashes_of([Path(item.path)])
    return [os.stat(item.path).st_size, os.stat(item.path).st_mtime_ns]


def request_hash(request: Request, inputs: list[Input], versions: list[Any]) -> str:
    """A hash that changes with the request, its files, and the program's way of preparing."""
    asked = dataclasses.asdict(request) | {"workers": None}
    files = [[item.path, item.val] for item in inputs]
    return hashlib.sha256(json.dumps([PIPELINE, asked, files, versions]).encode()).hexdigest()


def sources_of(inputs: list[Input]) -> list[dict[str, Any]]:
    """What each argument stood for, with hashes: an entry of meta.json for each, of the hub for each file."""
    groups: dict[str, list[Input]] = {}
    for item in inputs:
        groups.setdefault(item.argument, []).append(item)
    found: list[dict[str, Any]] = []
    for argument, items in groups.items():
        hub_files = [item.hub_file for item in items if item.hub_file is not None]
        found += [{"name": argument, "address": file.address, "sha256": file.sha256} for file in hub_files]
        if items[0].format == "hub":
            found.append({"name": argument})
        elif not hub_files:
            name = STANDARD_INPUT if argument == STDIN else Path(argument).name or argument
            found.append({"name": name} | _hash_of([item.path for item in items]))
    return found


def _hash_of(paths: list[str]) -> dict[str, Any]:
    hashes = hashes_of([Path(path) for path in paths])
    if len(paths) == 1:
        return {"sha256": hashes[0]}
    lines = [f"{sha256}  {path}\n" for path, sha256 in zip(paths, hashes, strict=True)]
    together = "".join(lines).encode("utf-8", "surrogateescape")
    return {"files": len(paths), "sha256": hashlib.sha256(together).hexdigest()}
