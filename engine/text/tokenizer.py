"""Text to token ids and back: single characters, raw bytes, GPT-2's byte-pair encoding, or one of your own.

    CharTokenizer.of_text("hello").encode("hole")  ->  [1, 3, 2, 0]      (its characters are "ehlo")

Every tokenizer has a `vocab_size`, the id `end_of_text` of the token that ends a document, or None, and
    encode            ids (int64) of a text; UserError where the vocabulary cannot express it
    encode_document   ids of a document and its end, that token or a line break; marks in it are text
    decode            the text of ids; bytes that are not UTF-8 become U+FFFD
    to_dict           a small description, which travels in data sets and checkpoints
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.errors import UserError
from engine.text.byte_pairs import GPT2Tokenizer, MergesTokenizer, OwnBytePairTokenizer
from engine.text.characters import ByteTokenizer, CharTokenizer, NumberTokenizer
from engine.text.roles import BaseTokenizer, ChatTokenizer

BYTE_ORDER_MARK = "\ufeff"

Tokenizer = BaseTokenizer | NumberTokenizer | ChatTokenizer


def tokenizer_from_dict(description: Any) -> Tokenizer:
    """The tokenizer that `to_dict` described. Raises UserError for anything else."""
    kind = description.get("kind") if isinstance(description, dict) else None
    if kind == "gpt2":
        return GPT2Tokenizer()
    try:
        match description:
            case {"kind": "char", "characters": str(characters)}:
                return CharTokenizer(characters)
            case {"kind": "bytes"}:
                return ByteTokenizer()
            case {"kind": "bpe", "vocabulary": str(vocabulary)}:
                return OwnBytePairTokenizer.from_base64(vocabulary.split())
            case {"kind": "numbers", "vocab_size": int(vocab_size)}:
                return NumberTokenizer(vocab_size)
            case {"kind": "chat", "base": base, "added": list(added)}:
                return with_roles(tokenizer_from_dict(base), added)
            case {"kind": "merges"}:
                return MergesTokenizer.from_dict(description)
    except (ValueError, TypeError) as error:
        what = "table" if kind == "char" else "vocabulary"
        raise UserError(f"the tokenizer's {what} is damaged: {error}") from error
    raise UserError(
        f"unknown tokenizer {str(description)[:80]!r}; known are char, bytes, gpt2, merges, bpe, chat "
        "and numbers"
    )


def with_roles(tokenizer: Tokenizer, added: Sequence[str] | None = None) -> ChatTokenizer:
    """The tokenizer with tokens for roles; unchanged if it has them. Raises ValueError."""
    if isinstance(tokenizer, ChatTokenizer):
        return tokenizer
    if not isinstance(tokenizer, BaseTokenizer):
        raise ValueError("ids of an unknown vocabulary cannot write a conversation")
    return ChatTokenizer(tokenizer, added)


def print_note(text: str) -> None:
    """Print a note for the user to standard error."""
    print(f"note: {text}", file=sys.stderr)


def encode_prompt(
    tokenizer: Tokenizer, text: str | None, say: Callable[[str], None] = print_note
) -> np.ndarray:
    """The ids of a prompt; of None those of a line break, or id 0 if there is none. Raises UserError."""
    if text is None:
        try:
            return tokenizer.encode("\n")
        except UserError:
            return np.zeros(1, dtype=np.int64)
    if text.startswith(BYTE_ORDER_MARK):
        text = text.removeprefix(BYTE_ORDER_MARK)
        say("the prompt begins with a byte-order mark (U+FEFF), which is left out")
    if not text:
        raise UserError("the prompt is empty; leave --start out to begin with a line break")
    # Python keeps a byte of the command line that is not UTF-8 as half a surrogate pair, U+DC80 to U+DCFF.
    position = next((place for place, one in enumerate(text) if "\udc80" <= one <= "\udcff"), None)
    if position is not None:
        raise UserError(
            f"the prompt is not UTF-8 (byte 0x{ord(text[position]) - 0xDC00:02X} at position {position}); "
            "write it into a file in UTF-8 and give --start FILE:prompt.txt"
        )
    return tokenizer.encode(text)
