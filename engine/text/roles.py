"""Any tokenizer with tokens for the roles of a conversation, which no text can spell.

ChatTokenizer(ByteTokenizer()).encode_plain("<|user|>")   ->  eight bytes; <|user|> itself is the id 258
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from engine.text.byte_pairs import END_OF_TEXT, GPT2Tokenizer, MergesTokenizer, OwnBytePairTokenizer
from engine.text.characters import ByteTokenizer, CharTokenizer

ROLES = ("system", "user", "assistant", "tool")
END_OF_TURN = "<|end|>"
BaseTokenizer = CharTokenizer | ByteTokenizer | GPT2Tokenizer | OwnBytePairTokenizer | MergesTokenizer


class ChatTokenizer:
    """A tokenizer with tokens added after its own: roles, end of a turn, end of text if it has none."""

    def __init__(self, base: BaseTokenizer, added: Sequence[str] | None = None) -> None:
        """`added` names the tokens in the order of their ids. Raises ValueError."""
        needed = [f"<|{role}|>" for role in ROLES] + [END_OF_TURN]
        if base.end_of_text is None:
            needed.insert(0, END_OF_TEXT)
        self.base, self.added = base, list(needed if added is None else added)
        self.ids = {name: base.vocab_size + number for number, name in enumerate(self.added)}
        are_names = all(isinstance(name, str) for name in self.added)
        if not are_names or len(self.ids) != len(self.added) or not self.ids.keys() >= set(needed):
            raise ValueError(f"the added tokens must be {', '.join(needed)}, each once")
        self.vocab_size = base.vocab_size + len(self.added)
        # A conversation begins with the end-of-text token, which ends the one before.
        self.separator = self.ids[END_OF_TEXT] if base.end_of_text is None else base.end_of_text
        self.end_of_text: int | None = self.separator
        self.end_of_turn = self.ids[END_OF_TURN]

    def role(self, name: str) -> int:
        """The id of a role's token."""
        return self.ids[f"<|{name}|>"]

    def is_special(self, index: int) -> bool:
        """Whether an id is an added token or the end of text, which no answer holds."""
        return index >= self.base.vocab_size or index == self.separator

    def encode_plain(self, text: str) -> np.ndarray:
        """Ids of a text in which nothing is a special token, whatever it looks like."""
        if isinstance(self.base, (CharTokenizer, ByteTokenizer)):
            return self.base.encode(text)
        ids = self.base.encode_document(text)
        return ids if self.base.end_of_text is None else ids[:-1]

    def encode(self, text: str) -> np.ndarray:
        """Ids of a prompt, as the base reads it: the roles' names in it are text."""
        return self.base.encode(text)

    def encode_document(self, text: str) -> np.ndarray:
        return np.append(self.encode_plain(text), self.separator)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; an added token is written as its name."""
        size, parts = self.base.vocab_size, []
        for is_added, group in groupby(map(int, ids), lambda index: index >= size):
            found = list(group)
            parts += [self.added[index - size] for index in found] if is_added else [self.base.decode(found)]
        return "".join(parts)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "chat", "base": self.base.to_dict(), "added": self.added}
