"""Small models of random weights, and random ids for them."""

import dataclasses

import pytest
import torch

from model import GPT, GPTConfig

SMALL = GPTConfig(
    vocab_size=61, block_size=24, n_layer=3, n_head=4, n_embd=32, bias=True, activation="gelu_tanh"
)


MODERN = dataclasses.replace(
    SMALL,
    bias=False,
    activation="relu2",
    position="rotary",
    qk_norm=True,
    zero_init=True,
    token_shift=True,
    tied_head=False,
)


both = pytest.mark.parametrize("config", [SMALL, MODERN], ids=["gpt2", "modern"])


def random_model(config: GPTConfig = SMALL, dtype: torch.dtype = torch.float64) -> GPT:
    """A model whose every parameter, biases and norms too, is random: none is mistaken for another."""
    model = GPT(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def random_ids(batch: int, length: int, config: GPTConfig = SMALL) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, length))
