"""Settings from the data's size: valid for any size, and only where nothing else says what to do."""

import contextlib
import dataclasses
import io
import json
import random
from pathlib import Path

import pytest
from support.commands import ROOT, command

from count import find_config
from engine.command_line import check_value, read_settings
from engine.parallel.world import ALONE
from engine.settings import TrainSettings
from engine.training.metrics import Console
from engine.training.setup import set_up
from engine.training.suggest import find_contradictions, suggest


def described(train: int, val: int) -> dict:
    """What of a meta.json counts here."""
    return {"files": [{"split": "train", "tokens": train}, {"split": "val", "tokens": val}]}


@pytest.mark.parametrize("on_cpu", [True, False])
def test_every_size_gets_settings_that_fit(on_cpu: bool) -> None:
    stream = random.Random(random.random())
    for _ in range(300):
        train = int(10 ** stream.uniform(1, 13))
        val = max(2, int(train * stream.choice([0.0005, 0.1])))
        given = stream.choice([{}, {}, {"n_embd": 96}, {"n_head": 5}, {"block_size": 7}, {"max_iters": 3}])
        found = suggest(described(train, val), on_cpu, given)
        assert found.get("eval_interval", 50) >= 50
        assert not found.keys() & given.keys()
        values = {name: check_value(TrainSettings, name, value, "suggest") for name, value in found.items()}
        settings = TrainSettings(**values | given)
        settings.check()
        assert "block_size" in given or settings.block_size < min(train, val)
        if not on_cpu and not given and 500 < settings.max_iters < 600_000:
            seen = settings.max_iters * settings.sequences_per_step() * settings.block_size / train
            assert 0.9 < seen < 31


def test_larger_data_gets_larger_models() -> None:
    widths = [suggest(described(int(10**power), 10**5), False, {})["n_embd"] for power in range(5, 12)]
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_training_without_a_configuration_prints_settings_and_obeys_the_command_line(place: Path) -> None:
    arguments = (
        "--dataset=topics",
        "--max_iters=2",
        "--n_embd=48",
        "--n_layer=1",
        "--eval_iters=1",
        "--threads=1",
    )
    finished = command(place, "train.py", *arguments, "--device=cpu", "--compile=False")
    assert finished.returncode == 0, finished.stderr
    (line,) = (line for line in finished.stdout.splitlines() if line.startswith("settings for data"))
    assert "block_size=64" in line and "n_embd" not in line and "max_iters" not in line
    settings = json.loads((place / "out/topics/config.json").read_text())["settings"]
    assert settings["block_size"] == 64 and settings["n_embd"] == 48 and settings["max_iters"] == 2


OWN = "dataset = 'topics'\nn_layer = 1\nn_head = 2\nn_embd = 8\nmax_iters = 2\n"


def started(place: Path, content: str, *arguments: str) -> tuple[str, dict]:
    """What train.py says with a configuration file of this content, and the settings of the run."""
    (place / "own.py").write_text(content)
    sources = read_settings(TrainSettings, ["own.py", "--device=cpu", "--out_dir=run", *arguments], "")
    with contextlib.ExitStack() as cleanup, contextlib.redirect_stdout(io.StringIO()) as output:
        found = set_up(sources, ALONE, Console(True), cleanup)
    assert found is not None
    return output.getvalue(), dataclasses.asdict(found[0].settings)


def test_a_file_of_ones_own_gets_settings_that_fit_its_data_for_what_it_leaves_out(place: Path) -> None:
    said, settings = started(place, OWN, "--batch_size=3")
    assert said.startswith("settings for data of this size (--NAME=VALUE changes one): ") and (
        "learning_rate=0.003" in said and "batch_size" not in said.splitlines()[0]
    )
    chosen = ("gradient_accumulation_steps", "warmup_iters", "block_size", "batch_size", "n_embd")
    assert [settings[name] for name in chosen] == [1, 0, 64, 3, 8]
    assert "warning" not in said
    assert find_config("own.py", cpu=True).block_size == 64  # count.py counts the same


def test_verbose_says_what_config_json_records(place: Path) -> None:
    quiet, _ = started(place, OWN, "--optimizer=muon")
    said, _ = started(place, OWN, "--optimizer=muon", "--verbose", "--out_dir=again")
    details = json.loads((place / "again/config.json").read_text())["details"]
    assert said.splitlines()[-len(details) :] == details and "memory: " not in quiet
    assert [line.split(":")[0] for line in details] == [
        "compile", "memory", "processes", "optimizer", "fingerprint of data/topics"
    ]  # fmt: skip


def test_what_a_file_of_nanogpts_leaves_out_keeps_nanogpts_default_and_it_is_said(place: Path) -> None:
    said, settings = started(place, OWN + "wandb_log = False\nbatch_size = 2\nblock_size = 16\n")
    assert settings["gradient_accumulation_steps"] == 40 and settings["warmup_iters"] == 2000
    assert said.startswith("note: own.py sets wandb_log, as nanoGPT's files do, so what it leaves out has ")
    assert "warmup_iters 2,000 is beyond the last step, 2, so the learning rate never exceeds 6e-07" in said


def test_a_resumed_run_keeps_what_was_filled_in(place: Path) -> None:
    (place / "own.py").write_text(OWN)
    line = ("own.py", "--device=cpu", "--eval_iters=1", "--sample_tokens=0", "--block_size=16")
    assert command(place, "train.py", *line).returncode == 0
    resumed = command(place, "train.py", *line, "--init_from=resume", "--max_iters=3")
    assert resumed.returncode == 0, resumed.stderr
    (run,) = (line for line in resumed.stdout.splitlines() if line.startswith("run: "))
    assert run.split("with ")[1].startswith("max_iters: 2 → 3; the learning rate"), run


FOR_TRAINING = [file for file in sorted((ROOT / "configs").glob("*.py")) if "dataset" in file.read_text()]


@pytest.mark.parametrize("file", FOR_TRAINING, ids=lambda file: file.stem)
@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_files_that_ship_leave_nothing_out_that_depends_on_the_data(file: Path, on_cpu: bool) -> None:
    sources = read_settings(TrainSettings, [str(file)], "")
    from_weights = sources.get("init_from") != "scratch"
    assert not suggest(described(10**9, 10**6), on_cpu, sources.given(on_cpu), from_weights)
    assert not find_contradictions(sources.settings(on_cpu), 10**6)


@pytest.mark.parametrize(
    ("change", "tokens", "said"),
    [
        ({"max_iters": 99}, 10**6, "the learning rate never exceeds 3e-05 of 0.0006"),
        ({"lr_decay_iters": 99}, 10**6, "is 6e-05 at once"),
        ({"decay_lr": False, "max_iters": 99}, 10**6, None),
        ({}, 10**5, "= 491,520 tokens reads the 100,000 training tokens 4.9 times"),
        ({}, 10**6, None),
    ],
)
def test_settings_that_contradict_each_other_are_said_in_figures(
    change: dict, tokens: int, said: str | None
) -> None:
    found = find_contradictions(TrainSettings(**change), tokens)
    assert [said in sentence for sentence in found] == ([] if said is None else [True])
