"""The faster forms give what the plain ones give: in training, in sampling, and each by itself."""

import dataclasses
import math

import pytest
import torch
from support.models import MODERN, SMALL, random_ids, random_model
from torch.utils.flop_counter import FlopCounterMode

from engine.generation import Sampling, generate
from engine.kernels import (
    BlockedLinear,
    Int8Linear,
    TransposedLinear,
    attention_for_decoding,
    can_block,
    can_quantize,
    drop,
    gelu,
    install,
)
from engine.settings import TrainSettings
from engine.training.optimizer import make_optimizer
from model import GPTConfig, sum_of_losses

WIDE = dataclasses.replace(SMALL, n_embd=128)
GREEDY = Sampling(temperature=0)


@pytest.mark.parametrize("config", [WIDE, MODERN], ids=["gpt2", "modern"])
def test_packed_weights_give_the_same_logits_and_tokens(config: object) -> None:
    model = random_model(config, torch.float32)
    ids = random_ids(3, 20, config)
    with torch.inference_mode():
        plain, tokens = model(ids), generate(model, ids[:, :5], 40, GREEDY)
        assert install(model, inference=True) is model
        assert isinstance(model.blocks[0].mlp.up, TransposedLinear)
        torch.testing.assert_close(model(ids), plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())
        assert torch.equal(generate(model, ids[:, :5], 40, GREEDY), tokens)


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
    plain = model(ids).float()
    install(model, inference=True)
    assert isinstance(model.head, BlockedLinear)
    with torch.inference_mode():
        difference = (model(ids).float() - plain).norm() / plain.norm()
        assert difference < 0.05 and generate(model, ids, 30).shape == (2, 40)


@pytest.mark.skipif(not can_quantize(), reason="this processor has no int8 products")
@pytest.mark.parametrize("bias", [True, False])
def test_int8_products_are_near_and_each_row_is_rounded_by_itself(bias: bool) -> None:
    linear = torch.nn.Linear(256, 320, bias=bias)
    rounded = Int8Linear(linear)
    x = torch.randn(3, 5, 256) * torch.logspace(-3, 3, 5)[:, None]  # rows of very different size
    x[1, 2] = 0
    with torch.inference_mode():
        exact, got = linear(x), rounded(x)
        assert got.shape == exact.shape and torch.equal(got[1, 2], exact[1, 2])
        error = (got - exact).norm(dim=-1) / exact.norm(dim=-1).clamp(min=1e-9)
        assert 0 < error.max() < 0.02
        for row in range(5):
            assert torch.equal(rounded(x[0, row : row + 1]), got[0, row : row + 1])


def test_gelu_in_four_operations_is_gelu() -> None:
    x = torch.cat((torch.randn(1000), torch.linspace(-5, 5, 1000)))
    exact = torch.nn.functional.gelu(x.double())
    assert ((gelu(x) - exact).abs() / exact.abs().clamp(min=1e-6)).max() < 1e-3
    torch.testing.assert_close(gelu(x), exact.float(), rtol=1e-5, atol=1e-6)


def test_other_precisions_keep_their_layers() -> None:
    model = random_model(SMALL, torch.float64)
    assert isinstance(install(model, inference=True).head, torch.nn.Linear)


@pytest.mark.parametrize("config", [SMALL, MODERN], ids=["gpt2", "modern"])
def test_training_with_and_without_them_is_equal_to_rounding(config: GPTConfig) -> None:
    """Ten updates without dropout: the same weights, losses and samples."""
    seed = torch.randint(10**6, ()).item()
    rows = [random_ids(4, 25, config) for _ in range(10)]
    found = []
    for faster in (False, True):
        model = random_model(config)
        model.init_weights(seed)
        if faster:
            install(model)
        optimizer = make_optimizer(model.train(), TrainSettings(learning_rate=1e-3))
        losses = []
        for ids in rows:
            loss = model(ids[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        text = generate(model.eval(), rows[0][:, :4], 30, seed=seed)
        found.append((losses, torch.cat([p.flatten() for p in model.parameters()]), text))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-10)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=1e-9)
    assert torch.equal(found[1][2], found[0][2])


def test_dropout_has_the_same_share_with_other_draws() -> None:
    shares = []
    for faster in (False, True):
        model = random_model(dataclasses.replace(SMALL, dropout=0.3), torch.float32).train()
        if faster:
            install(model)
        x = torch.ones(200, 500)
        layers = (model.dropout, model.blocks[0].mlp.dropout, model.blocks[0].attention.dropout)
        shares.append([(layer(x) == 0).double().mean().item() for layer in layers])
    assert type(model.dropout) is not torch.nn.Dropout and shares[0] != shares[1]
    resting = install(random_model(dataclasses.replace(SMALL, dropout=0.3)))
    assert resting.dropout(x) is x  # a model in evaluation stays so
    assert shares[0] + shares[1] == pytest.approx([0.3] * 6, abs=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_without_whole_logits_is_the_same(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that do not divide the rows, left-out targets, an outer factor: gradients to 1e-12."""
    plain = random_model(dataclasses.replace(SMALL, tied_head=tied))
    chunked = random_model(plain.config)
    chunked.load_state_dict(plain.state_dict())
    ids, targets = random_ids(3, 20), random_ids(3, 20)
    targets[torch.rand(targets.shape) < 0.3] = -100
    expected = plain(ids, targets)
    (expected * 3).backward()
    hold_at_most(7, monkeypatch)
    loss = install(chunked, "sdpa")(ids, targets)
    (loss * 3).backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for mine, theirs in zip(chunked.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-11)


def test_without_gradients_the_chunked_loss_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation makes the products of its logits and no others."""
    hold_at_most(7, monkeypatch)
    model = install(random_model(), "sdpa")
    ids, targets = random_ids(3, 20), random_ids(3, 20)
    counts = []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
            loss = model(ids, targets)
        counts.append(counter.get_total_flops())
        torch.testing.assert_close(
            loss.detach(), sum_of_losses(model.features(ids), model.head, targets).detach()
        )
    assert counts[0] - counts[1] == 2 * 2 * 60 * SMALL.n_embd * SMALL.vocab_size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_chunked_loss_keeps_autocasts_precision(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = install(random_model(SMALL, torch.float32), "sdpa")
    ids, targets = random_ids(3, 20), random_ids(3, 20)
    gradients = []
    for rows in (10**6, 7):
        hold_at_most(rows, monkeypatch)
        model.zero_grad()
        with torch.autocast("cpu", dtype):
            (model(ids, targets) / 60).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[0].norm()


def hold_at_most(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the chunked loss hold so many rows of logits at a time."""
    monkeypatch.setattr("engine.kernels.LARGEST_LOGITS", rows * SMALL.vocab_size)
    monkeypatch.setattr("engine.kernels.LARGEST_CHUNK", rows * SMALL.vocab_size)


@pytest.mark.parametrize("share", [0.1, 0.5, 1e-9, 0.99])
def test_dropout_zeroes_its_share_and_keeps_the_mean(share: float) -> None:
    """Independently, scaled so that the expected value stays, and in the gradient just where in the value."""
    x = torch.ones(301, 1001, dtype=torch.float64, requires_grad=True)
    y = drop(x, share)
    kept = y != 0
    n, spread = x.numel(), math.sqrt(share * (1 - share) * x.numel())
    assert abs((~kept).sum().item() - share * n) < 6 * spread + 1
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - share)), rtol=2e-3, atol=0)
    assert y.mean().item() == pytest.approx(1, abs=8 * spread / n / (1 - share) + 1e-3)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)
    neighbours = (kept[:, 1:] & kept[:, :-1]).double().mean().item()
    assert neighbours == pytest.approx((1 - share) ** 2, abs=0.01)


@pytest.mark.parametrize("before", [True, False])
def test_a_gpu_decodes_without_plans_and_trains_as_before(before: bool) -> None:
    switches = torch.backends.cuda
    usual = switches.cudnn_sdp_enabled()
    switches.enable_cudnn_sdp(before)
    try:
        with attention_for_decoding(torch.device("cuda")):
            assert not switches.cudnn_sdp_enabled() and switches.flash_sdp_enabled()
        assert switches.cudnn_sdp_enabled() == before
        with attention_for_decoding(torch.device("cpu")):
            assert switches.cudnn_sdp_enabled() == before
    finally:
        switches.enable_cudnn_sdp(usual)


def test_a_model_that_only_samples_has_no_dropout_to_call() -> None:
    model = random_model(dataclasses.replace(SMALL, dropout=0.5), torch.float32)
    ids = random_ids(2, 8, SMALL)
    with torch.inference_mode():
        plain = model(ids)
        install(model, inference=True)
        assert not any(isinstance(module, torch.nn.Dropout) for module in model.modules())
        torch.testing.assert_close(model(ids), plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())
