"""bench.py: each measurement on something small, the machine's limits left out."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import UserError
from engine.kernels import can_quantize
from engine.measure import parallel_speed, sampling_speed, timing, training_speed
from engine.measure.parallel_speed import hidden_share, measure_network, measure_scaling
from engine.measure.sampling_speed import measure_sampling
from engine.measure.training_speed import measure_training
from engine.measure.training_step import step_function, trial_run, trial_settings
from engine.training.batches import Batch
from model import GPTConfig
from train import update

pytestmark = pytest.mark.slow(reason="real measurements, shortened")

CPU = torch.device("cpu")


@pytest.fixture
def options(place: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """Options for tiny.py on the CPU, on a machine whose limits are known already."""
    limits = {"fp32": 1e12, "bf16": 2e12, "bandwidth": 1e10}
    for module in (training_speed, sampling_speed):
        monkeypatch.setattr(module, "machine_limits", lambda device: limits)
    return Namespace(device="cpu", config="tiny.py", rounds=1, processes=2, largest=1, trace="trace.json")


def test_the_step_that_is_measured_is_that_of_train_py(options: Namespace) -> None:
    settings = trial_settings(options.config, CPU)
    run = trial_run(settings, CPU)
    calls = []

    def watched(run: Any, forward: Any, batch: Batch, step: int) -> Any:
        micro_batches = list(batch.micro_batches)
        calls.append((step, batch.targets, [ids.shape for ids, _ in micro_batches]))
        return update(run, forward, Batch(iter(micro_batches), batch.targets), step)

    before = {name: value.clone() for name, value in run.model.named_parameters()}
    step = step_function(watched, run, run.model)
    step(), step()
    assert calls == [(number, 256, [(4, 32), (4, 32)]) for number in (0, 1)]
    assert all(not torch.equal(value, before[name]) for name, value in run.model.named_parameters())


def test_ours_and_the_baseline_take_turns(options: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    measure_training(update, options)
    ours, baseline, ratio = capsys.readouterr().out.splitlines()
    for line, kind in ((ours, "ours"), (baseline, "baseline")):
        assert re.fullmatch(rf"{kind} +[\d.]+ \(.*\) ms a step, .*% of the fp32 peak", line), line
    assert re.fullmatch(r"ours takes [\d.e+]+ \(.*\) % of the baseline's time", ratio)


def test_sampling_is_measured_with_the_cache_and_without(
    options: Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = GPTConfig(vocab_size=11, block_size=16, n_layer=1, n_head=1, n_embd=8, bias=False)
    types = ("float32", "bfloat16", "int8")
    cases = (("tiny", tiny, types[:1], 1, 20, 2), ("tiny", tiny, types, 12, 4, 1))
    monkeypatch.setattr(sampling_speed, "CASES", cases)
    measure_sampling(options)
    lines = capsys.readouterr().out.splitlines()
    measured = [line.strip().partition(":")[0] for line in lines]
    last = types if can_quantize() else types[:2]
    plain = "no cache"
    theirs = "transformers in bfloat16"
    begins = [f"tiny, {batch} at once, tokens per second" for batch in (2, 1)]
    assert measured == [begins[0], types[0], plain, begins[1], *last, plain, theirs]
    times = rf"[\d.]+ times as fast as {plain}, [\d.]+ times as fast as {theirs}"
    line = rf" +float32: [\d.e+]+ \(.*\), {times}; reads its weights at \d+% of .*"
    assert re.fullmatch(line, lines[4]), lines[4]


def test_scaling_compares_numbers_of_processes(
    options: Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What one of several processes prints, and what is made of it: two take 0.8 s, one takes 1 s."""
    with monkeypatch.context() as inside:
        inside.setenv("LOCAL_RANK", "0")
        measure_scaling(update, options)
    assert float(capsys.readouterr().out) > 0
    seconds = {1: "1.0", 2: "0.8"}
    monkeypatch.setattr(
        parallel_speed, "torchrun", lambda options, processes, *_: ["other lines", seconds[processes]]
    )
    measure_scaling(update, options)
    lines = capsys.readouterr().out.splitlines()
    assert "1 processes: 256 (256 to 256) tokens/s, efficiency 100" in lines[1]
    assert "2 processes: 320 (320 to 320) tokens/s, efficiency 125" in lines[2]


def test_one_process_has_no_network_to_measure(options: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="one process sends nothing"):
        measure_network(options)


def test_hidden_is_what_does_not_lengthen_the_step() -> None:
    assert hidden_share(17.0, 16.0, 2.0) == 0.5
    assert hidden_share(16.0, 16.0, 2.0) == hidden_share(15.0, 16.0, 2.0) == 1.0
    assert hidden_share(20.0, 16.0, 2.0) == 0.0


def test_a_summary_is_the_median_with_its_spread() -> None:
    assert timing.summary([float(value) for value in range(1, 22)]) == "11 (3 to 19)"
