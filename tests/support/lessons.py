"""Lessons, imported and run in this process as their tests want them."""

import importlib
import io
import os
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

import pytest
import torch

from support.commands import ROOT

FOLDER = ROOT / "lessons"
LESSONS = sorted(path.relative_to(FOLDER) for path in FOLDER.glob("[0-9]_*/[0-9]_*.py"))
FULL = os.environ.get("LESSONS") == "full"
only_in_full = pytest.mark.skipif(not FULL, reason="takes minutes; ask for it with LESSONS=full")

# One seed in every run of the tests; the others where slow tests are asked for.
seeds = pytest.mark.parametrize(
    "seed",
    (101, *(pytest.param(i, marks=pytest.mark.slow(reason="the same, other dice")) for i in (102, 103))),
)

sys.path.insert(0, str(FOLDER))


def lesson(name: str) -> ModuleType:
    """The module of a lesson, as "3_gpt/1_bigram"."""
    return importlib.import_module(name.replace("/", "."))


def learn(name: str, pictures: Path, **options: int) -> dict[str, float]:
    """Run a lesson with few steps on one thread; its figures. Its picture must be there.

    Where the variable LESSONS_RAN names a folder, what was printed and drawn is kept there, and
    `lessons/book.py --reuse` need not run the lesson again.
    """
    torch.set_num_threads(1)
    printed, picture = io.StringIO(), pictures / f"{name}.png"
    with redirect_stdout(printed):
        figures = lesson(name).main(**{"quick": True, "seed": 1} | options)
    print(printed.getvalue())
    assert picture.stat().st_size > 5_000
    if folder := os.environ.get("LESSONS_RAN"):
        kept = Path(folder, name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.with_suffix(".txt").write_text(printed.getvalue(), encoding="utf-8")
        shutil.copy(picture, kept.with_suffix(".png"))
    return figures


def hold(figures: dict[str, float], bounds: dict[str, tuple[float, float]]) -> None:
    """Assert that each figure lies within its bounds."""
    outside = {
        name: figures[name] for name, (low, high) in bounds.items() if not low <= figures[name] <= high
    }
    assert not outside, outside
