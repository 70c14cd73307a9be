"""What an evaluation covers does not depend on settings of speed, nor change within a run."""

import json
import re
from pathlib import Path

import pytest
from support.checkpoints import reseal
from support.runs import losses

import train as train_script
from engine.training.metrics import read_metrics
from engine.weights.checkpoint import checkpoint_folders, open_checkpoint

RUN = ("tiny.py", "--out_dir=r", "--sample_tokens=0", "--dtype=float64")


def train(*arguments: str) -> None:
    assert train_script.main([*RUN, *arguments]) == 0


def forget_windows(folder: Path) -> None:
    """Make a checkpoint as it was before it held the number of windows."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["evaluation_windows"], meta["steps_without_targets"]
    (folder / "meta.json").write_text(json.dumps(meta))
    reseal(folder)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 64])
def test_batch_size_does_not_change_an_evaluation(
    place: Path, capsys: pytest.CaptureFixture[str], batch_size: int
) -> None:
    train("--max_iters=2")
    expected = losses(place / "r", "eval")[2]
    capsys.readouterr()
    train("--init_from=resume", "--eval_only=True", f"--batch_size={batch_size}")
    assert f"validation loss {expected:.4f}" in capsys.readouterr().out


def test_a_resumed_run_evaluates_on_the_windows_that_it_began_with(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--max_iters=10", "--eval_interval=5")
    train("--init_from=resume", "--batch_size=2", "--gradient_accumulation_steps=4")
    assert "evaluation: " not in capsys.readouterr().out
    meta = open_checkpoint(place / "r", "last").meta
    assert meta["evaluation_windows"] == 4 * 4  # eval_iters × the first batch_size


def test_a_checkpoint_without_the_number_fixes_it_at_its_first_resume(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--max_iters=10")
    (newest, *_) = checkpoint_folders(place / "r")
    forget_windows(newest)
    capsys.readouterr()
    train("--init_from=resume", "--max_iters=11", "--learning_rate=1e-9", "--min_lr=1e-9")
    output = capsys.readouterr().out
    assert output.count("evaluation: from here on 16 windows of each split") == 1
    assert re.search(r"step 11: .*\(best\)", output)
    assert open_checkpoint(place / "r", "best").meta["step"] == 11
    train("--init_from=resume", "--max_iters=12", "--batch_size=2", "--gradient_accumulation_steps=4")
    assert "evaluation: " not in capsys.readouterr().out
    assert open_checkpoint(place / "r", "last").meta["evaluation_windows"] == 16


def test_another_eval_iters_takes_other_windows_and_says_that_best_starts_anew(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--max_iters=10")
    capsys.readouterr()
    more = ("--init_from=resume", "--max_iters=11", "--batch_size=2", "--gradient_accumulation_steps=4")
    train(*more, "--eval_iters=3")
    output = capsys.readouterr().out
    assert "evaluation: from here on 12 windows of each split (eval_iters has changed)" in output
    meta = open_checkpoint(place / "r", "last").meta
    assert meta["evaluation_windows"] == 12 and meta["best_step"] == 11
    train("--init_from=resume", "--max_iters=12", "--eval_iters=none")
    assert "from here on all windows of each split" in capsys.readouterr().out
    assert open_checkpoint(place / "r", "last").meta["evaluation_windows"] is None


def test_the_checkpoint_is_there_before_the_losses_are_told(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []

    def say(self: object, text: str = "") -> None:
        if text.startswith("step 10: training loss"):
            said.append((place / "r/checkpoints/step-00000010/meta.json").exists())

    monkeypatch.setattr("engine.training.metrics.Console.say", say)
    train("--max_iters=10")
    assert said == [True]
    assert any(line["kind"] == "eval" for line in read_metrics(place / "r/metrics.jsonl"))
