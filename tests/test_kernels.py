"""Weights packed for generation give what the plain layers give."""

import dataclasses

import pytest
import torch
from support.models import MODERN, SMALL, random_ids, random_model

from engine.kernels import BlockedLinear, TransposedLinear, can_block, pack_for_generation

WIDE = dataclasses.replace(SMALL, n_embd=128)


@pytest.mark.parametrize("config", [WIDE, MODERN], ids=["gpt2", "modern"])
def test_packed_weights_give_the_same_logits_and_tokens(config: object) -> None:
    model = random_model(config, torch.float32)
    ids = random_ids(3, 20, config)
    with torch.inference_mode():
        plain, tokens = model(ids)[0], model.generate(ids[:, :5], 40, temperature=0)
        assert pack_for_generation(model) is model and isinstance(model.blocks[0].mlp.up, TransposedLinear)
        torch.testing.assert_close(model(ids)[0], plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())
        assert torch.equal(model.generate(ids[:, :5], 40, temperature=0), tokens)


@pytest.mark.skipif(not can_block(), reason="this processor has no bf16 products")
@pytest.mark.parametrize("bias", [True, False])
def test_blocked_products_are_as_good_as_plain_ones_in_bf16(bias: bool) -> None:
    linear = torch.nn.Linear(256, 320, bias=bias)
    half = torch.nn.Linear(256, 320, bias=bias, dtype=torch.bfloat16)
    half.load_state_dict(linear.state_dict())
    blocked = BlockedLinear(half)
    for rows in (1, 5, 64):
        x = torch.randn(2, rows, 256).bfloat16()
        with torch.inference_mode():
            exact = half.double()(x.double())
            errors = [
                (layer(x).double() - exact).norm() / exact.norm() for layer in (blocked, half.bfloat16())
            ]
        assert blocked(x).shape == exact.shape and errors[0] < 1.1 * errors[1] + 1e-3


@pytest.mark.skipif(not can_block(), reason="this processor has no bf16 products")
def test_a_bf16_model_writes_with_blocked_weights() -> None:
    model = random_model(WIDE, torch.bfloat16)
    ids = random_ids(2, 10, WIDE)
    plain = model(ids)[0].float()
    pack_for_generation(model)
    assert isinstance(model.head, BlockedLinear)
    with torch.inference_mode():
        difference = (model(ids)[0].float() - plain).norm() / plain.norm()
        assert difference < 0.05 and model.generate(ids, 30).shape == (2, 40)


def test_other_precisions_keep_their_layers() -> None:
    model = random_model(SMALL, torch.float64)
    assert isinstance(pack_for_generation(model).head, torch.nn.Linear)
