"""Runs and their checkpoints, found by their folders. Imports no torch."""

import re
from collections.abc import Iterable
from pathlib import Path

from engine.errors import UserError, did_you_mean

RUNS_FOLDER = Path("out")
STEP_NAME = re.compile(r"step-(\d{8,})")


def checkpoint_folders(run: Path) -> list[Path]:
    """The run's checkpoints, the newest first."""
    folder = run / "checkpoints"
    found = [path for path in folder.iterdir() if STEP_NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def find_runs(root: Path = RUNS_FOLDER, name: str | None = None) -> list[Path]:
    """Folders with checkpoints, the last saved first; with `name` only NAME, NAME-2, NAME-3, …."""
    if not root.is_dir():
        return []
    pattern = re.compile(r".+" if name is None else re.escape(name) + r"(-\d+)?")
    runs = [path for path in root.iterdir() if pattern.fullmatch(path.name) and checkpoint_folders(path)]
    return sorted(runs, key=lambda path: checkpoint_folders(path)[0].stat().st_mtime, reverse=True)


def newest_run(purpose: str) -> Path:
    """The run in out/ that was saved last. Raises UserError, naming the purpose, if there is none."""
    runs = find_runs()
    if not runs:
        raise UserError(
            f"there is no run in {RUNS_FOLDER}/ {purpose}; train one: "
            "python train.py configs/shakespeare_char.py"
        )
    return runs[0]


def similar_run(name: str, others: Iterable[str] = (), otherwise: str = "") -> str:
    """`did_you_mean` for the name of a run, or one of `others`, that does not exist."""
    return did_you_mean(name, [*map(str, find_runs()), *others], otherwise=otherwise)
