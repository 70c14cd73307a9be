"""Tokenizers that need no learned vocabulary: characters, bytes, and plain numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.errors import UserError


class CharTokenizer:
    """One id for each character of a table, in the order of their code points."""

    end_of_text: int | None = None  # a line break ends a document

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.vocab_size = len(characters)
        self._code_points = _code_points(characters)
        if self.vocab_size == 0 or (np.diff(self._code_points.astype(np.int64)) <= 0).any():
            raise ValueError("a character table holds each character once, in the order of the code points")

    @classmethod
    def of_text(cls, text: str) -> "CharTokenizer":
        """The tokenizer of the characters in a text."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """An id for each character. Raises UserError that names the first unknown one."""
        points = _code_points(text)
        ids = np.minimum(np.searchsorted(self._code_points, points), self.vocab_size - 1)
        unknown = np.flatnonzero(self._code_points[ids] != points)
        if len(unknown):
            character = text[unknown[0]]
            raise UserError(
                f"the character {character!r} (U+{ord(character):04X}, position {unknown[0]}) is not among "
                f"the {self.vocab_size} that the model knows: {self.characters!r}"
            )
        return ids.astype(np.int64)

    def encode_document(self, text: str) -> np.ndarray:
        return self.encode(ended_line(text))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.characters[index] for index in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "char", "characters": self.characters}


class ByteTokenizer:
    """The 256 bytes of UTF-8: any text, no vocabulary to keep."""

    vocab_size = 256
    end_of_text: int | None = None  # a line break ends a document

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(to_bytes(text), dtype=np.uint8).astype(np.int64)

    def encode_document(self, text: str) -> np.ndarray:
        return self.encode(ended_line(text))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(int(index) for index in ids).decode("utf-8", errors="replace")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class NumberTokenizer:
    """Ids of an unknown vocabulary, written as numbers: "15496 995"."""

    end_of_text: int | None = None

    def __init__(self, vocab_size: int) -> None:
        if not 1 <= vocab_size <= 2**32:
            raise ValueError("a vocabulary has 1 to 2³² entries")
        self.vocab_size = vocab_size

    def encode(self, text: str) -> np.ndarray:
        """The numbers that the text consists of. Raises UserError for anything else."""
        words = text.split()
        known = (word.isdecimal() and word.isascii() and int(word) < self.vocab_size for word in words)
        if not words or not all(known):
            raise UserError(
                f"this model's vocabulary is unknown: write token ids below {self.vocab_size}, "
                "such as 11 12, for text"
            )
        return np.array([int(word) for word in words], dtype=np.int64)

    def encode_document(self, text: str) -> np.ndarray:
        return self.encode(text)  # nothing is known to end it

    def decode(self, ids: Sequence[int]) -> str:
        """The ids as numbers, a space before each, so that parts make the whole."""
        return "".join(f" {int(index)}" for index in ids)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "numbers", "vocab_size": self.vocab_size}


def ended_line(text: str) -> str:
    """The text with a line break at its end."""
    return text if text.endswith("\n") else text + "\n"


def to_bytes(text: str, encoding: str = "utf-8") -> bytes:
    """A text in a Unicode encoding. Raises UserError for half a surrogate pair."""
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        problem = f"position {error.start} holds half a surrogate pair, which is no character"
        raise UserError(problem) from error


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(to_bytes(text, "utf-32-le"), dtype=np.uint32)
