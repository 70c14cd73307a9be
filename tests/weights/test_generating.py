"""A model is made ready in the fastest precision that hardly changes what it says."""

import pytest
import torch
from support.models import MODERN, SMALL, both, random_ids, random_model

from engine import kernels
from engine.errors import UserError
from engine.kernels import Int8Linear, TransposedLinear, can_quantize
from engine.weights import generating
from engine.weights.generating import divergence, ready_to_generate
from engine.weights.pretrained import Pretrained
from model import GPT, GPTConfig

needs_int8 = pytest.mark.skipif(not can_quantize(), reason="this processor has no int8 products")


def pretrained(config: GPTConfig) -> Pretrained:
    """Weights as they are at the start of a training run."""
    model = GPT(config)
    model.init_weights(1)
    return Pretrained(config, model.state_dict(), None, "here")


def ready(found: Pretrained, dtype: str = "auto") -> tuple[GPT, str | None]:
    return ready_to_generate(found, "cpu", dtype, torch.get_num_threads())


def test_a_small_model_stays_exact() -> None:
    model, remark = ready(pretrained(SMALL))
    assert remark is None and isinstance(model.head, TransposedLinear)


@needs_int8
@both
def test_a_large_model_gets_int8_unless_float32_is_asked_for(
    config: GPTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generating, "SMALLEST_TO_ROUND", 0)
    found, ids = pretrained(config), random_ids(2, 12, config)
    exact, remark = ready(found, "float32")
    assert remark is None
    model, remark = ready(found)
    assert isinstance(model.blocks[0].mlp.up, Int8Linear) and isinstance(model.head, Int8Linear)
    assert remark is not None and "weights in int8" in remark and "--dtype=float32" in remark
    with torch.inference_mode():
        expected, got = exact(ids).log_softmax(-1), model(ids).log_softmax(-1)
    # The same by hand: sum p log(p / q) over the vocabulary, on other tokens.
    assert 0 < (expected.exp() * (expected - got)).sum(-1).mean() < 2e-3


@needs_int8
def test_what_would_change_too_much_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "SMALLEST_TO_ROUND", 0)
    monkeypatch.setattr(generating, "LARGEST_DIVERGENCE", 0.0)
    model, remark = ready(pretrained(SMALL))
    assert remark is None and isinstance(model.head, TransposedLinear)


@pytest.mark.skipif(not kernels.can_block(), reason="this processor has no bf16 products")
def test_without_int8_a_large_model_gets_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "SMALLEST_TO_ROUND", 0)
    monkeypatch.setattr(kernels, "can_quantize", lambda: False)
    model, remark = ready(pretrained(MODERN))
    assert model.token_embedding.weight.dtype == torch.bfloat16 and "weights in bfloat16" in str(remark)


def test_int8_where_there_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "can_quantize", lambda: False)
    with pytest.raises(UserError, match="int8 is for CPUs"):
        ready(pretrained(SMALL), "int8")


def test_the_divergence_of_a_model_from_itself_is_nought() -> None:
    model = random_model(SMALL)
    assert divergence(model, model) == 0
    assert divergence(model, random_model(SMALL)) > 0.1
