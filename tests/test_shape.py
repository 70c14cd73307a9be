"""Counts of parameters and operations against the module and hand calculations."""

import dataclasses

import pytest
import torch
from support.models import SMALL, both

from engine.shape import count_parameters, flops_per_token
from model import GPT, GPTConfig


@both
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied_head", [True, False])
def test_counted_parameters_are_the_modules(config: GPTConfig, bias: bool, tied_head: bool) -> None:
    config = dataclasses.replace(config, bias=bias, tied_head=tied_head)
    with torch.device("meta"):
        model = GPT(config)
    assert sum(count_parameters(config).values()) == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_gpt2_has_its_published_number_of_parameters() -> None:
    assert sum(count_parameters(GPTConfig(bias=True)).values()) == 124_439_808


def test_flops_are_those_of_the_matrix_products() -> None:
    config = dataclasses.replace(SMALL, bias=False)
    width, layers = config.n_embd, config.n_layer
    # Multiply-adds of one token, head included.
    products = 12 * width * width * layers + config.vocab_size * width
    norms = (2 * layers + 1) * width
    attention = 2 * layers * width * config.block_size  # scores and mix, over the whole block
    assert flops_per_token(config) == 6 * (products + norms) + 6 * attention
