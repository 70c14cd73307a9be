"""Text to token ids and back: single characters, raw bytes, GPT-2's byte-pair encoding, or one of your own.

A tokenizer is described by a small dictionary (`to_dict`) that travels in data sets and checkpoints.

    CharTokenizer.of_text("hello").encode("hole")  ->  [1, 3, 2, 0]      (its characters are "ehlo")
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from engine.errors import UserError
from engine.merges import MergesTokenizer

END_OF_TEXT = "<|endoftext|>"
LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens, that one character can take
# How GPT-2 (Radford et al., 2019) cuts a text before merging: contractions, words, numbers, signs, space.
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
LARGEST_VOCABULARY = 2**20


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
                f"the {self.vocab_size} that the model knows: {self.characters!r}"
            )
        return ids.astype(np.int64)

    def encode_document(self, text: str) -> np.ndarray:
        """Ids of a text and a line break."""
        return self.encode(ended_line(text))

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

    def encode_document(self, text: str) -> np.ndarray:
        """The bytes of a text and a line break."""
        return self.encode(ended_line(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes."""
        return bytes(int(index) for index in ids).decode("utf-8", errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """Nothing but the kind."""
        return {"kind": "bytes"}


class BytePairTokenizer:
    """A byte-pair encoding through tiktoken; `<|endoftext|>` in a text is the end-of-text token."""

    def __init__(self, encoding: Any) -> None:
        self.encoding = encoding  # a tiktoken.Encoding
        self.vocab_size = encoding.n_vocab
        self.end_of_text = encoding.eot_token

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text."""
        return self.encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT}).astype(np.int64)

    def encode_document(self, text: str) -> np.ndarray:
        """Ids of a text and the end-of-text token."""
        ids = self.encoding.encode_to_numpy(text, disallowed_special=())
        return np.append(ids, np.uint32(self.end_of_text)).astype(np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self.encoding.decode(list(ids))


class GPT2Tokenizer(BytePairTokenizer):
    """GPT-2's byte-pair encoding: 50,257 entries."""

    def __init__(self) -> None:
        import tiktoken

        from engine.sources import ensure_gpt2_vocabulary

        ensure_gpt2_vocabulary()
        super().__init__(tiktoken.get_encoding("gpt2"))

    def to_dict(self) -> dict[str, Any]:
        """Nothing but the kind: the vocabulary is public and pinned by its hash."""
        return {"kind": "gpt2"}


class OwnBytePairTokenizer(BytePairTokenizer):
    """A byte-pair encoding of your own: byte sequences in the order of their merges, then the end of text.

    The first 256 are the single bytes, in any order, so every text can be encoded.
    """

    def __init__(self, sequences: Sequence[bytes]) -> None:
        import tiktoken

        ranks = {sequence: rank for rank, sequence in enumerate(sequences)}
        if len(ranks) != len(sequences) or not 256 <= len(sequences) < LARGEST_VOCABULARY or b"" in ranks:
            raise ValueError(
                f"a byte-pair vocabulary holds 256 to {LARGEST_VOCABULARY} different byte sequences"
            )
        if any(bytes([byte]) not in ranks for byte in range(256)):
            raise ValueError("a byte-pair vocabulary holds every single byte")
        self.sequences = list(sequences)
        special = {END_OF_TEXT: len(ranks)}
        super().__init__(
            tiktoken.Encoding("own", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special)
        )

    @classmethod
    def from_base64(cls, words: Sequence[str]) -> "OwnBytePairTokenizer":
        """The tokenizer of sequences in base64. Raises ValueError for what is none."""
        try:
            return cls([base64.b64decode(word, validate=True) for word in words])
        except binascii.Error as error:
            raise ValueError(f"not base64: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary itself: the sequences in base64, in their order, between spaces."""
        return {
            "kind": "bpe",
            "vocabulary": " ".join(base64.b64encode(one).decode() for one in self.sequences),
        }


class NumberTokenizer:
    """Ids of an unknown vocabulary, written as numbers: for token files that came without one."""

    def __init__(self, vocab_size: int) -> None:
        if not 1 <= vocab_size <= 2**32:
            raise ValueError("a vocabulary has 1 to 2³² entries")
        self.vocab_size = vocab_size

    def encode(self, text: str) -> np.ndarray:
        """The ids that a text such as "15496 995" names."""
        words = text.split()
        if not words or any(
            not word.isdecimal() or not word.isascii() or int(word) >= self.vocab_size for word in words
        ):
            raise UserError(
                f"this model's vocabulary is unknown: write token ids below {self.vocab_size}, "
                "such as 11 12, for text"
            )
        return np.array([int(word) for word in words], dtype=np.int64)

    def encode_document(self, text: str) -> np.ndarray:
        """As `encode`: nothing is known to end a document."""
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The ids as numbers, a space before each: so the texts of parts make the text of the whole."""
        return "".join(f" {int(index)}" for index in ids)

    def to_dict(self) -> dict[str, Any]:
        """The size."""
        return {"kind": "numbers", "vocab_size": self.vocab_size}


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


class TextStream:
    """Text out of tokens as they come: no character is split, and what a stop text may remove waits."""

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


def ended_line(text: str) -> str:
    """A text that ends in a line break: as it is, or with one more."""
    return text if text.endswith("\n") else text + "\n"


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
    """The code points of a text, (length,) uint32. UserError for half a surrogate pair."""
    try:
        return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    except UnicodeEncodeError as error:
        raise UserError(
            f"position {error.start} holds half a surrogate pair, which is no character"
        ) from error
