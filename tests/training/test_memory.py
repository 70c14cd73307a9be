"""The count of memory against what tensors hold, what autograd saves, and what a process takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import command

import train as train_script
from engine import kernels
from engine.device import Compute
from engine.errors import UserError
from engine.measure.memory_check import check_memory
from engine.parallel.sharding import recompute_blocks
from engine.parallel.world import World
from engine.settings import TrainSettings
from engine.training import memory, setup
from engine.training.memory import LiveBytes, TrainingMemory, bytes_of
from engine.training.optimizer import make_optimizer
from engine.weights.checkpoint import open_checkpoint
from model import GPT, GPTConfig

SMALL = GPTConfig(vocab_size=64, block_size=64, n_layer=2, n_head=4, n_embd=128, bias=False)
EIGHT = World(0, 8, 0, 8)


def chosen(device: str = "cpu", dtype: str = "float32", kernel: str = "sdpa") -> Compute:
    return Compute(device, dtype, False, 1, attention_kernel=kernel)


def settings(batch_size: int, micro_steps: int = 1, **changes: Any) -> TrainSettings:
    return TrainSettings(batch_size=batch_size, gradient_accumulation_steps=micro_steps, **changes)


def real_model(config: GPTConfig, compute: Compute) -> GPT:
    """The model on the CPU, with numbers."""
    model = GPT(config).to(compute.weights_dtype())
    model.init_weights(0)
    kernels.install(model, compute.attention_kernel)
    return model


def bytes_saved_by_autograd(config: GPTConfig, compute: Compute, sequences: int) -> int:
    """What the hooks of autograd see in a real forward pass, beside the parameters themselves."""
    model = real_model(config, compute)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}  # holding them keeps their addresses from being used again

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        assert TrainingMemory(config, settings(1), compute).loss(model, sequences).isfinite()
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(
    "change",
    [
        {}, {"dropout": 0.1}, {"activation": "relu2"}, {"bias": True}, {"separator": 3},
        {"position": "rotary", "qk_norm": True},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_forward_pass_saves_is_counted_to_5_per_cent(
    kernel: str, dtype: str, change: dict[str, Any]
) -> None:
    config, compute = replace(SMALL, **change), chosen(dtype=dtype, kernel=kernel)
    expected = bytes_saved_by_autograd(config, compute, 3)
    assert TrainingMemory(config, settings(3), compute).saved_bytes(3) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("recompute", "vocab_size"), [(False, 64), (True, 64), (False, 2**21)])
def test_the_peak_of_a_pass_is_that_of_a_real_one_to_5_per_cent(recompute: bool, vocab_size: int) -> None:
    """Also where the loss is taken in chunks: 3 × 64 positions times 2²¹ logits. A GPU's takes the same."""
    config, given = replace(SMALL, vocab_size=vocab_size, n_embd=8), settings(3, recompute=recompute)
    with LiveBytes() as live:
        model = real_model(config, chosen())
        if recompute:
            recompute_blocks(model)
        live.peak = live.now
        TrainingMemory(config, given, chosen()).loss(model, 3).backward()
    expected = pytest.approx(live.peak - bytes_of(model), rel=0.05)
    for device in ("cpu", "cuda"):
        assert TrainingMemory(config, given, chosen(device)).pass_bytes(3, first=True) == expected


def test_counting_leaves_random_numbers_and_default_type_alone() -> None:
    before = torch.get_rng_state()
    given, compute = settings(2, optimizer="muon"), chosen(dtype="float64")
    TrainingMemory(replace(SMALL, dropout=0.1), given, compute).predict(2)
    assert torch.equal(before, torch.get_rng_state()) and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_gradients_and_optimizer_state_are_exact(optimizer: str, dtype: str) -> None:
    config = replace(SMALL, bias=True, tied_head=False, vocab_size=77)
    given, compute = settings(2, optimizer=optimizer), chosen(dtype=dtype)
    model = real_model(config, compute)
    made = make_optimizer(model, given)
    model(torch.zeros(2, 64, dtype=torch.int64), torch.zeros(2, 64, dtype=torch.int64)).backward()
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters())
    made.step()
    kept = sum(value.nbytes for state in made.state.values() for value in state.values())
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert TrainingMemory(config, given, compute).state_bytes()[:3] == (weights, gradients, kept)


def test_on_a_gpu_attention_keeps_no_scores_with_dropout_either() -> None:
    def bytes_a_token(device: str, block_size: int) -> float:
        config = replace(SMALL, dropout=0.1, block_size=block_size)
        return TrainingMemory(config, settings(1), chosen(device)).saved_bytes(1) / block_size

    on_gpu, on_cpu = ([bytes_a_token(device, length) for length in (64, 512)] for device in ("cuda", "cpu"))
    assert on_gpu[1] == pytest.approx(on_gpu[0], rel=0.01)
    assert on_cpu[1] > 1.5 * on_cpu[0]


def test_sharding_divides_the_state() -> None:
    config, compute = GPTConfig(vocab_size=50304, n_layer=4, bias=False), chosen("cuda", "bfloat16")
    sharded, whole = (
        TrainingMemory(config, settings(4, 8, parallel=parallel), compute, EIGHT).predict(4)
        for parallel in ("fsdp", "ddp")
    )
    assert sharded.weights == -(-whole.weights // 8) and sharded.optimizer == -(-whole.optimizer // 8)
    assert sharded.total < whole.total


def test_recomputing_keeps_the_inputs_of_the_blocks() -> None:
    """Another block costs its input, (3, 64, 128) in four bytes, and a mean and a factor for each norm."""
    given, compute = settings(3, recompute=True), chosen()
    shapes = (replace(SMALL, n_layer=layers) for layers in (2, 3))
    two, three = (TrainingMemory(shape, given, compute).saved_bytes(3) for shape in shapes)
    assert three - two == pytest.approx(3 * 64 * 128 * 4, rel=0.05)
    kept, recomputed = (
        TrainingMemory(SMALL, settings(3, recompute=recompute), compute).predict(3)
        for recompute in (False, True)
    )
    assert recomputed.total < kept.total


def test_gradients_of_earlier_micro_batches_are_there_while_the_next_one_computes() -> None:
    config, compute = replace(SMALL, n_embd=512), chosen("cuda")
    one, several = (TrainingMemory(config, settings(1, steps), compute).predict(1) for steps in (1, 2))
    shared = TrainingMemory(config, settings(1, 8), compute, EIGHT).predict(1)
    assert one.total < several.total == shared.total


def test_a_batch_is_halved_until_it_fits_and_the_step_keeps_its_sequences() -> None:
    config, given, compute = replace(SMALL, n_embd=64), settings(24, 2), chosen()
    counted = TrainingMemory(config, given, compute)
    totals = {size: counted.predict(size).total for size in (24, 12, 6, 3)}
    for fits, total in totals.items():
        size, found = counted.fit(24, int(total / memory.FITS) + 1)
        assert (size, found.total) == (fits, total)
    assert counted.fit(24, 1000)[0] == 1
    assert counted.fit(24, None)[0] == 24


@pytest.mark.parametrize(("batch_size", "vocab_size"), [(1, 65), (2, 300), (12, 50304)])
def test_an_evaluation_takes_no_more_memory_than_a_training_step(batch_size: int, vocab_size: int) -> None:
    config = GPTConfig(vocab_size=vocab_size, block_size=64, n_layer=4, n_head=4, n_embd=32, bias=False)
    counted = TrainingMemory(config, settings(batch_size), chosen())
    step = counted.predict(batch_size)
    size = counted.evaluation_batch(batch_size, step)
    assert size >= batch_size
    assert counted.evaluation_bytes(size) <= step.gradients_and_activations


def test_a_run_that_does_not_fit_trains_with_smaller_batches_and_resumes_with_them(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same sequences in smaller batches: the weights are those of a run that fits, to rounding."""
    quick = ["tiny.py", "--max_iters=4", "--eval_interval=2", "--dropout=0", "--dtype=float64"]
    assert train_script.main([*quick, "--out_dir=whole"]) == 0
    assert "(1 × 2 × 4 sequences)" in capsys.readouterr().out
    with monkeypatch.context() as little:
        little.setattr(setup, "available_bytes", lambda *_: 1000)
        assert train_script.main([*quick, "--out_dir=halved"]) == 0
        said = capsys.readouterr().out
        assert "batch_size 4 does not fit" in said and "(1 × 8 × 1 sequences)" in said and "warning" in said
        assert "bit for bit" not in said
    monkeypatch.chdir(place)
    whole, halved = (open_checkpoint(place / name, "last") for name in ("whole", "halved"))
    assert halved.meta["choices"]["batch_size"] == 1 and halved.meta["sequences"] == whole.meta["sequences"]
    for name, weight in whole.tensors("model").items():
        torch.testing.assert_close(halved.tensors("model")[name], weight, rtol=0, atol=1e-12)
    finished = command(place, "train.py", "--init_from=resume", "--out_dir=halved", "--max_iters=6")
    assert "(1 × 8 × 1 sequences)" in finished.stdout, finished.stdout + finished.stderr
    assert "bit for bit" not in finished.stdout


def test_a_resumed_run_that_no_longer_fits_halves_and_says_what_is_lost(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_script.main(["tiny.py", "--max_iters=2", "--eval_interval=2", "--out_dir=run"]) == 0
    monkeypatch.setattr(setup, "available_bytes", lambda *_: 1000)
    capsys.readouterr()
    assert train_script.main(["--init_from=resume", "--out_dir=run", "--max_iters=4"]) == 0
    said = capsys.readouterr().out
    assert "(1 × 8 × 1 sequences)" in said and "no longer bit for bit" in said


def test_compute_of_older_checkpoints_have_no_batch_size_and_damaged_ones_are_refused() -> None:
    recorded = Compute("cpu", "float32", False, 1).to_dict()
    for name in ("batch_size", "evaluation_batch"):
        assert getattr(Compute.from_dict(recorded | {name: 3}), name) == 3
        older = {key: value for key, value in recorded.items() if key != name}
        assert getattr(Compute.from_dict(older), name) is None
        for damaged in (0, "3", True):
            with pytest.raises(UserError, match=f"{name} must be a whole number of at least 1"):
                Compute.from_dict(recorded | {name: damaged})


def test_a_control_group_limits_what_is_free(tmp_path: Path) -> None:
    """The innermost group has no limit, the one around it has; files that it can drop count as free."""
    inner = tmp_path / "outer/inner"
    inner.mkdir(parents=True)
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/elsewhere\n0::/outer/inner\n")
    for folder, limit in ((inner, "max"), (inner.parent, "1000")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("700")
        (folder / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert list(memory._free_in_cgroups(tmp_path, own)) == [450]
    assert list(memory._free_in_cgroups(tmp_path, tmp_path / "absent")) == []


@pytest.mark.slow(reason="trains a gigabyte")
def test_the_prediction_is_within_a_quarter_of_what_a_process_takes() -> None:
    """Three steps of a small model that keeps many scores, a gigabyte of them, in a process of its own."""
    config = GPTConfig(vocab_size=256, block_size=512, n_layer=16, n_head=4, n_embd=128, bias=False)
    predicted, measured = check_memory(train_script.update, config, settings(8), chosen(kernel="matmul"))
    assert measured > 0.9e9
    assert predicted == pytest.approx(measured, rel=0.25)
