"""Assistants of random weights, and models that write what a test says."""

import threading
from collections.abc import Iterator

import pytest
import torch

from engine.conversation import answering
from engine.conversation.answering import Assistant
from engine.generation import Sampling
from engine.text.characters import ByteTokenizer
from engine.text.roles import ChatTokenizer
from model import GPTConfig
from support.commands import HANG
from support.models import random_model
from tasks.calculator import answer_to

TOKENIZER = ChatTokenizer(ByteTokenizer())
# In a script of tokens: wait, then write a full stop; Ctrl-C.
PAUSE, INTERRUPT = -1, -2


def make_assistant(block_size: int = 128) -> Assistant:
    """An assistant of random weights whose tokens are bytes."""
    shape = dict(n_layer=2, n_head=2, n_embd=16, block_size=block_size, position="rotary")
    config = GPTConfig(TOKENIZER.vocab_size, separator=TOKENIZER.separator, **shape)  # pyright: ignore
    return Assistant(random_model(config), TOKENIZER, answer_to)


def said(text: str) -> list[int]:
    """The tokens of a turn that ends."""
    return [*text.encode(), TOKENIZER.end_of_turn]


class Script:
    """What models write, a turn at a call, and then "!" without end; what they were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.turns: list[list[int]] = []
        self.prompts: list[str] = []
        self.samplings: list[Sampling] = []
        self.go_on = threading.Event()  # set: PAUSE is over
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(answering, "stream", self.stream)

    def stream(
        self, model: object, ids: torch.Tensor, most: int, sampling: Sampling, **_: object
    ) -> Iterator[torch.Tensor]:
        self.prompts.append(TOKENIZER.decode(ids[0].tolist()))
        self.samplings.append(sampling)
        tokens = self.turns.pop(0)
        for number in range(most):
            token = tokens[number] if number < len(tokens) else ord("!")
            if token == PAUSE:
                assert self.go_on.wait(HANG)
                token = ord(".")
            if token == INTERRUPT:
                raise KeyboardInterrupt
            yield torch.tensor([token])


def scripted(monkeypatch: pytest.MonkeyPatch, *turns: list[int]) -> list[str]:
    """Have models write these tokens; the prompts that they get."""
    script = Script(monkeypatch)
    script.turns = list(turns)
    return script.prompts
