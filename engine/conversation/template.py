"""A conversation as tokens, and which of them are targets: the assistant's words and the ends of its turns.

    <|endoftext|> <|user|> 2 + 2? <|end|> <|assistant|> 4 <|end|>
                                                        ^ ^^^^^^^      the targets

The end-of-text token comes first: it is where a sequence of `documents="aligned"` begins.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engine.conversation.messages import Message
from engine.text.roles import ChatTokenizer


class Encoded(NamedTuple):
    """Token ids, and which of them are targets."""

    ids: np.ndarray  # (tokens,) int64
    targets: np.ndarray  # (tokens,) bool


def encode_turn(tokenizer: ChatTokenizer, message: Message) -> Encoded:
    """The tokens of one turn, from its role to its end."""
    content = tokenizer.encode_plain(message.content)
    ids = np.concatenate(([tokenizer.role(message.role)], content, [tokenizer.end_of_turn])).astype(np.int64)
    targets = np.full(len(ids), message.role == "assistant")
    targets[0] = False  # the role is given
    return Encoded(ids, targets)


def encode_conversation(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> Encoded:
    """The tokens of a whole conversation."""
    turns = [encode_turn(tokenizer, message) for message in messages]
    return Encoded(
        np.concatenate([[tokenizer.separator], *(turn.ids for turn in turns)]).astype(np.int64),
        np.concatenate([[False], *(turn.targets for turn in turns)]),
    )


def shortened(
    tokenizer: ChatTokenizer, messages: Sequence[Message], block_size: int
) -> tuple[Encoded | None, bool]:
    """The part of a conversation that fits into `block_size` tokens, and whether it was cut.

    It is cut before a turn of the user, so that it ends with an answer. None if no answer fits.
    """
    end = len(messages)
    while end:
        encoded = encode_conversation(tokenizer, messages[:end])
        if len(encoded.ids) <= block_size and encoded.targets.any():
            return encoded, end < len(messages)
        before = range(end - 1, 0, -1)
        end = next((number for number in before if messages[number].role == "user"), 0)
    return None, True


def encode_question(
    tokenizer: ChatTokenizer, messages: Sequence[Message], room: int
) -> tuple[np.ndarray, int]:
    """The ids of a conversation up to its next answer, and the number of messages that were left out.

    If there are more than `room` ids, the oldest exchanges are left out; a system message stays. The last
    exchange always stays, so it may be longer.
    """
    messages, left_out = list(messages), 0
    first = int(messages[0].role == "system")
    while True:
        ids = np.append(encode_conversation(tokenizer, messages).ids, tokenizer.role("assistant"))
        later = (n for n in range(first + 1, len(messages)) if messages[n].role == "user")
        next_exchange = next(later, None)
        if len(ids) <= room or next_exchange is None:
            return ids, left_out
        left_out += next_exchange - first
        del messages[first:next_exchange]
