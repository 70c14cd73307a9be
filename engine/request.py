"""What a preparation is asked for, what it has planned, and how far it is."""

from dataclasses import dataclass, field
from typing import Any

from engine.hub import HubFolder
from engine.readers import Place


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
