"""Byte-pair encodings through tiktoken: GPT-2's, or a vocabulary learned from your own text.

Sennrich et al., 2016; over bytes as in GPT-2 (Radford et al., 2019). A vocabulary of your own is the 256
bytes, the sequences in the order of their merges, then the end-of-text token.
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from engine.errors import UserError
from engine.text.merges import byte_characters

SMALLEST_VOCABULARY = 257  # the bytes and the end of text


END_OF_TEXT = "<|endoftext|>"
# How GPT-2 (Radford et al., 2019) cuts a text before merging: contractions, words, numbers, signs, space.
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
LARGEST_VOCABULARY = 2**20


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

        from engine.text.gpt2_vocabulary import ensure_gpt2_vocabulary

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


def learn_vocabulary(texts: Iterable[str], vocab_size: int) -> OwnBytePairTokenizer:
    """Learn a vocabulary of so many entries, fewer where the texts have no pair twice. Raises UserError."""
    if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise UserError(
            f"--vocab_size is {vocab_size}; it must be {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY}"
        )
    try:
        from tokenizers import Tokenizer as Learner
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel
        from tokenizers.trainers import BpeTrainer
    except ImportError as error:
        raise UserError(
            "learning a vocabulary needs the package tokenizers: pip install tokenizers"
        ) from error
    learner = Learner(BPE())
    learner.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = BpeTrainer(
        vocab_size=vocab_size - 1, min_frequency=2, show_progress=False, initial_alphabet=ByteLevel.alphabet()
    )
    learner.train_from_iterator(texts, trainer)
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    ranks = learner.get_vocab()
    learned = [bytes(byte_of[character] for character in word) for word in sorted(ranks, key=ranks.get)]
    return OwnBytePairTokenizer(
        [bytes([byte]) for byte in range(256)] + [word for word in learned if len(word) > 1]
    )


def ranks_text(tokenizer: OwnBytePairTokenizer) -> bytes:
    """The content of a file that tiktoken can load."""
    words = tokenizer.to_dict()["vocabulary"].split()
    return "".join(f"{word} {rank}\n" for rank, word in enumerate(words)).encode("ascii")
