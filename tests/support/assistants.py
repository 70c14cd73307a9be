"""Assistants of random weights, and models that write what a test says."""

from collections.abc import Iterator

import pytest
import torch

from engine.conversation import answering
from engine.conversation.answering import Assistant
from engine.text.characters import ByteTokenizer
from engine.text.roles import ChatTokenizer
from model import GPTConfig
from support.models import random_model
from tasks.calculator import answer_to

TOKENIZER = ChatTokenizer(ByteTokenizer())


def make_assistant(block_size: int = 128) -> Assistant:
    """An assistant of random weights whose tokens are bytes."""
    shape = dict(n_layer=2, n_head=2, n_embd=16, block_size=block_size, position="rotary")
    config = GPTConfig(TOKENIZER.vocab_size, separator=TOKENIZER.separator, **shape)  # pyright: ignore
    return Assistant(random_model(config), TOKENIZER, answer_to)


def said(text: str) -> list[int]:
    """The tokens of a turn that ends."""
    return [*text.encode(), TOKENIZER.end_of_turn]


def scripted(monkeypatch: pytest.MonkeyPatch, *turns: list[int]) -> list[str]:
    """Have models write these tokens, a turn at a call, then "!" without end; the prompts they get."""
    left, prompts = list(turns), []

    def stream(
        model: object, ids: torch.Tensor, most: int, *_: object, **__: object
    ) -> Iterator[torch.Tensor]:
        prompts.append(TOKENIZER.decode(ids[0].tolist()))
        tokens = left.pop(0)
        for number in range(most):
            yield torch.tensor([tokens[number] if number < len(tokens) else ord("!")])

    monkeypatch.setattr(answering, "stream", stream)
    return prompts
