"""Lessons, imported and run in this process as their tests want them."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from support.commands import ROOT

FOLDER = ROOT / "lessons"
LESSONS = sorted(path.relative_to(FOLDER) for path in FOLDER.glob("[0-9]_*/[0-9]_*.py"))
FULL = os.environ.get("LESSONS") == "full"
only_in_full = pytest.mark.skipif(not FULL, reason="takes minutes; ask for it with LESSONS=full")

sys.path.insert(0, str(FOLDER))


def lesson(name: str) -> ModuleType:
    """The module of a lesson, as "3_gpt/1_bigram"."""
    return importlib.import_module(name.replace("/", "."))


def learn(name: str, pictures: Path, **options: int) -> dict[str, float]:
    """Run a lesson with few steps on one thread; its figures. Its picture must be there."""
    torch.set_num_threads(1)
    figures = lesson(name).main(**{"quick": True, "seed": 1} | options)
    assert (pictures / f"{name}.png").stat().st_size > 5_000
    return figures


def hold(figures: dict[str, float], bounds: dict[str, tuple[float, float]]) -> None:
    """Assert that each figure lies within its bounds."""
    outside = {
        name: figures[name] for name, (low, high) in bounds.items() if not low <= figures[name] <= high
    }
    assert not outside, outside
