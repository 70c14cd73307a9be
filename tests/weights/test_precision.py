"""A model is made ready in the fastest precision that hardly changes what it says."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from support.models import MODERN, SMALL, both, random_ids, random_model
from support.random_models import save_run
from torch.nn import functional as F

import eval as score
import sample
from engine import kernels
from engine.errors import UserError
from engine.kernels import Int8Linear, TransposedLinear, can_quantize
from engine.text.characters import ByteTokenizer
from engine.weights import precision
from engine.weights.precision import divergence, log_probabilities, ready_to_generate
from engine.weights.pretrained import Pretrained
from model import GPT, GPTConfig

SMALL_BYTES = dataclasses.replace(SMALL, vocab_size=ByteTokenizer().vocab_size)
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
    monkeypatch.setattr(precision, "SMALLEST_TO_ROUND", 0)
    found, ids = pretrained(config), random_ids(2, 12, config)
    exact, remark = ready(found, "float32")
    assert remark is None
    model, remark = ready(found)
    assert isinstance(model.blocks[0].mlp.up, Int8Linear) and isinstance(model.head, Int8Linear)
    assert remark is not None and "weights in int8" in remark and "--dtype=float32" in remark
    with torch.inference_mode():
        expected, got = exact(ids).log_softmax(-1), model(ids).log_softmax(-1)
    distance = F.kl_div(got, expected, log_target=True, reduction="none").sum(-1).mean()
    assert 0 < distance < 2e-3
    assert divergence(expected, got) == pytest.approx(distance.item(), rel=1e-4)


@needs_int8
def test_what_would_change_too_much_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "SMALLEST_TO_ROUND", 0)
    monkeypatch.setattr(precision, "LARGEST_DIVERGENCE", 0.0)
    model, remark = ready(pretrained(SMALL))
    assert remark is None and isinstance(model.head, TransposedLinear)


@pytest.mark.skipif(not kernels.can_block(), reason="this processor has no bf16 products")
def test_without_int8_a_large_model_gets_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "SMALLEST_TO_ROUND", 0)
    monkeypatch.setattr(kernels, "can_quantize", lambda: False)
    model, remark = ready(pretrained(MODERN))
    assert model.token_embedding.weight.dtype == torch.bfloat16 and "weights in bfloat16" in str(remark)


def test_int8_where_there_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "can_quantize", lambda: False)
    with pytest.raises(UserError, match="int8 needs a CPU"):
        ready(pretrained(SMALL), "int8")


def test_different_models_diverge_and_equal_ones_do_not() -> None:
    expected = log_probabilities(random_model(SMALL))
    assert divergence(expected, expected) == 0
    assert divergence(expected, log_probabilities(random_model(SMALL))) > 0.1


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.skipif(not kernels.can_block(), reason="this processor has no bf16 products")
def test_the_cache_is_in_bf16_where_attention_is_fast(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cpu_supports", lambda feature: amx and feature == "amx_tile")
    found = pretrained(MODERN)
    exact, rounded = ready(found, "float32")[0], ready(found, "bfloat16")[0]
    assert kernels.cache_dtype(exact) == torch.float32
    assert kernels.cache_dtype(rounded) == (torch.bfloat16 if amx else torch.float32)
    assert 0 < divergence(log_probabilities(exact), log_probabilities(rounded)) < 2e-3


@needs_int8
def test_sample_says_that_it_rounds_and_eval_that_it_costs_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "SMALLEST_TO_ROUND", 0)
    monkeypatch.chdir(tmp_path)
    save_run(SMALL_BYTES, ByteTokenizer(), tmp_path / "out/bytes", 1)
    sample.main(["--device=cpu", "--start=Who", "--max_new_tokens=20", "--num_samples=2"])
    printed = capsys.readouterr()
    assert printed.out.startswith("Who") and "note: weights in int8 for speed" in printed.err
    sample.main(["--device=cpu", "--start=Who", "--max_new_tokens=20", "--dtype=float32"])
    assert "note" not in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("To be, or not to be. " * 20, encoding="utf-8")
    losses = []
    for dtype in ("float32", "int8"):
        score.main(["--text=text.txt", "--device=cpu", f"--dtype={dtype}", "--output=figures.json"])
        losses.append(json.loads((tmp_path / "figures.json").read_text())["loss"]["loss"]["value"])
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.01
