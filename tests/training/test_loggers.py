"""Logging to other programs: which part of their run a resumed run goes on with."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.training.loggers import GuardedLogger, LoggedRun, TensorBoard, Trackio, Wandb
from engine.training.metrics import Console, MetricsLog


def logged_run(folder: Path, **changes: Any) -> LoggedRun:
    """What a logger is told of a run called tiny; a new one but for the changes."""
    told = {"id": None, "step": 0, "repeats": False} | changes
    return LoggedRun(project="p", name="tiny", folder=folder, settings={}, **told)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the package: `mode` is what it is set to, `given` what `init` was called with."""
    module = SimpleNamespace(mode="online", given=None)

    def init(**given: Any) -> SimpleNamespace:
        module.given = given
        settings = SimpleNamespace(mode=module.mode, sync_dir="a b/offline-run")
        return SimpleNamespace(id=given["id"] or "new", url="https://there", settings=settings, finish=list)

    module.init, module.Settings = init, dict
    module.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=module.mode))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_goes_on_with_a_run_that_ended_where_this_one_begins(wandb: Any, tmp_path: Path) -> None:
    logger = Wandb(logged_run(tmp_path, id="old", step=10))
    assert logger.id == "old" and wandb.given["resume"] == "allow" and wandb.given["name"] == "tiny"


@pytest.mark.parametrize(("mode", "repeats"), [("online", True), ("offline", False), ("offline", True)])
def test_wandb_begins_a_part_for_repeated_steps_and_offline(
    wandb: Any, tmp_path: Path, mode: str, repeats: bool
) -> None:
    wandb.mode = mode
    logger = Wandb(logged_run(tmp_path, id="old", step=10, repeats=repeats))
    assert logger.id == "new" and wandb.given["id"] is None and wandb.given["resume"] is None
    assert (wandb.given["group"], wandb.given["name"]) == ("tiny", "tiny from step 10")


def test_the_command_that_shows_an_offline_run_is_printed(
    wandb: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.mode = "offline"
    GuardedLogger("wandb", logged_run(tmp_path), Console(is_main=True)).finish()
    assert capsys.readouterr().out == "wandb: wandb sync 'a b/offline-run'\n"


def test_trackio_begins_a_part_for_repeated_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[tuple[Any, ...]] = []
    module = SimpleNamespace(init=lambda project, name, **more: given.append((name, more["resume"])))
    monkeypatch.setitem(sys.modules, "trackio", module)
    for changes in ({}, {"step": 10}, {"step": 10, "repeats": True}):
        Trackio(logged_run(tmp_path, **changes))
    assert given == [("tiny", "never"), ("tiny", "allow"), ("tiny from step 10", "allow")]


def test_tensorboard_shows_the_last_value_of_a_repeated_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, loss in ((0, 3.0), (1, 2.0)):
        logger = TensorBoard(logged_run(tmp_path, step=begin, repeats=begin > 0))
        for step in range(begin + 1, 4):
            logger.log({"kind": "train", "step": step, "loss": loss + step}, step)
        logger.finish()
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    assert [(one.step, one.value) for one in seen.Scalars("train/loss")] == [(1, 4.0), (2, 4.0), (3, 5.0)]


def test_the_log_tells_whether_steps_are_repeated(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for begin, repeats in ((-1, False), (2, False), (1, True)):
        log = MetricsLog(path)
        assert log.start(begin) is repeats
        for step in range(begin + 1, 3):
            log.record({"step": step})
        log.close()
    assert len(path.read_text().splitlines()) == 3
