"""Runs found without being named; and for whatever is named wrongly, what may be meant."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import convert
import count
import eval as eval_script
import plot
import sample
import train
from engine.errors import UserError
from engine.runs import newest_run


def make_run(folder: Path, step: int, age: float) -> None:
    """A run's folder with a checkpoint of this age in seconds, and nothing in it."""
    checkpoint = folder / f"checkpoints/step-{step:08d}"
    checkpoint.mkdir(parents=True)
    os.utime(checkpoint, (10**9 - age, 10**9 - age))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs in out/, shakespeare_char saved last, and a text; the current folder."""
    monkeypatch.chdir(tmp_path)
    make_run(Path("out/other"), step=90, age=5)
    make_run(Path("out/shakespeare_char"), step=10, age=1)
    Path("notes.txt").write_text("some text")
    return tmp_path


def test_the_newest_run_is_the_one_that_was_saved_last(runs: Path) -> None:
    assert newest_run("to draw") == Path("out/shakespeare_char")
    (runs / "out").rename("elsewhere")
    with pytest.raises(UserError, match=r"no run in out/ to draw; train one: python train\.py"):
        newest_run("to draw")


@pytest.mark.parametrize(
    "script", [count.main, sample.main, plot.main, eval_script.main], ids=lambda main: main.__module__
)
def test_without_a_name_every_script_takes_the_newest_run(
    runs: Path, fails: Callable[..., str], script: Callable
) -> None:
    """Which is empty here, so the error names it."""
    assert "out/shakespeare_char" in fails(script)


@pytest.mark.parametrize(
    ("script", "arguments", "meant"),
    [
        (count.main, ["shakespeare_char"], "out/shakespeare_char"),
        (count.main, ["gpt5"], "gpt3"),
        (sample.main, ["--out_dir=shakespeare"], "out/shakespeare_char"),
        (sample.main, ["--init_from=gpt2-lage"], "gpt2-large"),
        (plot.main, ["out/shakespeare-char"], "out/shakespeare_char"),
        (eval_script.main, ["shakespeare_char"], "out/shakespeare_char"),
        (eval_script.main, ["--tasks", "hellaswg"], "hellaswag"),
        (convert.main, ["othr", "--to", "hf", "x"], "out/other"),
        (train.main, ["--init_from=resume", "--out_dir=other"], "out/other"),
        (train.main, ["--init_from=other"], "out/other"),
        (train.main, ["note.txt"], "notes.txt"),
    ],
)
def test_what_may_be_meant_is_said(
    runs: Path, fails: Callable[..., str], script: Callable, arguments: list[str], meant: str
) -> None:
    assert f"; did you mean {meant}?" in fails(script, *arguments)


def test_a_missing_argument_comes_with_an_example(fails: Callable[..., str]) -> None:
    said = fails(convert.main)
    assert said.endswith(
        "required: source, --to; for example: python convert.py out/shakespeare_char --to hf exported/"
    )
