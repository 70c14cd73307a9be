"""Answers to conversations: many at once, or one as it comes. A turn that calls a tool gets its result."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.conversation.messages import Message
from engine.conversation.template import encode_question
from engine.generation import Sampling, TextStream, stream
from engine.text.roles import ChatTokenizer
from model import GPT

# What a tool says to an assistant's turn; None: the turn is an answer, and calls none.
Tool = Callable[[str], str | None]
MOST_CALLS = 4  # of a tool within one answer


@dataclass(frozen=True)
class Answer:
    """An assistant's turns and those of the tool between them, and whether the last one ended by itself."""

    turns: tuple[Message, ...]
    ended: bool

    @property
    def text(self) -> str:
        """The last turn."""
        return self.turns[-1].content


class Writing:
    """One answer under way: its text as tokens come, until the end of the turn."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self.text, self.stopped, self.ended = "", False, False
        self._stream = TextStream(tokenizer)

    def push(self, token: int) -> str:
        """The text that can be shown now that this token has come; any special token stops the answer."""
        if self.stopped:
            return ""
        if self.tokenizer.is_special(token):
            self.ended = token == self.tokenizer.end_of_turn
            return self.finish()
        return self._add(self._stream.push(token))

    def finish(self) -> str:
        """What was held back, now that no more tokens come."""
        if self.stopped:
            return ""
        self.stopped = True
        return self._add(self._stream.finish())

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece


def answer_turns(
    model: GPT,
    tokenizer: ChatTokenizer,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int = 0,
) -> list[Writing]:
    """The next turn of each conversation, given as ids up to the assistant's role; all at once.

    Shorter prompts are padded on the left, which the model does not see. Row b draws from a stream of its
    own, a function of (seed, b).
    """
    longest = max(map(len, prompts))
    starts = torch.tensor([longest - len(prompt) for prompt in prompts])
    rows = [
        np.pad(prompt, (longest - len(prompt), 0), constant_values=tokenizer.separator) for prompt in prompts
    ]
    device = model.token_embedding.weight.device
    ids = torch.from_numpy(np.stack(rows)).to(device)
    written = [Writing(tokenizer) for _ in prompts]
    for step in stream(
        model,
        ids,
        max_new_tokens,
        sampling,
        seed=seed,
        n_tokens=tokenizer.vocab_size,
        starts=starts.to(device),
    ):
        for writing, token in zip(written, step.tolist(), strict=True):
            writing.push(token)
        if all(writing.stopped for writing in written):
            break
    for writing in written:
        writing.finish()
    return written


def answer_all(
    model: GPT,
    tokenizer: ChatTokenizer,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    sampling: Sampling,
    tool: Tool,
    seed: int = 0,
) -> list[Answer]:
    """Answers to conversations that end with a question, tools called where the assistant calls them."""
    talks = [list(conversation) for conversation in conversations]
    ended = [False] * len(talks)
    waiting = list(range(len(talks)))
    for _ in range(MOST_CALLS + 1):
        room = model.config.block_size - max_new_tokens
        prompts = [encode_question(tokenizer, talks[number], room)[0] for number in waiting]
        written = answer_turns(model, tokenizer, prompts, max_new_tokens, sampling, seed)
        called = []
        for number, writing in zip(waiting, written, strict=True):
            talks[number].append(Message("assistant", writing.text))
            ended[number] = writing.ended
            result = tool(writing.text)
            if result is not None:
                talks[number].append(Message("tool", result))
                called.append(number)
        waiting = called
        if not waiting:
            break
    return [
        Answer(tuple(talk[len(asked) :]), end)
        for talk, asked, end in zip(talks, conversations, ended, strict=True)
    ]


def write_turn(
    model: GPT, writing: Writing, prompt: np.ndarray, max_new_tokens: int, sampling: Sampling, seed: int
) -> Iterator[str]:
    """The next turn of a conversation, in pieces as they come; `writing` keeps the whole."""
    ids = torch.from_numpy(prompt)[None].to(model.token_embedding.weight.device)
    tokens = stream(model, ids, max_new_tokens, sampling, seed=seed, n_tokens=writing.tokenizer.vocab_size)
    for token in tokens:
        yield writing.push(int(token))
        if writing.stopped:
            return
    yield writing.finish()
