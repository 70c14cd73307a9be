"""Many processes learn what one learns, with the model whole in each (DDP) or sharded (FSDP)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import command, torchrun
from test_training import losses, same, tensors

import train as train_script
from engine import checkpoint as checkpoints
from engine.checkpoint import _hash_of_meta, open_checkpoint, read_checkpoint
from engine.errors import UserError
from model import GPT, GPTConfig

# Three layers of 30 channels: neither rows nor matrices divide by 4. Micro-batches that 1, 2 and 4 processes
# share, and two windows to evaluate, so that two of 4 processes have none.
ALIKE = (
    "tiny.py", "--dtype=float64", "--n_layer=3", "--n_embd=30", "--bias=True", "--batch_size=2",
    "--gradient_accumulation_steps=4", "--keep_checkpoints=9", "--sample_tokens=8", "--eval_iters=1",
)  # fmt: skip
HALF = ("--max_iters=10", "--lr_decay_iters=20")
REST = ("--init_from=resume", "--lr_decay_iters=20", "--max_iters=20")


def several(folder: Path, processes: int, *commands: list[str]) -> list[dict]:
    """Run commands of several_runs.py under torchrun; what they measured."""
    finished = torchrun(folder, processes, "tests/several_runs.py", json.dumps(commands))
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> tuple[Path, dict[int, list[dict]]]:
    """Runs of 1, 2 and 4 processes in every mode, and what was measured in those of several."""
    from conftest import TINY

    folder = tmp_path_factory.mktemp("sharded")
    (folder / "data").symlink_to(prepared / "data", target_is_directory=True)
    (folder / "tiny.py").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for optimizer in ("adamw", "muon"):
            assert train_script.main([*ALIKE, f"--optimizer={optimizer}", f"--out_dir=one-{optimizer}"]) == 0
    modes = [(how, optimizer) for how in ("ddp", "fsdp") for optimizer in ("adamw", "muon")]
    measured = {}
    for processes in (4, 2):
        commands = [["train", *mode(*pair), f"--out_dir={pair[0]}{processes}-{pair[1]}"] for pair in modes]
        if processes == 4:
            commands.append(["train", *mode("fsdp", "muon"), "--out_dir=part", *HALF])
            commands.append(["train", *mode("fsdp", "adamw"), "--out_dir=recomputed", "--recompute=True"])
        else:
            start = ("--init_from=one-adamw", "--max_iters=0")
            for how in ("ddp", "fsdp"):
                shutil.copytree(folder / "part", folder / f"part-{how}")
                commands.append(["train", *mode(how, "muon"), f"--out_dir=part-{how}", *REST])
                commands.append(["train", *mode(how, "adamw"), f"--out_dir=from-{how}", *start])
                for micro_steps in (1, 4):
                    accumulated = f"--gradient_accumulation_steps={2 * micro_steps}"
                    commands.append(["count", *mode(how, "adamw"), accumulated, "--max_iters=2"])
        measured[processes] = several(folder, processes, *commands, ["rounded"], ["holds"])
    return folder, measured


def mode(how: str, optimizer: str) -> list[str]:
    """Arguments of train.py."""
    return [*ALIKE, f"--parallel={how}", f"--optimizer={optimizer}"]


def assert_close(first: Path, second: Path) -> None:
    """Weights and optimizer state within 1e-12."""
    one, other = tensors(first), tensors(second)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_20_steps_end_in_the_weights_of_one_process(
    runs: tuple[Path, dict], processes: int, how: str, optimizer: str
) -> None:
    one, other = runs[0] / f"one-{optimizer}", runs[0] / f"{how}{processes}-{optimizer}"
    assert same(open_checkpoint(one, "step-00000000").tensors("model"),
                open_checkpoint(other, "step-00000000").tensors("model"))  # fmt: skip
    assert_close(one, other)
    for kind in ("train", "eval"):
        assert losses(other, kind) == pytest.approx(losses(one, kind), abs=1e-12)


def test_a_checkpoint_of_4_sharded_processes_goes_on_in_any_number_and_mode(runs: tuple[Path, dict]) -> None:
    folder = runs[0]
    files = [path.name for path in (folder / "part/checkpoints/step-00000010").iterdir()]
    assert len([name for name in files if name.startswith("model-0")]) >= 4
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(folder / "part", folder / "part-one")
        assert train_script.main([*ALIKE, "--optimizer=muon", "--out_dir=part-one", *REST]) == 0
    for continued in ("part-one", "part-ddp", "part-fsdp"):
        assert_close(folder / "one-muon", folder / continued)
    sampled = [
        command(
            folder,
            "sample.py",
            f"--out_dir={run}",
            "--checkpoint=last",
            "--num_samples=1",
            "--max_new_tokens=9",
        )
        for run in ("one-muon", "fsdp4-muon")
    ]
    assert sampled[0].stdout == sampled[1].stdout and sampled[0].returncode == sampled[1].returncode == 0


def test_training_starts_from_weights_in_slices(runs: tuple[Path, dict]) -> None:
    expected = open_checkpoint(runs[0] / "one-adamw", "best").tensors("model")
    for how in ("ddp", "fsdp"):
        assert same(expected, open_checkpoint(runs[0] / f"from-{how}", "last").tensors("model"))


def test_gradients_are_summed_once_in_a_step(runs: tuple[Path, dict]) -> None:
    """With accumulation as often as without: under FSDP once for each block, and for what is around them."""
    counted = {"ddp": [], "fsdp": []}
    for line in runs[1][2]:
        if "counts" in line:
            counted[line["parallel"]].append(line["counts"])
    assert counted["fsdp"] == [[4, 4], [4, 4]]
    assert counted["ddp"][0] == counted["ddp"][1] and min(counted["ddp"][0]) >= 1


@pytest.mark.parametrize("processes", [2, 4])
def test_no_process_holds_the_model(runs: tuple[Path, dict], processes: int) -> None:
    held = runs[1][processes][-1]
    assert sum(mine for mine, _ in held["mine"]) == held["whole"]
    for mine, memory in held["mine"]:
        assert mine <= memory < 1.1 * held["whole"] / processes


def test_gathering_blocks_in_half_precision_rounds_what_autocast_rounds(runs: tuple[Path, dict]) -> None:
    """Gradients of matrices are the same, and those of layer norms and biases within bf16's rounding."""
    errors = runs[1][2][-2]["rounded"]
    assert len(errors) > 30 and max(errors.values()) < 2**-8
    assert all(
        error < 1e-6 for name, error in errors.items() if "blocks" in name and name.endswith("qkv.weight")
    )


def test_recomputing_changes_nothing(runs: tuple[Path, dict]) -> None:
    assert_close(runs[0] / "one-adamw", runs[0] / "recomputed")
    model = GPT(GPTConfig(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.3))
    ids = torch.randint(50, (3, 16))
    found = []
    for recompute in (False, True):
        model.recompute_blocks(recompute)
        kept: list[int] = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
        ):
            loss = model(ids, ids)[1]
        loss.backward()
        found.append(([p.grad.clone() for p in model.parameters()], sum(kept)))
        model.zero_grad()
    (plain, kept_plain), (recomputed, kept_recomputed) = found
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert kept_recomputed < kept_plain / 2


def test_an_overflow_in_half_precision_is_skipped_by_all(place: Path) -> None:
    """A loss scale that is far too large: the same steps are skipped, and the same weights result.

    When it is nearly right, some slices of the gradient overflow and others don't.
    """
    half = ("tiny.py", "--dtype=float16", "--sample_tokens=0", "--eval_iters=1")
    commands = []
    for optimizer in ("adamw", "muon"):
        begun = place / f"{optimizer}-begun"
        assert (
            train_script.main([*half, f"--optimizer={optimizer}", f"--out_dir={begun}", "--max_iters=1"]) == 0
        )
        path = begun / "checkpoints/step-00000001/meta.json"
        meta = json.loads(path.read_text())
        meta["scaler"]["scale"] = 2.0**28
        path.write_text(json.dumps(meta | {"sha256": _hash_of_meta(meta)}))
        for how in ("ddp", "fsdp"):
            shutil.copytree(begun, place / f"{how}-{optimizer}")
            run = [f"--out_dir={how}-{optimizer}", "--init_from=resume", "--max_iters=20"]
            commands.append(["train", *half, f"--optimizer={optimizer}", f"--parallel={how}", *run])
    several(place, 2, *commands)
    for optimizer in ("adamw", "muon"):
        ddp, fsdp = (open_checkpoint(place / f"{how}-{optimizer}", "last") for how in ("ddp", "fsdp"))
        assert fsdp.meta["scaler"] == ddp.meta["scaler"] and 2.0**10 < fsdp.meta["scaler"]["scale"] < 2.0**28
        begun = read_checkpoint(place / f"{optimizer}-begun/checkpoints/step-00000001").tensors("model")
        sliced = fsdp.tensors("model")
        for name, tensor in ddp.tensors("model").items():
            torch.testing.assert_close(sliced[name], tensor, rtol=0, atol=1e-3)
            assert not torch.equal(sliced[name], begun[name])


def test_a_divergence_is_traced_under_fsdp(place: Path) -> None:
    wild = ("--learning_rate=1e30", "--warmup_iters=0", "--grad_clip=0", "--sample_tokens=0")
    finished = torchrun(place, 2, "train.py", "tiny.py", "--parallel=fsdp", *wild)
    assert finished.returncode == 1
    assert (
        "training diverged at step 2" in finished.stderr
        and "the first tensor that is not finite is" in finished.stderr
    )


def test_a_disk_that_one_process_cannot_write_to_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two files fails; nothing of the first stays."""
    write = checkpoints._write_synced

    def full(path: Path, content: bytes) -> None:
        if "00002" in path.name:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(checkpoints, "_write_synced", full)
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 100)
    with pytest.raises(UserError, match="No space left"):
        checkpoints.save_checkpoint(
            tmp_path, {"step": 1}, {"model": {"a": torch.ones(20), "b": torch.ones(20)}}
        )
    assert list((tmp_path / "checkpoints").iterdir()) == [] and not (tmp_path / "last").exists()
