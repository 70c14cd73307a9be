"""Text to token ids and back: single characters, raw bytes, GPT-2's byte-pair encoding, or one of your own.

A tokenizer is described by a small dictionary (`to_dict`) that travels in data sets and checkpoints.

    CharTokenizer.of_text("hello").encode("hole")  ->  [1, 3, 2, 0]      (its characters are "ehlo")
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from engine.errors import UserError
from engine.text.byte_pairs import GPT2Tokenizer, OwnBytePairTokenizer
from engine.text.characters import ByteTokenizer, CharTokenizer, NumberTokenizer
from engine.text.merges import MergesTokenizer


class Tokenizer(Protocol):
    """What every tokenizer offers."""

    vocab_size: int

    def encode(self, text: str) -> np.ndarray:
        """Ids (int64) of a text. Raises UserError where the vocabulary cannot express it."""

    def encode_document(self, text: str) -> np.ndarray:
        """Ids of one of many documents, with its end: the end-of-text token, or else a line break.

        The text is taken as it is: an end-of-text mark that is written out in it is text.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON description, from which `tokenizer_from_dict` makes the same tokenizer."""


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
        case {"kind": "bpe", "vocabulary": str(vocabulary)}:
            try:
                return OwnBytePairTokenizer.from_base64(vocabulary.split())
            except ValueError as error:
                raise UserError(f"the tokenizer's vocabulary is damaged: {error}") from error
        case {"kind": "numbers", "vocab_size": int(vocab_size)} if 1 <= vocab_size <= 2**32:
            return NumberTokenizer(vocab_size)
        case {"kind": "merges"}:
            try:
                return MergesTokenizer.from_dict(description)
            except ValueError as error:
                raise UserError(f"the tokenizer's vocabulary is damaged: {error}") from error
    raise UserError(
        f"unknown tokenizer {str(description)[:80]!r}; known are char, bytes, gpt2, merges, bpe and numbers"
    )


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
