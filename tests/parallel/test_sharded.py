"""Many processes learn what one learns, with the model whole in each (DDP) or sharded (FSDP)."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from support.commands import HANG, command, torchrun
from support.masking import without_targets
from support.runs import losses, same, start, tensors

import train as train_script
from engine.errors import UserError
from engine.parallel.sharding import recompute_blocks
from engine.weights import saving
from engine.weights.checkpoint import hash_of_meta, open_checkpoint
from model import GPT, GPTConfig

pytestmark = pytest.mark.slow(reason="torchrun again and again")

# Three layers of 30 channels: neither rows nor matrices divide by 4. Micro-batches that 1, 2 and 4 processes
# share, and two windows to evaluate, so that two of 4 processes have none.
ALIKE = (
    "tiny.py", "--dtype=float64", "--n_layer=3", "--n_embd=30", "--bias=True", "--token_shift=True",
    "--batch_size=2", "--gradient_accumulation_steps=4",
    "--keep_checkpoints=9", "--sample_tokens=2", "--eval_iters=1", "--eval_interval=20",
)  # fmt: skip
# Of the eight sequences of a step: none of rank 1's, none of a micro-batch's, none at all.
MASKED = [*range(12, 16), *range(16, 18), *range(24, 32)]
HALF = ("--max_iters=10", "--lr_decay_iters=20")
WILD = ("--learning_rate=1e30", "--warmup_iters=0", "--grad_clip=0")
REST = ("--init_from=resume", "--lr_decay_iters=20", "--max_iters=20")


def several(folder: Path, processes: int, *commands: list[str]) -> list[dict]:
    """Run commands of several_runs.py under torchrun; what they measured."""
    finished = torchrun(folder, processes, "tests/support/several_runs.py", json.dumps(commands))
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> tuple[Path, dict[int, list[dict]]]:
    """Runs of 1, 2 and 4 processes in every mode, and what was measured in those of several."""
    from support.commands import TINY

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
        else:
            commands += [*going_on(folder), *half_precision(folder), ["rounded"]]
            commands.append(["train", *mode("fsdp", "adamw"), "--out_dir=recomputed", "--recompute=True"])
            for micro_steps in (1, 4):
                accumulated = f"--gradient_accumulation_steps={2 * micro_steps}"
                commands += [
                    ["count", *mode(how, "adamw"), accumulated, "--max_iters=2"] for how in ("ddp", "fsdp")
                ]
            for how in ("ddp", "fsdp"):
                commands.append(["masked", MASKED, *mode(how, "adamw"), f"--out_dir=masked-{how}"])
            commands.append(["stumbles", *mode("ddp", "adamw"), "--compile=True", "--out_dir=compiled-ddp"])
            commands.append(["fails", *mode("fsdp", "adamw"), *WILD, "--out_dir=wild"])
        measured[processes] = several(folder, processes, *commands, ["holds"])
    return folder, measured


def mode(how: str, optimizer: str) -> list[str]:
    """Arguments of train.py."""
    return [*ALIKE, f"--parallel={how}", f"--optimizer={optimizer}"]


def going_on(folder: Path) -> list[list[str]]:
    """Commands that resume a run of 4 sharded processes, and that start from weights."""
    commands = []
    for how in ("ddp", "fsdp"):
        shutil.copytree(folder / "part", folder / f"part-{how}")
        commands.append(["train", *mode(how, "muon"), f"--out_dir=part-{how}", *REST])
        start = ("--init_from=one-adamw", "--max_iters=0")
        commands.append(["train", *mode(how, "adamw"), f"--out_dir=from-{how}", *start])
    return commands


def half_precision(folder: Path) -> list[list[str]]:
    """Commands that go on in fp16 from a checkpoint whose loss scale is far too large."""
    commands = []
    for optimizer in ("adamw", "muon"):
        begun, half = f"begun-{optimizer}", [*mode("ddp", optimizer), "--dtype=float16"]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert train_script.main([*half, f"--out_dir={begun}", "--max_iters=1"]) == 0
        path = folder / begun / "checkpoints/step-00000001/meta.json"
        meta = json.loads(path.read_text())
        meta["scaler"]["scale"] = 2.0**28
        path.write_text(json.dumps(meta | {"sha256": hash_of_meta(meta)}))
        for how in ("ddp", "fsdp"):
            shutil.copytree(folder / begun, folder / f"half-{how}-{optimizer}")
            rest = [f"--out_dir=half-{how}-{optimizer}", "--init_from=resume", "--max_iters=20"]
            commands.append(["train", *mode(how, optimizer), "--dtype=float16", *rest])
    return commands


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


def test_where_one_process_cannot_compile_all_go_on_without(runs: tuple[Path, dict]) -> None:
    other = runs[0] / "compiled-ddp"
    assert_close(runs[0] / "one-adamw", other)
    assert not open_checkpoint(other, "last").meta["choices"]["compile"]


def test_sequences_without_targets_add_nothing(runs: tuple[Path, dict]) -> None:
    """The mean is over the targets of the step, and a step without any makes no update."""
    folder = runs[0]
    with pytest.MonkeyPatch.context() as patch, without_targets(set(MASKED)):
        patch.chdir(folder)
        assert train_script.main([*ALIKE, "--out_dir=masked-one"]) == 0
    expected = losses(folder / "masked-one")
    assert expected[4] is None and all(expected[step] > 0 for step in expected if step != 4)
    for how in ("ddp", "fsdp"):
        other = folder / f"masked-{how}"
        assert_close(folder / "masked-one", other)
        assert losses(other) == pytest.approx(expected, abs=1e-12)
        assert open_checkpoint(other, "last").meta["steps_without_targets"] == 1


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
            "--device=cpu",
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
    """Gradients are those of autocast, bit for bit; those of the blocks' layer norms are rounded to bf16."""
    (errors,) = (line["rounded"] for line in runs[1][2] if "rounded" in line)
    assert len(errors) > 30 and max(errors.values()) < 2**-8
    assert {error for name, error in errors.items() if "norm" not in name} == {0.0}


def test_recomputing_changes_nothing(runs: tuple[Path, dict]) -> None:
    assert_close(runs[0] / "one-adamw", runs[0] / "recomputed")
    model = GPT(GPTConfig(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.3))
    ids = torch.randint(50, (3, 16))
    found = []
    for recompute in (False, True):
        if recompute:
            recompute_blocks(model)
        kept: list[int] = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
        ):
            loss = model(ids, ids)
        loss.backward()
        found.append(([p.grad.clone() for p in model.parameters()], sum(kept)))
        model.zero_grad()
    (plain, kept_plain), (recomputed, kept_recomputed) = found
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert kept_recomputed < kept_plain / 2


def test_an_overflow_in_half_precision_is_skipped_by_all(runs: tuple[Path, dict]) -> None:
    """The same steps are skipped, even where some slices of the gradient overflow and others do not."""
    for optimizer in ("adamw", "muon"):
        begun = open_checkpoint(runs[0] / f"begun-{optimizer}", "last").tensors("model")
        ddp, fsdp = (open_checkpoint(runs[0] / f"half-{how}-{optimizer}", "last") for how in ("ddp", "fsdp"))
        assert fsdp.meta["scaler"] == ddp.meta["scaler"] and 2.0**10 < fsdp.meta["scaler"]["scale"] < 2.0**28
        sliced = fsdp.tensors("model")
        for name, tensor in ddp.tensors("model").items():
            torch.testing.assert_close(sliced[name], tensor, rtol=0, atol=1e-3)
            assert not torch.equal(sliced[name], begun[name])


def test_a_divergence_is_traced_under_fsdp(runs: tuple[Path, dict]) -> None:
    (error,) = (line["error"] for line in runs[1][2] if "error" in line)
    assert "training diverged at step" in error and "the first tensor that is not finite is the" in error


def test_a_signal_to_sharded_processes_saves_and_another_number_goes_on(place: Path) -> None:
    process = start(place, 2, "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", arguments=("--parallel=fsdp",))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=HANG)
    stopped = open_checkpoint(place / "r", "last").meta["step"]
    assert output.count(f"stopped at step {stopped};") == 1 and stopped > 0, output
    assert (
        train_script.main(["tiny.py", "--out_dir=r", "--init_from=auto", f"--max_iters={stopped + 2}"]) == 0
    )
    assert open_checkpoint(place / "r", "last").meta["step"] == stopped + 2


def test_a_disk_that_one_process_cannot_write_to_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two files fails; nothing of the first stays."""
    write = saving.write_whole

    def full(path: Path, content: bytes) -> None:
        if path.name.startswith("model-00002"):
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(saving, "write_whole", full)
    monkeypatch.setattr(saving, "SHARD_BYTES", 100)
    with pytest.raises(UserError, match="No space left"):
        saving.save_checkpoint(tmp_path, {"step": 1}, {"model": {"a": torch.ones(20), "b": torch.ones(20)}})
    assert list((tmp_path / "checkpoints").iterdir()) == [] and not (tmp_path / "last").exists()
