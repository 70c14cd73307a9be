"""What a user can get wrong: one line that names it, status 2, no traceback, nothing left behind."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import command, torchrun
from support.listing import listing

import plot
import prepare
import sample
import train


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.py"], "no configuration file missing.py"),
        (["tiny.py", "--lerning_rate=1"], "did you mean learning_rate"),
        (["tiny.py", "--n_layer=x"], "whole number"),
        (["tiny.py", "--n_head=3"], "n_embd 32 is not divisible by n_head 3"),
        (["tiny.py", "--dataset=nowhere"], "no data set data/nowhere"),
        (["tiny.py", "--block_size=100000"], "not longer than block_size"),
        (["tiny.py", "--device=tpu"], "device 'tpu' is not known"),
        (["tiny.py", "--init_from=resume"], "no run to resume"),
        (["tiny.py", "--init_from=resume", "--out_dir=nowhere"], "no run to resume in nowhere"),
        (["tiny.py", "--out_dir=tiny.py/below"], "cannot be made"),
    ],
)
def test_train(place: Path, fails: Callable[..., str], arguments: list[str], said: str) -> None:
    before = listing(place)
    assert said in fails(train.main, *arguments)
    assert listing(place) == before


def test_sample_without_a_run(place: Path, fails: Callable[..., str]) -> None:
    assert "no run in out/ to sample from" in fails(sample.main)
    assert "holds no checkpoint" in fails(sample.main, "--out_dir=nowhere")


@pytest.fixture
def trained(place: Path) -> Path:
    """A folder with the shortest possible run in out/tiny."""
    train.main(["tiny.py", "--max_iters=1", "--eval_interval=1", "--sample_tokens=0"])
    return place


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--top_k=0"], "top_k is 0"),
        (["--top_p=0"], "top_p is 0"),
        (["--temperature=-1"], "temperature is -1"),
        (["--temperature=nan"], "temperature is nan"),
        (["--num_samples=0"], "num_samples is 0"),
        (["--start=\u03a9mega"], "'\u03a9' (U+03A9, position 0)"),
        (["--start="], "prompt is empty"),
        (["--start=FILE:nowhere.txt"], "nowhere.txt cannot be read"),
        (["--checkpoint=step-00000009"], "no checkpoint step-00000009"),
        (["--checkpoint=../.."], "no checkpoint ../.."),
    ],
)
def test_sample(trained: Path, fails: Callable[..., str], arguments: list[str], said: str) -> None:
    assert said in fails(sample.main, "--device=cpu", *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out_dir=out/tiny"], "already holds a run"),
        (["--init_from=resume", "--block_size=16"], "block_size is 16, but the checkpoint"),
        (["--init_from=resume", "--n_layer=3"], "it takes n_layer=2"),
        (["--init_from=resume", "--seed=1"], "seed is 1"),
        (["--init_from=resume", "--checkpoint=step-00000007"], "no checkpoint step-00000007"),
    ],
)
def test_going_on_with_a_run(
    trained: Path, fails: Callable[..., str], arguments: list[str], said: str
) -> None:
    before = listing(trained)
    assert said in fails(train.main, "tiny.py", *arguments)
    assert listing(trained) == before


def test_another_vocabulary_is_refused_on_resume(trained: Path, fails: Callable[..., str]) -> None:
    (trained / "data").unlink()
    (trained / "topics.txt").write_text("another text, with other characters: \u03b1\u03b2\u03b3\n" * 500)
    prepare.main(["topics.txt"])
    assert "vocabulary of data/topics" in fails(train.main, "tiny.py", "--init_from=resume", "--max_iters=2")


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (b"", ["text.txt"], "empty"),
        (b"fine\nnot \xff fine", ["text.txt"], "text.txt is not UTF-8 (byte 9, line 2)"),
        (b"x" * 100, ["some", "--input", "nowhere.txt"], "nowhere.txt cannot be read"),
        (b"x" * 100, ["../escape", "--input", "text.txt"], "cannot name a data set"),
        (b"x" * 100, ["text.txt", "--val=1"], "between 0 and 1"),
        (b"x" * 100, ["text.txt", "--tokenizer=words"], "invalid choice: 'words'"),
        (b"x" * 100, ["unknown"], "no recipe"),
    ],
)
def test_prepare(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
    content: bytes,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_bytes(content)
    assert said in fails(prepare.main, *arguments)
    assert os.listdir(tmp_path) == ["text.txt"]


def test_plot_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no run in out/ to draw" in fails(plot.main)
    assert "holds no run" in fails(plot.main, "nowhere")


def test_the_line_comes_once_under_torchrun_and_from_the_real_command(place: Path) -> None:
    finished = command(place, "train.py", "tiny.py", "--n_head=3")
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1 and not finished.stdout
    finished = torchrun(place, 2, "train.py", "tiny.py", "--n_head=3")
    assert finished.returncode != 0 and finished.stderr.count("error: n_embd 32 is not divisible") == 1
    finished = torchrun(place, 3, "train.py", "tiny.py")
    assert finished.stderr.count("numbers that can: 1, 2, 4, 8") == 1


def test_debug_shows_where_an_error_comes_from(place: Path) -> None:
    finished = command(place, "train.py", "tiny.py", "--n_head=3", "--debug")
    assert finished.returncode == 1 and "Traceback" in finished.stderr
