"""Settings from the data's size: valid for any size, and only where nothing else says what to do."""

import json
import random
from pathlib import Path

import pytest
from support.commands import TINY, command

from engine.command_line import check_value
from engine.settings import TrainSettings
from engine.training.suggest import suggest


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
    (line,) = (line for line in finished.stdout.splitlines() if line.startswith("no configuration file"))
    assert "block_size=64" in line and "n_embd" not in line and "max_iters" not in line
    settings = json.loads((place / "out/topics/config.json").read_text())["settings"]
    assert settings["block_size"] == 64 and settings["n_embd"] == 48 and settings["max_iters"] == 2
    (place / "tiny.py").write_text(TINY)
    second = command(place, "train.py", "tiny.py", "--max_iters=1", "--dataset=topics", "--compile=False")
    assert second.returncode == 0 and "no configuration file" not in second.stdout
