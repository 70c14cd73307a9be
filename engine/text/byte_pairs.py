"""Byte-pair encodings (Sennrich et al., 2016) over bytes, as in GPT-2 (Radford et al., 2019).

GPT-2's own and those learned from your text have their ids in the order of their merges: tiktoken runs them.
Those of Hugging Face folders have ids in any order, and added tokens: `tokenizers` runs them.
"""

import base64
import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any

import numpy as np
import tiktoken
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as LibraryTokenizer

from engine.errors import UserError
from engine.text.characters import to_bytes
from engine.text.gpt2_vocabulary import ensure_gpt2_vocabulary

END_OF_TEXT = "<|endoftext|>"
# How GPT-2 cuts a text before merging: contractions, words, numbers, signs, space.
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
SMALLEST_VOCABULARY = 257  # the bytes and the end of text
LARGEST_VOCABULARY = 2**20
LARGEST_ID = 2**24  # of other programs' vocabularies; the library walks through all ids below
LONGEST_WORD = 256  # bytes; longer ones are cut before learning, whose time grows with the square of a word


def byte_characters() -> str:
    """The 256 characters that stand for the bytes 0 … 255 in GPT-2's files.

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


def from_characters(word: str) -> bytes:
    """The bytes of "Ġa"; a word with any other character is its UTF-8."""
    try:
        return bytes([BYTES[character] for character in word])
    except KeyError:
        return word.encode()


class BytePairTokenizer:
    """A byte-pair encoding through tiktoken."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.encoding = encoding
        self.vocab_size = encoding.n_vocab
        self.end_of_text: int | None = encoding.eot_token

    def encode(self, text: str, special: AbstractSet[str] = frozenset([END_OF_TEXT])) -> np.ndarray:
        to_bytes(text)  # tiktoken's own error for half a surrogate pair is no UserError
        ids = self.encoding.encode_to_numpy(text, allowed_special=special, disallowed_special=())
        return ids.astype(np.int64)

    def encode_document(self, text: str) -> np.ndarray:
        return np.append(self.encode(text, special=frozenset()), self.encoding.eot_token)

    def decode(self, ids: Sequence[int]) -> str:
        return self.encoding.decode(list(ids))


class GPT2Tokenizer(BytePairTokenizer):
    """GPT-2's byte-pair encoding: 50,257 entries. Raises UserError if its files cannot be reached."""

    def __init__(self) -> None:
        ensure_gpt2_vocabulary()
        super().__init__(tiktoken.get_encoding("gpt2"))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "gpt2"}


class OwnBytePairTokenizer(BytePairTokenizer):
    """Your own byte-pair encoding: bytes, merges in the order of their making, the end of text."""

    def __init__(self, sequences: Sequence[bytes]) -> None:
        ranks = {sequence: rank for rank, sequence in enumerate(sequences)}
        if len(ranks) != len(sequences) or len(ranks) >= LARGEST_VOCABULARY or b"" in ranks:
            raise ValueError(f"a byte-pair vocabulary holds up to {LARGEST_VOCABULARY} different sequences")
        if any(bytes([byte]) not in ranks for byte in range(256)):
            raise ValueError("a byte-pair vocabulary holds every single byte")
        self.sequences = list(sequences)
        special = {END_OF_TEXT: len(ranks)}
        super().__init__(
            tiktoken.Encoding("own", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special)
        )

    @classmethod
    def from_base64(cls, words: Sequence[str]) -> "OwnBytePairTokenizer":
        """The tokenizer of sequences in base64, in the order of their ids. Raises ValueError."""
        return cls([base64.b64decode(word, validate=True) for word in words])

    def to_dict(self) -> dict[str, Any]:
        words = (base64.b64encode(sequence).decode() for sequence in self.sequences)
        return {"kind": "bpe", "vocabulary": " ".join(words)}


def learn_vocabulary(texts: Iterable[str], vocab_size: int) -> OwnBytePairTokenizer:
    """Learn a vocabulary of `vocab_size` entries, or fewer if no pair comes twice. Raises UserError."""
    if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise UserError(
            f"--vocab_size is {vocab_size}; it must be {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY}"
        )
    learner = LibraryTokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.FixedLength(LONGEST_WORD)]
    )
    alphabet = list(BYTE_CHARACTERS)
    options = {"vocab_size": vocab_size - 1, "min_frequency": 2, "initial_alphabet": alphabet}
    learner.train_from_iterator(texts, trainers.BpeTrainer(**options, show_progress=False))
    ranks = learner.get_vocab()
    words = alphabet + sorted((word for word in ranks if len(word) > 1), key=ranks.__getitem__)
    return OwnBytePairTokenizer([from_characters(word) for word in words])


def ranks_text(tokenizer: OwnBytePairTokenizer) -> bytes:
    """The content of a file that tiktoken can load."""
    words = tokenizer.to_dict()["vocabulary"].split()
    return "".join(f"{word} {rank}\n" for rank, word in enumerate(words)).encode("ascii")


class MergesTokenizer:
    """A byte-level byte-pair encoding by vocabulary, merges and added tokens, as files spell them.

    Added tokens have the ids of the vocabulary, or follow it. `end` is the one that ends a document.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        added: Sequence[AddedToken],
        end: str = END_OF_TEXT,
    ) -> None:
        check_merges(vocabulary, merges)
        self.merges, self.added, self.end = list(merges), list(added), end
        self.library = LibraryTokenizer(models.BPE(dict(vocabulary), self.merges))
        self.library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.library.decoder = decoders.ByteLevel()
        self.library.add_tokens(self.added)
        entries = self.library.get_vocab().items()
        self.vocabulary = dict(sorted(entries, key=lambda entry: entry[1]))
        names = {token.content for token in self.added}
        self._pieces = {
            index: name.encode() if name in names else from_characters(name) for name, index in entries
        }
        if len(self._pieces) < len(self.vocabulary):
            raise ValueError("two entries have the same id")
        self.vocab_size = max(self._pieces) + 1
        self.end_of_text: int | None = self.vocabulary[end] if end in names else None
        self._missing = {byte for character, byte in BYTES.items() if character not in self.vocabulary}
        self._description: dict[str, Any] | None = None

    def encode(self, text: str) -> np.ndarray:
        return self._ids(self.library, text)

    def encode_document(self, text: str) -> np.ndarray:
        ids = self._ids(self._library_for_documents, text)
        return ids if self.end_of_text is None else np.append(ids, self.end_of_text)

    @cached_property
    def _library_for_documents(self) -> LibraryTokenizer:
        library = copy.deepcopy(self.library)
        library.encode_special_tokens = True
        return library

    def _ids(self, library: LibraryTokenizer, text: str) -> np.ndarray:
        content = to_bytes(text)
        ids = library.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if self._missing.intersection(content):  # the library leaves out what has no entry
            lost = self._missing & (Counter(content) - Counter(self._to_bytes(ids))).keys()
            if lost:
                character = BYTE_CHARACTERS[next(byte for byte in content if byte in lost)]
                raise UserError(f"the vocabulary has no entry for {character!r}, which the text needs")
        return np.array(ids, dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are not UTF-8, and ids without an entry, become U+FFFD."""
        return self._to_bytes(ids).decode(errors="replace")

    def _to_bytes(self, ids: Sequence[int]) -> bytes:
        unknown = "\N{REPLACEMENT CHARACTER}".encode()
        return b"".join(self._pieces.get(int(index), unknown) for index in ids)

    def to_dict(self) -> dict[str, Any]:
        """The description that it came from, or the files' content."""
        return self._description or {
            "kind": "merges",
            "vocabulary": self.vocabulary,
            "merges": [f"{left} {right}" for left, right in self.merges],
            "added_tokens": [token.__getstate__() for token in self.added],
            "end": self.end,
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "MergesTokenizer":
        """What `to_dict` described, now or in earlier versions. Raises ValueError or TypeError."""
        vocabulary, merges = description.get("vocabulary"), description.get("merges")
        special, listed = description.get("special", {}), description.get("added_tokens", [])
        if not isinstance(vocabulary, dict) or not isinstance(merges, list) or not isinstance(special, dict):
            raise ValueError("vocabulary and special must be objects, merges a list")
        added = [AddedToken(name, special=True) for name in special] + [AddedToken(**one) for one in listed]
        pairs = [parse_merge(line) for line in merges]
        found = cls(vocabulary | special, pairs, added, description.get("end", END_OF_TEXT))
        found._description = dict(description)
        return found


def check_merges(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
    """Raise ValueError for files that contradict themselves."""
    ids = vocabulary.values()
    if not ids or not all(type(index) is int and 0 <= index < LARGEST_ID for index in ids):
        raise ValueError(f"every entry needs an id of 0 or more, below {LARGEST_ID}")
    if "" in vocabulary:
        raise ValueError("an entry is empty")
    "".join(vocabulary).encode()  # half a surrogate pair is a ValueError
    if not BYTES.keys() >= set("".join(left + right for left, right in merges)):
        raise ValueError("a merge is not one of bytes")
    for left, right in merges:
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise ValueError(f"the merge {left} {right} needs an entry that the vocabulary lacks")


def parse_merge(line: Any) -> tuple[str, str]:
    """A pair from "a b", or from ["a", "b"] as newer files write it. Raises ValueError."""
    match line.split(" ") if isinstance(line, str) else line:
        case [str(left), str(right)] if left and right:
            return left, right
    raise ValueError(f"{str(line)[:40]!r} is no merge of two parts")
