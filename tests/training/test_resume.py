"""Nothing is lost: resuming is exact from every step, and nothing that only looks changes what is learned."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import command, several
from support.runs import losses, same, tensors, train

import train as train_script
from engine.data.order import training_starts
from engine.generation import generate
from engine.text.characters import ByteTokenizer
from engine.training import batches
from engine.training.metrics import read_metrics
from engine.weights.checkpoint import hash_of_meta, load, open_checkpoint, read_checkpoint

pytestmark = pytest.mark.slow(reason="resumes from every step")

REFERENCE = Path(__file__).parents[1] / "reference/format-1"


def run_here(*arguments: str) -> None:
    """train.py in this process, which saves the seconds that it takes to import torch."""
    torch.manual_seed(0)
    assert train_script.main(["tiny.py", *arguments]) == 0


def written(run: str) -> torch.Tensor:
    """Fifty tokens that the last checkpoint of a run writes."""
    return generate(load(run, checkpoint="last")[0], torch.zeros(1, 1, dtype=torch.int64), 50, seed=1)


@pytest.mark.parametrize("steps", [(0, 1, 7, 19), pytest.param(range(20), marks=pytest.mark.torture)])
@pytest.mark.parametrize(
    ("dtype", "optimizer"), [("float32", "adamw"), ("float16", "adamw"), ("float16", "muon")]
)
def test_resume_is_exact_from_every_step(
    place: Path, dtype: str, optimizer: str, steps: Iterable[int]
) -> None:
    """20 steps with dropout, accumulation, fp16 scaler: weights, optimizer, scaler, losses and samples."""
    fixed = (
        f"--dtype={dtype}",
        f"--optimizer={optimizer}",
        "--sample_tokens=0",
        "--eval_interval=1",
        "--keep_checkpoints=100",
        "--eval_iters=1",
    )
    run_here(*fixed, "--out_dir=whole")
    whole, logged = tensors(place / "whole"), losses(place / "whole")
    scaler = open_checkpoint(place / "whole", "last").meta["scaler"]
    text = written("whole")
    assert bool(scaler) == (dtype == "float16")
    for step in steps:
        shutil.rmtree(place / "part", ignore_errors=True)
        shutil.copytree(place / "whole", place / "part")
        for folder in (place / "part/checkpoints").iterdir():
            if int(folder.name[5:]) > step:
                shutil.rmtree(folder)
        run_here(*fixed[:3], "--out_dir=part", "--init_from=resume", "--eval_interval=20", "--eval_iters=1")
        assert same(whole, tensors(place / "part")), f"resumed from step {step}"
        assert logged == losses(place / "part")
        assert scaler == open_checkpoint(place / "part", "last").meta["scaler"]
        again = written("part")
        assert torch.equal(text, again)


def test_another_batch_size_after_resume_skips_and_repeats_no_sequence(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def remember(*given: int) -> np.ndarray:
        starts = training_starts(*given)
        used.extend(starts.tolist())
        return starts

    monkeypatch.setattr(batches, "training_starts", remember)
    run_here("--out_dir=r", "--max_iters=10")
    del used[10 * 8 :]  # the loop reads one step ahead
    more = ("--batch_size=5", "--gradient_accumulation_steps=3", "--max_iters=20")
    run_here("--out_dir=r", "--init_from=resume", *more)
    expected = training_starts(1337, 0, 10 * 8 + 10 * 15, 108_000, 32)
    assert used[: len(expected)] == expected.tolist() and len(set(used[: len(expected)])) == len(expected)


def test_automatic_choices_come_from_the_checkpoint(place: Path) -> None:
    run_here("--out_dir=r", "--max_iters=10")
    path = place / "r/checkpoints/step-00000010/meta.json"
    meta = json.loads(path.read_text())
    for kernel in ("sdpa", "matmul"):
        meta["choices"] |= {"attention_kernel": kernel, "threads": 1}
        path.write_text(json.dumps(meta | {"sha256": hash_of_meta(meta)}))
        shutil.copytree(place / "r", place / kernel)
        run_here(f"--out_dir={kernel}", "--init_from=resume")
        assert open_checkpoint(place / kernel, "last").meta["choices"]["attention_kernel"] == kernel


def test_looking_changes_nothing(place: Path) -> None:
    run_here("--out_dir=plain")
    plain, weights = losses(place / "plain"), tensors(place / "plain")
    for change in (
        "eval_interval=3",
        "eval_iters=1",
        "sample_tokens=0",
        "log_interval=7",
        "keep_checkpoints=9",
    ):
        run_here(f"--out_dir={change}", f"--{change}")
        other = losses(place / change)
        assert set(other) <= set(plain) and len(other) >= 2, change
        assert all(plain[step] == other[step] for step in other), change
        assert same(weights, tensors(place / change)), change


def test_a_logger_that_fails_is_a_warning_and_changes_nothing(place: Path) -> None:
    """A stand-in for wandb that raises where it is told to."""
    run_here("--out_dir=plain")
    for fault in ("missing", "init", "log", "finish"):
        folder = place / fault
        folder.mkdir()
        (folder / "wandb.py").write_text(f"FAULT = {fault!r}\n{FAILING_WANDB}")
        finished = command(
            place, "train.py", "tiny.py", f"--out_dir={fault}/run", "--wandb_log=True", PYTHONPATH=str(folder)
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.count("warning: wandb is off") == 1, finished.stdout
        for kind in ("train", "eval"):
            assert losses(place / "plain", kind) == losses(folder / "run", kind), fault
        assert same(tensors(place / "plain"), tensors(folder / "run")), fault


FAILING_WANDB = """
from types import SimpleNamespace
if FAULT == "missing":
    raise ImportError("no wandb")
class Run:
    id, url, settings = "x", None, SimpleNamespace(mode="online")
    count = 0
    def log(self, values, step):
        self.count += 1
        if FAULT == "log" and self.count == 5:
            raise RuntimeError("the network\\nis gone")
    def finish(self):
        if FAULT == "finish":
            raise RuntimeError("the network is gone")
def Settings(**_):
    return None
def init(**_):
    if FAULT == "init":
        raise RuntimeError("no key")
    return Run()
"""


def test_sequences_are_the_same_for_1_2_and_4_processes_and_runs_change_hands(place: Path) -> None:
    # Micro-batches that 1, 2 and 4 processes share.
    shape = ("--batch_size=2", "--gradient_accumulation_steps=4")
    exact = ("tiny.py", "--dtype=float64", "--eval_interval=20", "--sample_tokens=0", *shape)
    assert train_script.main([*exact, "--out_dir=one"]) == 0
    for processes in (2, 4):
        out = f"--out_dir=of{processes}"
        finished = several(place, processes, "train.py", *exact, out, "--max_iters=10", "--lr_decay_iters=20")
        assert finished.returncode == 0, finished.stderr
    resumed = ("--init_from=resume", "--lr_decay_iters=20", "--max_iters=20")
    assert train_script.main([*exact, "--out_dir=of2", *resumed]) == 0
    finished = several(place, 2, "train.py", *exact, "--out_dir=of4", *resumed)
    assert finished.returncode == 0, finished.stderr
    one = tensors(place / "one")
    for other in (tensors(place / "of2"), tensors(place / "of4")):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-12)
    finished = several(place, 4, "train.py", *exact, "--out_dir=of2", "--init_from=resume", "--max_iters=22")
    assert finished.returncode == 0 and "resuming of2/checkpoints/step-00000020" in finished.stdout


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (
            [],
            ["--max_iters=40"],
            "the learning rate goes from 0.00033 to 0.00195; --lr_decay_iters=20 keeps it",
        ),
        ([], ["--max_iters=40", "--lr_decay_iters=20"], None),
        (
            [],
            ["--max_iters=40", "--learning_rate=1e-3"],
            "--learning_rate=0.003 --lr_decay_iters=20 keeps it",
        ),
        (
            ["--max_iters=10", "--lr_decay_iters=20"],
            ["--lr_decay_iters=20", "--warmup_iters=2"],
            "--warmup_iters=5",
        ),
        (
            ["--schedule=linear", "--max_iters=10", "--lr_decay_iters=12"],
            ["--schedule=linear", "--lr_decay_iters=12", "--decay_share=0.1"],
            "--decay_share=0.5 keeps it",
        ),
        (
            ["--optimizer=muon"],
            ["--optimizer=muon", "--lr_decay_iters=20", "--max_iters=40", "--muon_learning_rate=0.1"],
            "the muon learning rate goes from 0.0022 to 0.01; --muon_learning_rate=0.02 keeps it",
        ),
        (["--decay_lr=False"], ["--decay_lr=False", "--max_iters=40"], None),
    ],
)
def test_a_jump_of_the_learning_rate_is_said_with_what_keeps_it(
    place: Path, capsys: pytest.CaptureFixture[str], first: list[str], then: list[str], said: str | None
) -> None:
    quick = ("--out_dir=r", "--sample_tokens=0", "--eval_iters=1")
    run_here(*quick, *first)
    step = open_checkpoint(place / "r", "last").meta["step"]
    capsys.readouterr()
    run_here(*quick, "--init_from=resume", *then)
    output = capsys.readouterr().out
    (line,) = (line for line in output.splitlines() if line.startswith("run: resuming"))
    assert ("learning rate goes" in line) == (said is not None)
    if said is not None:
        assert said in line
        kept = [word for word in line.split("; ")[-1].split() if word.startswith("--")]
        shutil.rmtree(place / "r")
        run_here(*quick, *first)
        run_here(*quick, "--init_from=resume", *then, *kept)
        rates = {line["step"]: line["lr"] for line in read_metrics(place / "r/metrics.jsonl") if "lr" in line}
        assert rates[step + 1] <= rates[step]


def test_changed_data_is_announced_before_the_run_goes_on(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here("--out_dir=r", "--max_iters=10")
    path = place / "r/checkpoints/step-00000010/meta.json"
    meta = json.loads(path.read_text())
    meta["data"]["fingerprint"] = "of other data"
    path.write_text(json.dumps(meta | {"sha256": hash_of_meta(meta)}))
    run_here("--out_dir=r", "--init_from=resume")
    output = capsys.readouterr().out
    assert output.index("warning: data/topics has changed") < output.index("step 11:")


def test_a_run_that_goes_on_from_an_earlier_checkpoint_keeps_its_own_ones(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here("--out_dir=r", "--max_iters=20", "--eval_interval=10")
    with open(place / "r/checkpoints/step-00000020/model.safetensors", "r+b") as file:
        file.truncate(1000)
    run_here("--out_dir=r", "--init_from=resume", "--max_iters=15", "--eval_interval=5")
    assert "set aside as r/checkpoints/aside-step-00000020" in capsys.readouterr().out
    names = sorted(path.name for path in (place / "r/checkpoints").iterdir())
    assert names == ["aside-step-00000020", "step-00000010", "step-00000015"]
    assert (place / "r/last").read_text().strip() == "step-00000015"


def test_resume_passes_over_a_damaged_checkpoint_and_says_so(place: Path) -> None:
    train(place, "--out_dir=whole")
    shutil.copytree(place / "whole", place / "part")
    with open(place / "part/checkpoints/step-00000020/model.safetensors", "r+b") as file:
        file.seek(500)
        file.write(b"\xff\xff\xff")
    output = train(place, "--out_dir=part", "--init_from=resume")
    assert "step-00000020/model.safetensors is damaged" in output and "going back" in output
    assert same(tensors(place / "whole"), tensors(place / "part"))
    refused = command(
        place,
        "sample.py",
        "--out_dir=whole",
        "--checkpoint=step-00000020",
        "--max_new_tokens=5",
        "--device=cpu",
    )
    assert refused.returncode == 0
    with open(place / "whole/checkpoints/step-00000020/meta.json", "ab") as file:
        file.write(b"x")
    refused = command(place, "sample.py", "--out_dir=whole", "--checkpoint=last", "--device=cpu")
    assert refused.returncode == 2 and "whole/checkpoints/step-00000020/meta.json" in refused.stderr


def test_metrics_have_each_step_once_after_a_crash_in_mid_line(place: Path) -> None:
    run_here("--out_dir=r", "--max_iters=10")
    with open(place / "r/metrics.jsonl", "a") as file:
        file.write('{"step": 11, "kind": "train", "loss": 1.0}\n{"step": 12, "ki')
    run_here("--out_dir=r", "--init_from=resume")
    lines = [json.loads(line) for line in (place / "r/metrics.jsonl").read_text().splitlines()]
    keys = [(line["step"], line["kind"]) for line in lines]
    assert len(keys) == len(set(keys)) and {step for step, kind in keys if kind == "train"} == set(
        range(1, 21)
    )
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)


def test_a_checkpoint_of_the_first_format_still_loads() -> None:
    """The reference was written once, by `make_reference` below; later versions must read it."""
    model, tokenizer = load(REFERENCE, checkpoint="last")
    assert isinstance(tokenizer, ByteTokenizer)
    logits = model(torch.arange(8)[None])
    expected = json.loads((REFERENCE / "expected.json").read_text())
    torch.testing.assert_close(logits[0, -1, :8], torch.tensor(expected["logits"]), rtol=0, atol=1e-5)
    optimizer = read_checkpoint(REFERENCE / "checkpoints/step-00000003").tensors("optimizer")
    assert "exp_avg_sq/blocks.0.mlp.up.weight" in optimizer


def make_reference() -> None:
    """Write tests/reference/format-1: python -c "import tests.test_resume as t; t.make_reference()"."""
    from engine.settings import TrainSettings
    from engine.training.optimizer import make_optimizer
    from engine.weights.saving import save_checkpoint
    from engine.weights.training_state import optimizer_tensors
    from model import GPT, GPTConfig

    config = GPTConfig(vocab_size=256, block_size=8, n_layer=1, n_head=2, n_embd=4)
    model = GPT(config)
    model.init_weights(1)
    optimizer = make_optimizer(model, TrainSettings())
    ids = torch.arange(8)[None]
    for _ in range(3):
        (model(ids, ids) / 8).backward()
        optimizer.step()
    meta = {"model": dataclasses.asdict(config), "step": 3, "tokenizer": ByteTokenizer().to_dict()}
    parts = {
        "model": dict(model.named_parameters()),
        "optimizer": optimizer_tensors(model, optimizer),
    }
    save_checkpoint(REFERENCE, meta, parts)
    expected = {"logits": model(ids)[0, -1, :8].tolist()}
    (REFERENCE / "expected.json").write_text(json.dumps(expected) + "\n")


def test_hashes_in_a_checkpoint_are_plain_sha256(place: Path) -> None:
    run_here("--out_dir=r", "--max_iters=1", "--eval_interval=1")
    folder = place / "r/checkpoints/step-00000001"
    meta = json.loads((folder / "meta.json").read_text())
    for name, expected in meta["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected


def test_a_divergence_names_the_step_and_the_first_bad_tensor(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sixth update's batch makes a weight's gradient infinite: by a hook that the replay meets again."""
    original = batches.Batches.step
    poisoned = {"on": False}

    def step(self: batches.Batches) -> object:
        poisoned["on"] = self.consumed == 5 * 8
        return original(self)

    from model import MLP

    forward = MLP.forward

    def poison(self: MLP, x: torch.Tensor) -> torch.Tensor:
        out = forward(self, x)
        return out / 0 if poisoned["on"] and self.training and out.shape[-1] == 32 else out

    monkeypatch.setattr(batches.Batches, "step", step)
    monkeypatch.setattr(MLP, "forward", poison)
    with pytest.raises(ValueError, match="diverged at step 6 ") as error:
        run_here("--out_dir=r")
    assert "replayed from step 0" in str(error.value) and "the output of blocks.0.mlp" in str(error.value)
    assert "learning rate 3e-03" in str(error.value) or "learning rate 0.003" in str(error.value)
    assert open_checkpoint(place / "r", "last").meta["step"] == 0


def test_a_spike_of_the_loss_ends_a_guarded_run(place: Path) -> None:
    with pytest.raises(ValueError, match="more than loss_spike"):
        run_here("--loss_spike=1.0001", "--learning_rate=1", "--warmup_iters=0")
