"""Real English text that every Python carries, a data set made of it, and the real commands."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from support.commands import TEXT, TINY, command

# One thread for each process: tests run side by side, and figures of lessons are those of one thread.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/topics, prepared by the real command."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "topics.txt").write_text(TEXT, encoding="utf-8")
    finished = command(folder, "prepare.py", "topics.txt")
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture
def place(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, the current one, with the data set and tiny.py in it."""
    (tmp_path / "data").symlink_to(prepared / "data", target_is_directory=True)
    (tmp_path / "tiny.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script's main in this process and return its one line of error; it must end in status 2."""
    from engine.command_line import run_script

    def run(main: Callable, *arguments: str) -> str:
        old, sys.argv = sys.argv, ["script", *arguments]
        try:
            with pytest.raises(SystemExit) as exit_info:
                run_script(main)
        finally:
            sys.argv = old
        lines = capfd.readouterr().err.strip().splitlines()
        assert exit_info.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return run
