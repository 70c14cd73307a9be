"""The loss of a step is the mean over its targets, whichever micro-batch they are in."""

import math
from pathlib import Path

import pytest
import torch
from support.masking import without_targets
from support.runs import losses, tensors

import train as train_script
from engine.training.metrics import read_metrics
from engine.weights.checkpoint import open_checkpoint

EXACT = ("tiny.py", "--dtype=float64", "--max_iters=6", "--sample_tokens=0", "--dropout=0")


def test_a_step_without_targets_makes_no_update_and_is_counted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with without_targets(set(range(16, 24))):  # the third step's eight sequences
        assert train_script.main([*EXACT, "--out_dir=r", "--eval_interval=1", "--keep_checkpoints=9"]) == 0
    output = capsys.readouterr().out
    assert "step 3: no targets, so no update" in output and "without an update: 1\n" in output
    (line,) = (line for line in read_metrics(place / "r/metrics.jsonl") if line["step"] == 3 and "lr" in line)
    assert line["loss"] is None and line["grad_norm"] == 0
    before, after = (tensors(place / "r", f"step-{step:08d}") for step in (2, 3))
    assert all(torch.equal(before[name], after[name]) for name in before)
    last = open_checkpoint(place / "r", "last")
    assert last.meta["steps_without_targets"] == 1
    assert {int(value) for name, value in last.tensors("optimizer").items() if name[:5] == "step/"} == {5}


def test_a_micro_batch_without_targets_adds_nothing(place: Path) -> None:
    """Step 2 learns from its second micro-batch alone, and its loss is that micro-batch's mean."""
    with without_targets(set(range(8, 12))):
        assert train_script.main([*EXACT, "--out_dir=r", "--max_iters=2"]) == 0
    found = losses(place / "r")
    assert all(math.isfinite(loss) for loss in found.values())
    with without_targets(set(range(8, 16))):
        assert train_script.main([*EXACT, "--out_dir=nothing", "--max_iters=2"]) == 0
    assert losses(place / "nothing") == {1: found[1], 2: None}


def test_the_gradient_is_that_of_the_mean_over_all_targets(place: Path) -> None:
    """Three of eight sequences count: the same weights as from one micro-batch of all eight."""
    numbers = {0, 1, 2, 3, 4}
    with without_targets(numbers):
        assert train_script.main([*EXACT, "--out_dir=parts", "--max_iters=1"]) == 0
        whole = ("--batch_size=8", "--gradient_accumulation_steps=1")
        assert train_script.main([*EXACT, "--out_dir=whole", "--max_iters=1", *whole]) == 0
    parts, whole = tensors(place / "parts"), tensors(place / "whole")
    for name in parts:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-12)
