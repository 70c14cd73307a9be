"""What is said never ends a run."""

import os
import subprocess
import sys
from pathlib import Path

from support.commands import HANG, ROOT, command

from engine.weights.checkpoint import open_checkpoint


def test_characters_that_the_output_cannot_show_are_escaped(place: Path) -> None:
    """The arrow of a changed setting, and samples of any text."""
    assert command(place, "train.py", "tiny.py", "--max_iters=2").returncode == 0
    finished = command(
        place, "train.py", "tiny.py", "--init_from=resume", "--max_iters=4", PYTHONIOENCODING="ascii"
    )
    assert finished.returncode == 0, finished.stderr
    assert "max_iters: 2 \\u2192 4" in finished.stdout
    assert open_checkpoint(place / "out/tiny", "last").meta["step"] == 4


def test_a_closed_pipe_does_not_end_the_run(place: Path) -> None:
    """python train.py tiny.py | head -1"""
    reader, writer = os.pipe()
    line = [sys.executable, str(ROOT / "train.py"), "tiny.py"]
    process = subprocess.Popen(line, cwd=place, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 0 and errors == ""
    assert open_checkpoint(place / "out/tiny", "last").meta["step"] == 20
