"""Text to token ids and back: single characters, raw bytes, or GPT-2's byte-pair encoding.

A tokenizer is described by a small dictionary (`to_dict`) that travels in data sets and checkpoints.

    CharTokenizer.of_text("hello").encode("hole")  ->  [1, 3, 2, 0]      (its characters are "ehlo")
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from engine.errors import UserError
from engine.merges import MergesTokenizer

END_OF_TEXT = "<|endoftext|>"
LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens, that one character can take


class Tokenizer(Protocol):
    """What every tokenizer offers."""

    vocab_size: int

    def encode(self, text: str) -> np.ndarray:
        """Ids (int64) of a text. Raises UserError where the vocabulary cannot express it."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON description, from which `tokenizer_from_dict` makes the same tokenizer."""


class CharTokenizer:
    """One id for each character of a table, in the order of their code points."""

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.vocab_size = len(characters)
        self._code_points = _code_points(characters)
        if self.vocab_size == 0 or (np.diff(self._code_points.astype(np.int64)) <= 0).any():
            raise ValueError("a character table holds each character once, in the order of the code points")

    @classmethod
    def of_text(cls, text: str) -> "CharTokenizer":
        """The tokenizer whose table is the set of characters in a text."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text; UserError names the first character that is not in the table."""
        points = _code_points(text)
        ids = np.minimum(np.searchsorted(self._code_points, points), self.vocab_size - 1)
        unknown = np.flatnonzero(self._code_points[ids] != points)
        if len(unknown):
            character = text[unknown[0]]
            raise UserError(
                f"the character {character!r} (U+{ord(character):04X}, position {unknown[0]}) is not among "
                f"the "
                f"{self.vocab_size} that the model knows: {self.characters!r}"
            )
        return ids.astype(np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The characters of ids, joined."""
        return "".join(self.characters[index] for index in ids)

    def to_dict(self) -> dict[str, Any]:
        """The table itself."""
        return {"kind": "char", "characters": self.characters}


class ByteTokenizer:
    """The 256 bytes of UTF-8: any text, no vocabulary to keep."""

    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        """One id for each byte."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes."""
        return bytes(int(index) for index in ids).decode("utf-8", errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """Nothing but the kind."""
        return {"kind": "bytes"}


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding through tiktoken; `<|endoftext|>` in a text is the end-of-text token."""

    def __init__(self) -> None:
        import tiktoken

        from engine.sources import ensure_gpt2_vocabulary

        ensure_gpt2_vocabulary()
        self.encoding = tiktoken.get_encoding("gpt2")
        self.vocab_size = self.encoding.n_vocab
        self.end_of_text = self.encoding.eot_token

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text."""
        return np.array(self.encoding.encode(text, allowed_special={END_OF_TEXT}), dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self.encoding.decode(list(ids))

    def to_dict(self) -> dict[str, Any]:
        """Nothing but the kind: the vocabulary is public and pinned by its hash."""
        return {"kind": "gpt2"}


def make_tokenizer(kind: str, text: str) -> Tokenizer:
    """A tokenizer by name: "char" (its table taken from the text), "bytes" or "gpt2"."""
    if kind == "char":
        return CharTokenizer.of_text(text)
    return tokenizer_from_dict({"kind": kind})


def tokenizer_from_dict(description: Any) -> Tokenizer:
    """The tokenizer that `to_dict` described. Raises UserError for anything else."""
    match description:
        case {"kind": "char", "characters": str(characters)}:
            try:
                return CharTokenizer(characters)
            except ValueError as error:
                raise UserError(f"the tokenizer's table is damaged: {error}") from error
        case {"kind": "bytes"}:
            return ByteTokenizer()
        case {"kind": "gpt2"}:
            return GPT2Tokenizer()
        case {"kind": "merges"}:
            try:
                return MergesTokenizer.from_dict(description)
            except ValueError as error:
                raise UserError(f"the tokenizer's vocabulary is damaged: {error}") from error
    raise UserError(f"unknown tokenizer {str(description)[:80]!r}; known are char, bytes, gpt2 and merges")


class TextStream:
    """Text out of tokens as they come: no character is split, and nothing is shown that a stop text may still
    remove.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | None = None) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.stopped = False
        self._ids: list[int] = []
        self._held = ""

    def push(self, token: int) -> str:
        """The text that can be shown now that this token has come."""
        if self.stopped:
            return ""
        self._ids.append(token)
        text = self.tokenizer.decode(self._ids)
        if text.endswith("\ufffd") and len(self._ids) < LONGEST_CHARACTER:
            return ""  # the rest of a character of several bytes may still come
        self._ids.clear()
        self._held += text
        if self.stop is None:
            return self._release(len(self._held))
        found = self._held.find(self.stop)
        if found >= 0:
            self.stopped = True
            return self._release(found)
        begun = (size for size in range(len(self.stop) - 1, 0, -1) if self._held.endswith(self.stop[:size]))
        return self._release(len(self._held) - next(begun, 0))

    def finish(self) -> str:
        """What was held back, now that no more tokens come."""
        if self.stopped:
            return ""
        self._held += self.tokenizer.decode(self._ids)
        self._ids.clear()
        return self._release(len(self._held))

    def _release(self, size: int) -> str:
        shown, self._held = self._held[:size], self._held[size:]
        return shown


def encode_prompt(tokenizer: Tokenizer, text: str | None) -> np.ndarray:
    """Ids of a prompt; of None, a line break, or the vocabulary's first entry where it has no line break."""
    if text is None:
        try:
            return tokenizer.encode("\n")
        except UserError:
            return np.zeros(1, dtype=np.int64)
    if not text:
        raise UserError("the prompt is empty; leave --start out to begin with a line break")
    return tokenizer.encode(text)


def _code_points(text: str) -> np.ndarray:
    """The code points of a text, (length,) uint32. UserError for half a surrogate pair, which is no
    character.
    """
    try:
        return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    except UnicodeEncodeError as error:
        raise UserError(
            f"position {error.start} holds half a surrogate pair, which is no character"
        ) from error
