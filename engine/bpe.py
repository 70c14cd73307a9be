"""A byte-pair vocabulary of your own (Sennrich et al., 2016; over bytes as in GPT-2, Radford et al., 2019).

    learn_vocabulary(["a text", …], 8192)  ->  OwnBytePairTokenizer, learned by the library `tokenizers`
    ranks_text, tokenizer_of_file              the file that tiktoken's `load_tiktoken_bpe` reads:
                                               a line for each byte sequence, in base64, and its rank

The vocabulary is the 256 bytes, the sequences in the order of their merges, then the end-of-text token.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from engine.errors import UserError
from engine.merges import byte_characters
from engine.tokenizer import (
    LARGEST_VOCABULARY,
    OwnBytePairTokenizer,
    Tokenizer,
    tokenizer_from_dict,
)
from engine.tokenizer_files import read_tokenizer

SMALLEST_VOCABULARY = 257  # the bytes and the end of text


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


def tokenizer_of_file(path: Path) -> Tokenizer:
    """The tokenizer in a file of ranks, of another data set, or of a folder in Hugging Face's layout."""
    if path.is_dir() and (found := read_tokenizer(path)) is not None:
        return found
    path = path / "meta.json" if path.is_dir() else path
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"the tokenizer {path} cannot be read: {reason}") from error
    if path.suffix == ".json":
        try:
            meta = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the tokenizer {path} is not JSON: {error}") from error
        return tokenizer_from_dict(meta.get("tokenizer") if isinstance(meta, dict) else None)
    words = []
    for number, line in enumerate(content.splitlines()):
        word, _, rank = line.partition(" ")
        if rank != str(number):
            raise UserError(f"{path}, line {number + 1}: expected a base64 word and the rank {number}")
        words.append(word)
    try:
        return OwnBytePairTokenizer.from_base64(words)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
