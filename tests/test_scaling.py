"""The calculator of docs/scaling.md against hand calculations."""

from pathlib import Path

import pytest
from conftest import ROOT

from engine.memory import Setup, state_bytes
from engine.scaling import (
    MODELS,
    Assumptions,
    all_reduce_bytes,
    gather_bytes,
    limits,
    plan,
    rows,
    tokens_that_hide_gathering,
    widest_block,
)
from model import count_parameters

ASSUMED = Assumptions()


def parameters(name: str) -> int:
    return sum(count_parameters(MODELS[name][0]).values())


def test_the_models_have_the_parameters_of_their_names() -> None:
    assert parameters("124M") == pytest.approx(124e6, rel=0.01)
    assert parameters("1.5B") == pytest.approx(1.55e9, rel=0.01)
    assert parameters("175B") == pytest.approx(175e9, rel=0.01)


def test_a_ring_sends_what_its_steps_add_up_to() -> None:
    """N - 1 steps of scattering sums and N - 1 of gathering, a chunk of 1 / N each."""
    for gpus in (2, 8, 1024):
        assert all_reduce_bytes(1e9, gpus) == pytest.approx(sum(1e9 / gpus for _ in range(2 * (gpus - 1))))
        assert gather_bytes(1e9, gpus) == pytest.approx(sum(1e9 / gpus for _ in range(gpus - 1)))


def test_ddp_of_124m_on_8_gpus_sends_870_megabytes() -> None:
    """124.4 M gradients of 4 bytes, 7 / 4 times."""
    row = plan(*MODELS["124M"], 8, "ddp", ASSUMED)
    assert row.sent == pytest.approx(124.4e6 * 4 * 7 / 4, rel=0.01)
    operations = 6 * 124e6 + 12 * 12 * 768 * 1024  # a token, forward and backward
    assert row.compute == pytest.approx(2**19 / 8 * operations / (0.4 * 989e12), rel=0.01)
    assert row.micro_batch * row.micro_steps * 8 == 512 and 0.9 < row.efficiency <= 1


def test_fsdp_gathers_twice_a_micro_batch_and_scatters_once_a_step() -> None:
    row = plan(*MODELS["1.5B"], 8, "fsdp", ASSUMED)
    assert row.sent == pytest.approx(7 / 8 * parameters("1.5B") * (2 * 2 * row.micro_steps + 4))


def test_weights_gradients_and_adamw_of_175b_are_16_bytes_a_parameter_over_the_gpus() -> None:
    for gpus in (8, 64, 1024):
        state = state_bytes(MODELS["175B"][0], Setup(1, processes=gpus, parallel="fsdp"))
        assert sum(state) == pytest.approx(16 * 174.6e9 / gpus, rel=0.01)
    whole = state_bytes(MODELS["175B"][0], Setup(1, processes=1024, parallel="ddp"))
    assert sum(whole) == pytest.approx(16 * 174.6e9, rel=0.01)


def test_what_does_not_fit_says_so() -> None:
    assert "less than one" in plan(*MODELS["124M"], 1024, "ddp", ASSUMED).remark
    for gpus in (8, 64, 1024):
        assert plan(*MODELS["175B"], gpus, "ddp", ASSUMED).efficiency is None
    assert plan(*MODELS["175B"], 1024, "fsdp", ASSUMED).memory < 0.9 * 80e9


def test_where_sharding_by_data_ends() -> None:
    """2 · 2 bytes at 320 GB/s last as long as 6 operations a token at 0.4 · 989 TFLOP/s for 824 tokens."""
    assert tokens_that_hide_gathering(ASSUMED) == pytest.approx(824, abs=1)
    width = widest_block(ASSUMED)
    assert 2 * 12 * width**2 * (2 + 4) == pytest.approx(72e9, rel=1e-3)


def test_a_slower_network_costs_efficiency() -> None:
    slow = Assumptions(between_nodes=12.5)
    for mode in ("ddp", "fsdp"):
        quick, late = (plan(*MODELS["1.5B"], 64, mode, assumed) for assumed in (ASSUMED, slow))
        assert late.communication > quick.communication and late.efficiency < quick.efficiency


def test_the_page_holds_what_the_calculator_prints() -> None:
    page = Path(ROOT, "docs/scaling.md").read_text(encoding="utf-8")
    for line in (*rows(ASSUMED), *limits(ASSUMED)):
        assert line in page, line
