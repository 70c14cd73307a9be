"""sweep.py: every combination once, a table with mean and spread, and nothing twice."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import sweep

LINE = ["tiny.py", "--learning_rate=1e-3,1e-30", "--seed=1,2", "--max_iters=4", "--eval_interval=4"]


def test_a_sweep_makes_each_run_once_and_prints_the_best_first(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.main([*LINE[:2], "--seed=1", *LINE[3:]])
    sweep.main(LINE)  # goes on with the two that are missing
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said if " of " in line] == ["1 of 2", "2 of 2"] * 2
    results = [json.loads(line) for line in (place / "out/sweep-tiny/results.jsonl").read_text().splitlines()]
    assert len(results) == 4 and {result["settings"]["seed"] for result in results} == {"1", "2"}
    best, worst = said[-2:]
    losses = [r["val_loss"] for r in results if r["settings"]["learning_rate"] == "1e-3"]
    assert best.startswith(f"{sum(losses) / 2:.4f} ± ") and best.endswith(
        "2  python train.py tiny.py --learning_rate=1e-3 --max_iters=4 --eval_interval=4"
    )
    assert "--learning_rate=1e-30" in worst


def test_a_mistake_is_named_before_anything_is_started(place: Path, fails: Callable[..., str]) -> None:
    assert "did you mean learning_rate" in fails(sweep.main, "tiny.py", "--lr=1e-3,3e-3")
    assert "--name=value,value" in fails(sweep.main, "tiny.py", "seed", "1")
    assert not (place / "out").exists()
