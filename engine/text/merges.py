"""Byte-level byte-pair encoding by a list of merges: a Hugging Face folder's vocab.json and merges.txt.

A text is cut into words as GPT-2 does (Radford et al., 2019), a word's bytes are written as printable
characters, neighbours are merged in the list's order (Sennrich et al., 2016). Ids are the vocabulary's.

    merges [("h", "e"), ("he", "y")]:   h e y  ->  he y  ->  hey
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from engine.errors import UserError

END_OF_TEXT = "<|endoftext|>"
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS_KEPT = 100_000  # encoded words that are remembered


def byte_characters() -> str:
    """The 256 printable characters that stand for the bytes 0 … 255 in GPT-2's files.

    Printable Latin-1 characters stand for themselves, the other bytes in turn for U+0100, U+0101, …
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_CHARACTERS = byte_characters()
BYTES = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


def as_characters(sequence: bytes) -> str:
    """Bytes as GPT-2's files write them: b" a" is "Ġa"."""
    return "".join(BYTE_CHARACTERS[byte] for byte in sequence)


class MergesTokenizer:
    """A byte-pair encoding: vocabulary, list of merges and special tokens, by their spelling in the files."""

    def __init__(
        self, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], special: Mapping[str, int]
    ) -> None:
        import regex

        self.vocabulary, self.merges, self.special = dict(vocabulary), list(merges), dict(special)
        self._check()
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        names = self.vocabulary | self.special
        self._spellings = {index: name for name, index in names.items()}
        self.vocab_size = max(self._spellings) + 1
        self.end_of_text = self.special.get(END_OF_TEXT)
        self._words = regex.compile(WORDS)
        longest_first = sorted(self.special, key=len, reverse=True)
        self._specials = (
            regex.compile("(" + "|".join(map(regex.escape, longest_first)) + ")") if self.special else None
        )
        self._known: dict[str, list[int]] = {}

    def _check(self) -> None:
        """Raise ValueError for files that contradict themselves."""
        names = self.vocabulary | self.special
        if not names or not all(type(index) is int and 0 <= index < 2**32 for index in names.values()):
            raise ValueError("every entry needs an id of 0 or more")
        if len(set(names.values())) < len(names):
            raise ValueError("two entries have the same id")
        if "" in names:
            raise ValueError("an entry is empty")
        made = set(BYTES)
        for left, right in self.merges:
            if left not in made or right not in made:
                raise ValueError(f"the merge {left} {right} comes before the merges that make its parts")
            if left + right not in self.vocabulary:
                raise ValueError(f"the merge {left} {right} makes a token that the vocabulary lacks")
            made.add(left + right)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text; special tokens written in it count as such. UserError for a byte without an id."""
        parts = self._specials.split(text) if self._specials else [text]
        ids: list[int] = []
        for part in parts:
            ids += [self.special[part]] if part in self.special else self._encode_words(part)
        return np.array(ids, dtype=np.int64)

    def encode_document(self, text: str) -> np.ndarray:
        """Ids of a text taken as it is, special tokens too, and the end-of-text token where there is one."""
        end = [] if self.end_of_text is None else [self.end_of_text]
        return np.array(self._encode_words(text) + end, dtype=np.int64)

    def _encode_words(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in self._words.findall(text):
            if word not in self._known:
                if len(self._known) >= WORDS_KEPT:
                    self._known.clear()
                self._known[word] = self._merge(word)
            ids += self._known[word]
        return ids

    def _merge(self, word: str) -> list[int]:
        """Ids of one word: the earliest merge that applies is done everywhere, until none applies."""
        parts = list(as_characters(word.encode("utf-8")))
        while len(parts) > 1:
            pairs = set(pairwise(parts)) & self._ranks.keys()
            if not pairs:
                break
            parts = merge_pair(parts, min(pairs, key=self._ranks.__getitem__))
        for part in parts:
            if part not in self.vocabulary:
                raise UserError(f"the vocabulary has no entry for {part!r}, which the word {word!r} needs")
        return [self.vocabulary[part] for part in parts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are not UTF-8, and ids without an entry, become U+FFFD."""
        pieces = []
        for index in ids:
            name = self._spellings.get(int(index), "\N{REPLACEMENT CHARACTER}")
            is_bytes = name not in self.special and all(character in BYTES for character in name)
            pieces.append(bytes(BYTES[character] for character in name) if is_bytes else name.encode("utf-8"))
        return b"".join(pieces).decode("utf-8", errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """The files' content."""
        merges = [f"{left} {right}" for left, right in self.merges]
        return {"kind": "merges", "vocabulary": self.vocabulary, "merges": merges, "special": self.special}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "MergesTokenizer":
        """What `to_dict` described. Raises ValueError for anything else."""
        vocabulary, merges, special = (description.get(name) for name in ("vocabulary", "merges", "special"))
        if not isinstance(vocabulary, dict) or not isinstance(merges, list) or not isinstance(special, dict):
            raise ValueError("vocabulary and special must be objects, merges a list")
        return cls(vocabulary, [parse_merge(line) for line in merges], special)


def merge_pair(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts with each occurrence of the pair joined, from left to right."""
    merged: list[str] = []
    position = 0
    while position < len(parts):
        if position + 1 < len(parts) and (parts[position], parts[position + 1]) == pair:
            merged.append(parts[position] + parts[position + 1])
            position += 2
        else:
            merged.append(parts[position])
            position += 1
    return merged


def parse_merge(line: Any) -> tuple[str, str]:
    """A pair from "a b", or from ["a", "b"] as newer files write it. Raises ValueError."""
    parts = line.split(" ") if isinstance(line, str) else line
    if (
        not isinstance(parts, list)
        or len(parts) != 2
        or not all(isinstance(part, str) and part for part in parts)
    ):
        raise ValueError(f"{str(line)[:40]!r} is no merge of two parts")
    return parts[0], parts[1]


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges behind a table that lists tokens in the order of their making, as tiktoken keeps it.

    A token of several bytes was made of the two parts that are left when all earlier merges have been done.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            earliest = min(range(len(joined)), key=joined.__getitem__)
            if joined[earliest] >= rank:
                break
            parts[earliest : earliest + 2] = [parts[earliest] + parts[earliest + 1]]
        if len(parts) > 2:
            raise UserError(
                f"the token {token!r} cannot be made by merging two earlier ones, so it cannot be exported"
            )
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges
