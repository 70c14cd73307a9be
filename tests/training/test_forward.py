"""Compiling, and what happens where it fails or the memory does not suffice."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import losses, same, tensors

import train as train_script
from engine.errors import UserError
from engine.training import batches
from engine.training import forward as forwards
from engine.training.run import Run
from engine.weights.checkpoint import open_checkpoint
from model import MLP

compile_model = torch.compile
RUN = ("tiny.py", "--sample_tokens=0", "--max_iters=6", "--eval_interval=3", "--compile=True")


@pytest.fixture
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile that captures graphs and runs them as they are, which takes no compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(compile_model, backend="eager"))
    torch.compiler.reset()


def test_where_compiling_fails_the_run_goes_on_without(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_given: object) -> None:
        raise RuntimeError("there is no compiler")

    assert train_script.main([*RUN, "--out_dir=plain", "--compile=False"]) == 0
    monkeypatch.setattr(torch, "compile", functools.partial(compile_model, backend=broken))
    assert train_script.main([*RUN, "--out_dir=r"]) == 0
    output = capsys.readouterr().out
    assert output.count("note: torch.compile is off, since it fails here") == 1
    assert "there is no compiler" in output
    assert same(tensors(place / "plain"), tensors(place / "r"))
    assert not open_checkpoint(place / "r", "last").meta["choices"]["compile"]


def test_the_first_pass_leaves_nothing_to_compile_for_the_steps(place: Path, eager_backend: None) -> None:
    """From the first step on another compilation would raise."""
    original = forwards.warm_up

    def then_refuse(run: Run, forward: Any, consumed: int) -> None:
        original(run, forward, consumed)
        torch.compiler.set_stance("fail_on_recompile")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forwards, "warm_up", then_refuse)
        assert train_script.main([*RUN, "--out_dir=r"]) == 0
    assert train_script.main([*RUN, "--out_dir=plain", "--compile=False"]) == 0
    assert losses(place / "r") == pytest.approx(losses(place / "plain"), abs=1e-5)


def test_a_micro_batch_that_does_not_fit_is_halved(
    place: Path, eager_backend: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = forwards.warm_up

    def small_memory(run: Run, forward: Any, consumed: int) -> None:
        if run.micro_batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(run, forward, consumed)

    monkeypatch.setattr(forwards, "warm_up", small_memory)
    exact = (*RUN, "--dtype=float64", "--dropout=0")
    assert train_script.main([*exact, "--out_dir=r"]) == 0
    output = capsys.readouterr().out
    assert "memory: 4 sequences do not fit" in output and "works on 1 at a time" in output
    assert "torch.compile is off" not in output and "bit for bit" not in output
    assert open_checkpoint(place / "r", "last").meta["choices"]["batch_size"] == 1
    monkeypatch.setattr(forwards, "warm_up", original)
    assert train_script.main([*exact, "--out_dir=plain", "--compile=False"]) == 0
    assert losses(place / "r") == pytest.approx(losses(place / "plain"), abs=1e-12)


def test_one_sequence_that_does_not_fit_is_one_line_that_says_what_to_lower(
    place: Path, eager_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(run: Run, forward: Any, consumed: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(forwards, "warm_up", no_memory)
    with pytest.raises(UserError, match="lower n_layer, n_embd or block_size"):
        train_script.main([*RUN, "--out_dir=r"])


def test_memory_that_runs_out_in_mid_training_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train_script, "update", exhausted)
    with pytest.raises(UserError, match="step 1 does not fit into the GPU's memory; resume with half"):
        train_script.main([*RUN[:-1], "--out_dir=r"])


def test_a_divergence_of_a_compiled_model_is_traced(
    place: Path, eager_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third update's MLP divides by zero; hooks would see nothing inside compiled code."""
    step, forward = batches.Batches.step, MLP.forward
    poison = torch.ones(())

    def poisoned_step(self: batches.Batches) -> batches.Batch:
        poison.fill_(0.0 if self.consumed == 2 * 8 else 1.0)
        return step(self)

    monkeypatch.setattr(batches.Batches, "step", poisoned_step)
    monkeypatch.setattr(MLP, "forward", lambda self, x: forward(self, x) / poison)
    with pytest.raises(UserError, match=r"diverged at step 3 .* the output of blocks\.0\.mlp"):
        train_script.main([*RUN, "--out_dir=r", "--eval_iters=1"])


@pytest.mark.slow  # compiles with a C++ compiler, tens of seconds
@pytest.mark.parametrize("more", [(), ("--recompute=True",)])
def test_a_compiled_run_learns_what_a_plain_one_does(place: Path, more: tuple[str, ...]) -> None:
    torch.compiler.reset()
    options = (*RUN, "--dropout=0", *more)
    assert train_script.main([*options, "--out_dir=r"]) == 0
    assert open_checkpoint(place / "r", "last").meta["choices"]["compile"]
    assert train_script.main([*options, "--out_dir=plain", "--compile=False"]) == 0
    assert losses(place / "r") == pytest.approx(losses(place / "plain"), abs=1e-4)
