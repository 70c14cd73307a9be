"""What only a GPU can show: python -m pytest -m gpu -n 0. docs/gpu.md says what each failure would mean.

GPU_TESTS_ON=cpu runs what a CPU can do of them, which checks the tests themselves.
"""

import dataclasses
import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import HANG, command, torchrun
from support.models import MODERN, SMALL, random_ids, random_model
from support.runs import losses, same, start, tensors

import train as train_script
from engine import kernels
from engine.device import Compute
from engine.errors import UserError
from engine.generation import Sampling, generate
from engine.measure.training_step import plain_compute, trial_run
from engine.settings import TrainSettings
from engine.training import batches
from engine.training import forward as forwards
from engine.training.batches import Batch
from engine.training.run import Run
from engine.weights.checkpoint import open_checkpoint
from model import MLP, GPTConfig

KIND = os.environ.get("GPU_TESTS_ON", "cuda")
DEVICE = torch.device(KIND)
GPUS = torch.cuda.device_count() if KIND == "cuda" else 0
ON_DEVICE = ("tiny.py", f"--device={KIND}", "--sample_tokens=4")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(KIND == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"),
]
real_gpu = pytest.mark.skipif(KIND != "cuda", reason="only a real GPU has this")
two_gpus = pytest.mark.skipif(GPUS < 2, reason="there are no two GPUs")

ERRORS = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}  # relative, of the gradients' norm
SHAPES = {
    "gpt2": SMALL,
    "modern": MODERN,
    "documents": dataclasses.replace(SMALL, separator=3),
    "untied": dataclasses.replace(SMALL, tied_head=False, bias=False),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_those_of_the_cpu_in_float64(shape: str, dtype: str, compiled: bool) -> None:
    exact = random_model(SHAPES[shape])
    ids, targets = random_ids(4, 24), random_ids(4, 24)
    targets[0, :7] = -100
    expected = exact(ids, targets)
    expected.backward()
    model = random_model(SHAPES[shape], torch.float32)
    model.load_state_dict(exact.state_dict())
    kernels.install(model.to(DEVICE))
    torch.compiler.reset()
    forward = torch.compile(model, dynamic=False) if compiled else model
    with Compute(KIND, dtype, compiled, 1).autocast():
        loss = forward(ids.to(DEVICE), targets.to(DEVICE))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=ERRORS[dtype])
    for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
        error = (ours.grad.double().cpu() - theirs.grad).norm() / theirs.grad.norm()
        assert error < ERRORS[dtype], f"{name}: {error}"


def test_the_loss_in_chunks_is_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(SMALL, torch.float32).to(DEVICE)
    ids = random_ids(4, 24).to(DEVICE)
    plain = model(ids, ids)
    (expected,) = torch.autograd.grad(plain, [model.token_embedding.weight])
    monkeypatch.setattr(kernels, "LARGEST_LOGITS", 100)
    monkeypatch.setattr(kernels, "LARGEST_CHUNK", 400)
    chunked = kernels.install(model)(ids, ids)
    (found,) = torch.autograd.grad(chunked, [model.token_embedding.weight])
    torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_nothing_is_compiled_after_the_first_pass(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = forwards.warm_up

    def then_refuse(run: Run, forward: Any, consumed: int) -> None:
        original(run, forward, consumed)
        torch.compiler.set_stance("fail_on_recompile")

    monkeypatch.setattr(forwards, "warm_up", then_refuse)
    torch.compiler.reset()
    assert train_script.main([*ON_DEVICE, "--compile=True", "--out_dir=r"]) == 0
    assert open_checkpoint(place / "r", "last").meta["choices"]["compile"]


@real_gpu
def test_an_update_never_waits_for_the_gpu() -> None:
    settings = TrainSettings(gradient_accumulation_steps=2, batch_size=4, block_size=32)
    config = GPTConfig(vocab_size=64, block_size=32, n_layer=2, n_head=2, n_embd=32)
    run = trial_run(settings, DEVICE, plain_compute(settings, DEVICE), config)
    rows = torch.randint(64, (4, 33), device=DEVICE)

    def update(step: int) -> None:
        train_script.update(run, run.model, Batch(iter([(rows[:, :-1], rows[:, 1:])] * 2), 256), step)

    update(0)  # makes the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        update(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_goes_on_bit_for_bit_where_it_is_deterministic(place: Path, optimizer: str) -> None:
    exact = (f"--device={KIND}", "--deterministic=True", f"--optimizer={optimizer}", "--lr_decay_iters=1000")
    process = start(place, 1, arguments=exact)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=HANG)
    assert process.returncode == 128 + signal.SIGTERM, output
    stopped = open_checkpoint(place / "r", "last").meta["step"]
    more = f"--max_iters={stopped + 7}"
    for out_dir, way in (("r", "--init_from=resume"), ("whole", "--init_from=scratch")):
        finished = command(
            place, "train.py", "tiny.py", *exact, more, way, f"--out_dir={out_dir}", "--eval_interval=1000000"
        )
        assert finished.returncode == 0, finished.stderr
    assert same(tensors(place / "r"), tensors(place / "whole"))


@real_gpu
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_update_that_overflows_in_fp16_is_skipped(
    place: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = functools.partial(torch.amp.GradScaler, init_scale=2.0**28)
    monkeypatch.setattr(torch.amp, "GradScaler", large)
    assert train_script.main([*ON_DEVICE, "--dtype=float16", f"--optimizer={optimizer}", "--out_dir=r"]) == 0
    checkpoint = open_checkpoint(place / "r", "last")
    assert checkpoint.meta["scaler"]["scale"] < 2.0**28
    assert all(weights.isfinite().all() for weights in checkpoint.tensors("model").values())


def test_the_cause_of_a_nan_is_named_in_a_compiled_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, forward = batches.Batches.step, MLP.forward
    poison = torch.ones((), device=DEVICE)

    def poisoned_step(self: batches.Batches) -> Batch:
        poison.fill_(0.0 if self.consumed == 2 * 8 else 1.0)
        return step(self)

    monkeypatch.setattr(batches.Batches, "step", poisoned_step)
    monkeypatch.setattr(MLP, "forward", lambda self, x: forward(self, x) / poison)
    torch.compiler.reset()
    with pytest.raises(UserError, match=r"diverged at step 3 .* the output of blocks\.0\.mlp"):
        train_script.main([*ON_DEVICE, "--compile=True", "--eval_iters=1", "--out_dir=r"])


@real_gpu
def test_a_micro_batch_that_does_not_fit_is_halved(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**29 / torch.cuda.get_device_properties(0).total_memory)
    try:
        large = ("--batch_size=8192", "--gradient_accumulation_steps=1", "--max_iters=2", "--eval_iters=1")
        assert train_script.main([*ON_DEVICE, *large, "--out_dir=r"]) == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "sequences do not fit" in capsys.readouterr().out
    assert open_checkpoint(place / "r", "last").meta["choices"]["batch_size"] < 8192


@pytest.mark.parametrize("shape", ["gpt2", "modern"])
def test_text_from_the_cache_is_that_of_the_plain_loop(shape: str) -> None:
    model = random_model(SHAPES[shape], torch.float32).to(DEVICE).eval()
    ids = random_ids(3, 5).to(DEVICE)
    expected = model.generate(ids, 15, temperature=0)
    kernels.install(model, inference=True)
    assert torch.equal(generate(model, ids, 15, Sampling(temperature=0)), expected)


def test_a_sample_is_the_same_text_where_deterministic_algorithms_are_asked_for() -> None:
    model = random_model(SMALL, torch.float32).to(DEVICE).eval()
    ids = random_ids(2, 5).to(DEVICE)
    sampling = Sampling(temperature=1.0, top_p=0.9)
    expected = generate(model, ids, 15, sampling, seed=7)
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        assert torch.equal(generate(model, ids, 15, sampling, seed=7), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@two_gpus
def test_the_second_gpu_learns_what_the_first_does(place: Path) -> None:
    for device in ("cuda:0", "cuda:1"):
        run = (f"--device={device}", f"--out_dir={device[-1]}", "--dtype=float32", "--compile=False")
        finished = command(place, "train.py", "tiny.py", *run, "--dropout=0")
        assert finished.returncode == 0, finished.stderr
    assert losses(place / "1") == pytest.approx(losses(place / "0"), rel=1e-4)


@two_gpus
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_gpus_learn_what_one_does(place: Path, how: str) -> None:
    run = ("tiny.py", "--device=cuda", "--dtype=float32", "--compile=False", f"--parallel={how}")
    assert command(place, "train.py", *run, "--out_dir=one").returncode == 0
    finished = torchrun(place, 2, "train.py", *run, "--out_dir=two")
    assert finished.returncode == 0, finished.stderr
    assert losses(place / "two") == pytest.approx(losses(place / "one"), rel=1e-3)


@two_gpus
def test_an_error_of_one_process_ends_the_other(place: Path) -> None:
    """The second process cannot read its data; the command must come back, within HANG."""
    broken = "import os\nif os.environ['RANK'] == '1':\n    block_size = 10**9\n"
    (place / "broken.py").write_text((place / "tiny.py").read_text() + broken)
    finished = torchrun(place, 2, "train.py", "broken.py", "--device=cuda", "--out_dir=r")
    assert finished.returncode != 0
