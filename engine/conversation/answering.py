"""Answers to conversations: many at once, or one as it comes. A turn that calls a tool gets its result."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.conversation.messages import Message
from engine.conversation.template import encode_question
from engine.errors import UserError
from engine.generation import Sampling, TextStream, stream
from engine.text.roles import ChatTokenizer
from model import GPT, derive_seed

# A tool's reply to an assistant's turn; None if the turn calls no tool.
Tool = Callable[[str], str | None]
MOST_CALLS = 4  # of a tool within one answer
CALL = "<tool>"  # the beginning of a turn that calls a tool


@dataclass(frozen=True)
class FinishedAnswer:
    """An assistant's turns and those of the tool between them, and whether the last one ended by itself."""

    turns: tuple[Message, ...]
    ended: bool

    @property
    def text(self) -> str:
        """The last turn."""
        return self.turns[-1].content


class TurnDecoder:
    """One answer as its tokens come: its text so far, up to the end of the turn or a stop text."""

    def __init__(self, tokenizer: ChatTokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.text, self.ended = "", False
        self.tokens = 0  # that were written, the end of the turn among them
        self._stream = TextStream(tokenizer, stop)

    @property
    def stopped(self) -> bool:
        """Whether the answer takes no more tokens."""
        return self._stream.stopped

    def push(self, token: int) -> str:
        """Add a token; returns the text that can be shown now. Any special token stops the answer."""
        if self.stopped:
            return ""
        self.tokens += 1
        if self.tokenizer.is_special(token):
            self.ended = token == self.tokenizer.end_of_turn
            return self.finish()
        piece = self._stream.push(token)
        self.text += piece
        self.ended = self.stopped  # by a stop text
        return piece

    def finish(self) -> str:
        """Stop the answer; returns the text that was held back."""
        piece = self._stream.finish()
        self.text += piece
        return piece


def pad_left(
    tokenizer: ChatTokenizer, prompts: Sequence[np.ndarray], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Prompts padded on the left to rows of one length (B, T), and the index at which each begins (B,)."""
    texts = [torch.from_numpy(prompt) for prompt in prompts]
    rows = pad_sequence(texts, batch_first=True, padding_value=tokenizer.separator, padding_side="left")
    starts = [rows.shape[1] - len(prompt) for prompt in prompts]
    return rows.to(device), torch.tensor(starts, device=device)


def answer_turns(
    model: GPT,
    tokenizer: ChatTokenizer,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int = 0,
) -> list[TurnDecoder]:
    """The next turn of each conversation, given as ids up to the assistant's role; all at once.

    Shorter prompts are padded on the left, which the model does not see. Row b draws from a stream of its
    own, a function of (seed, b).
    """
    ids, starts = pad_left(tokenizer, prompts, model.token_embedding.weight.device)
    written = [TurnDecoder(tokenizer) for _ in prompts]
    for step in stream(
        model, ids, max_new_tokens, sampling, seed=seed, n_tokens=tokenizer.vocab_size, starts=starts
    ):
        for decoder, token in zip(written, step.tolist(), strict=True):
            decoder.push(token)
        if all(decoder.stopped for decoder in written):
            break
    for decoder in written:
        decoder.finish()
    return written


def answer_all(
    model: GPT,
    tokenizer: ChatTokenizer,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    sampling: Sampling,
    tool: Tool,
    seed: int = 0,
) -> list[FinishedAnswer]:
    """Answers to conversations that end with a question, tools called where the assistant calls them."""
    talks = [list(conversation) for conversation in conversations]
    ended = [False] * len(talks)
    waiting = list(range(len(talks)))
    for _ in range(MOST_CALLS + 1):
        room = model.config.block_size - max_new_tokens
        prompts = [encode_question(tokenizer, talks[number], room)[0] for number in waiting]
        written = answer_turns(model, tokenizer, prompts, max_new_tokens, sampling, seed)
        called = []
        for number, decoder in zip(waiting, written, strict=True):
            talks[number].append(Message("assistant", decoder.text))
            ended[number] = decoder.ended
            result = tool(decoder.text)
            if result is not None:
                talks[number].append(Message("tool", result))
                called.append(number)
        waiting = called
        if not waiting:
            break
    return [
        FinishedAnswer(tuple(talk[len(asked) :]), end)
        for talk, asked, end in zip(talks, conversations, ended, strict=True)
    ]


def may_call(text: str) -> bool:
    """Whether a turn that begins like this may be the call of a tool."""
    begun = text.lstrip()
    return begun.startswith(CALL) or CALL.startswith(begun)


def write_turn(
    model: GPT, decoder: TurnDecoder, prompt: np.ndarray, max_new_tokens: int, sampling: Sampling, seed: int
) -> Iterator[str]:
    """The next turn of a conversation, in pieces as they come; `decoder` keeps the whole."""
    ids = torch.from_numpy(prompt)[None].to(model.token_embedding.weight.device)
    tokens = stream(model, ids, max_new_tokens, sampling, seed=seed, n_tokens=decoder.tokenizer.vocab_size)
    for token in tokens:
        yield decoder.push(int(token))
        if decoder.stopped:
            return
    yield decoder.finish()


@dataclass(frozen=True)
class AnswerOptions:
    """How an answer is drawn."""

    sampling: Sampling
    max_new_tokens: int  # of each turn; half of the block at most
    seed: int
    stop: tuple[str, ...] = ()  # texts before which an answer ends


class Turn(TurnDecoder):
    """A turn of the assistant: iterating over it writes it, piece by piece."""

    def __init__(
        self, model: GPT, tokenizer: ChatTokenizer, prompt: np.ndarray, left_out: int, options: AnswerOptions
    ) -> None:
        super().__init__(tokenizer, options.stop)
        self.prompt = prompt  # ids (T,) that it follows
        self.left_out = left_out  # the number of messages that did not fit
        self.limit = options.max_new_tokens
        self._pieces = write_turn(model, self, prompt, self.limit, options.sampling, options.seed)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def is_cut(self) -> bool:
        """Whether it reached its limit before its end."""
        return self.tokens == self.limit and not self.ended


class TooLong(UserError):
    """The last exchange of a conversation leaves no room for an answer."""


@dataclass(frozen=True)
class Assistant:
    """A model that answers conversations, its tokenizer, and the tool that it may call."""

    model: GPT
    tokenizer: ChatTokenizer
    tool: Tool

    def limit(self, max_new_tokens: int) -> int:
        """The most tokens of a turn: `max_new_tokens`, or half of the block if that is less."""
        return min(max_new_tokens, self.model.config.block_size // 2)

    def prompt(self, messages: list[Message], max_new_tokens: int) -> tuple[np.ndarray, int]:
        """The ids of a conversation, and the number of messages that do not fit.

        These are the oldest exchanges; they are deleted from `messages`. Raises TooLong if even the last one
        does not fit.
        """
        room = self.model.config.block_size - max_new_tokens
        ids, left_out = encode_question(self.tokenizer, messages, room)
        if len(ids) > room:
            raise TooLong(
                f"the question takes {len(ids)} tokens, and the model's {self.model.config.block_size} "
                f"leave room for {room} beside an answer; shorten it"
            )
        first = int(messages[0].role == "system")
        del messages[first : first + left_out]
        return ids, left_out

    def turns(self, messages: list[Message], options: AnswerOptions) -> Iterator[Turn]:
        """The turns of an answer, each to be read before the next is asked for; usually one.

        A turn that calls the tool is followed by another. The turns and the tool's results are added to
        `messages`; the oldest messages are deleted if there is no room. Raises TooLong.
        """
        limit = self.limit(options.max_new_tokens)
        for number in range(MOST_CALLS + 1):
            prompt, left_out = self.prompt(messages, limit)
            seed = derive_seed(options.seed, "turn", number)
            drawn = dataclasses.replace(options, max_new_tokens=limit, seed=seed)
            turn = Turn(self.model, self.tokenizer, prompt, left_out, drawn)
            yield turn
            messages.append(Message("assistant", turn.text))
            result = self.tool(turn.text) if turn.ended else None
            if result is None:
                return
            messages.append(Message("tool", result))
