"""The prediction of memory against what tensors hold, what autograd saves, and what a process takes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.commands import command

import train as train_script
from engine.device import Choices
from engine.errors import UserError
from engine.parallel.world import World
from engine.settings import TrainSettings
from engine.training import memory, setup
from engine.training.memory import Setup, block_bytes, fitting_batch_size, predict, state_bytes
from engine.training.optimizer import make_optimizer
from engine.weights.checkpoint import open_checkpoint
from model import GPT, GPTConfig

SMALL = GPTConfig(vocab_size=64, block_size=64, n_layer=2, n_head=4, n_embd=128, bias=False)
ALONE = World(0, 1, 0, 1)


def saved_bytes(config: GPTConfig, given: Setup) -> int:
    """What autograd keeps after a forward pass, beside the parameters and their copies in half precision."""
    model = GPT(config)
    model.init_weights(0)
    model.use_attention_kernel(given.attention_kernel)
    matrices = {shape for p in model.parameters() for shape in (tuple(p.shape), tuple(p.shape[::-1]))}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        copy = tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in matrices
        if storage.data_ptr() not in own and not copy:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(config.vocab_size, (given.micro_batch, config.block_size))
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, Choices("cpu", given.dtype, False, 1).autocast():
        loss = model(ids, ids)[1]
    assert loss.isfinite()
    return sum(found.values())


@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "change",
    [
        {}, {"dropout": 0.1}, {"activation": "relu2"}, {"bias": True},
        {"position": "rotary", "qk_norm": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_block_keeps_what_autograd_saves_of_it(kernel: str, dtype: str, change: dict) -> None:
    """The difference that one more block makes, to 2%: the means of layer norms and the like are left out."""
    config, given = replace(SMALL, **change), Setup(3, attention_kernel=kernel, dtype=dtype)
    two, three = (saved_bytes(replace(config, n_layer=layers), given) for layers in (2, 3))
    assert block_bytes(config, given) == pytest.approx(three - two, rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_gradients_and_optimizer_state_are_exact(optimizer: str, dtype: torch.dtype) -> None:
    config = replace(SMALL, bias=True, tied_head=False, vocab_size=77)
    model = GPT(config).to(dtype)
    model.init_weights(0)
    made = make_optimizer(model, TrainSettings(optimizer=optimizer))
    model(torch.randint(77, (2, 64)), torch.randint(77, (2, 64)))[1].backward()
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters())
    made.step()
    kept = [value for state in made.state.values() for value in state.values() if value.dim() > 0]
    given = Setup(2, optimizer=optimizer, dtype=str(dtype).removeprefix("torch."))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert state_bytes(config, given) == (weights, gradients, sum(value.nbytes for value in kept))


def test_sharding_divides_the_state_and_recomputing_keeps_a_block() -> None:
    config = GPTConfig(vocab_size=50304, bias=False)
    given = Setup(4, dtype="bfloat16", device="cuda", processes=8, parallel="fsdp")
    assert sum(state_bytes(config, given)) == pytest.approx(16 * 124.4e6 / 8, rel=0.01)
    assert predict(config, given).total < predict(config, replace(given, parallel="ddp")).total
    again, kept = (predict(config, replace(given, recompute=value)).activations for value in (True, False))
    assert again < kept / 2


def test_a_batch_is_halved_until_it_fits_and_the_step_keeps_its_sequences() -> None:
    config, given = GPTConfig(vocab_size=256), Setup(1)
    sizes = {
        batch: predict(config, replace(given, micro_batch=batch, micro_steps=48 // batch)).total
        for batch in (24, 12, 6, 3)
    }
    for wanted, fits in ((24, 24), (24, 12), (24, 6), (24, 3)):
        available = int(sizes[fits] / memory.FITS) + 1
        assert fitting_batch_size(config, given, 48, wanted, ALONE, available) == fits
    assert fitting_batch_size(config, given, 48, 24, ALONE, 1000) == 1
    assert fitting_batch_size(config, given, 48, 24, ALONE, None) == 24


def test_a_run_that_does_not_fit_trains_with_smaller_batches_and_resumes_with_them(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same sequences in smaller batches: the weights are those of a run that fits, to rounding."""
    quick = ["tiny.py", "--max_iters=4", "--eval_interval=2", "--dropout=0", "--dtype=float64"]
    assert train_script.main([*quick, "--out_dir=whole"]) == 0
    assert "(1 × 2 × 4 sequences)" in capsys.readouterr().out
    monkeypatch.setattr(setup, "available_bytes", lambda *_: 1000)
    assert train_script.main([*quick, "--out_dir=halved"]) == 0
    said = capsys.readouterr().out
    assert "batch_size 4 does not fit" in said and "(1 × 8 × 1 sequences)" in said and "warning" in said
    monkeypatch.undo()
    monkeypatch.chdir(place)
    whole, halved = (open_checkpoint(place / name, "last") for name in ("whole", "halved"))
    assert halved.meta["choices"]["batch_size"] == 1 and halved.meta["sequences"] == whole.meta["sequences"]
    for name, weight in whole.tensors("model").items():
        torch.testing.assert_close(halved.tensors("model")[name], weight, rtol=0, atol=1e-12)
    finished = command(place, "train.py", "--init_from=resume", "--out_dir=halved", "--max_iters=6")
    assert "(1 × 8 × 1 sequences)" in finished.stdout, finished.stdout + finished.stderr


def test_choices_of_older_checkpoints_have_no_batch_size_and_damaged_ones_are_refused() -> None:
    recorded = Choices("cpu", "float32", False, 1).to_dict()
    assert Choices.from_dict(recorded | {"batch_size": 3}).batch_size == 3
    del recorded["batch_size"]
    assert Choices.from_dict(recorded).batch_size is None
    for damaged in (0, "3", True):
        with pytest.raises(UserError, match="damaged"):
            Choices.from_dict(recorded | {"batch_size": damaged})


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


def test_the_prediction_is_within_a_quarter_of_what_a_process_takes() -> None:
    """Three steps of a small model that keeps many scores, a gigabyte of them, in a process of its own."""
    from engine.measure.memory_check import check_memory

    config = GPTConfig(vocab_size=256, block_size=512, n_layer=16, n_head=4, n_embd=128, bias=False)
    predicted, measured = check_memory(config, Setup(8, attention_kernel="matmul"))
    assert measured > 0.9e9
    assert predicted.total == pytest.approx(measured, rel=0.25)
