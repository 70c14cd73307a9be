"""Real English text that every Python carries, a data set made of it, and the real commands."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

# One thread for each process: tests run side by side, and figures of lessons are those of one thread.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = "\n\n".join(topics[name] for name in sorted(topics))[:120_000]
HANG = 300  # seconds after which a command must have hung

# Small enough that a step takes milliseconds, with everything switched on that has a state to get wrong.
TINY = """
dataset = "topics"
gradient_accumulation_steps = 2
batch_size = 4
block_size = 32
n_layer = 2
n_head = 2
n_embd = 32
dropout = 0.1
learning_rate = 3e-3
max_iters = 20
warmup_iters = 5
eval_interval = 10
eval_iters = 4
log_interval = 1
sample_tokens = 16
threads = 1
"""


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


def command(
    folder: Path, script: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run one of the project's scripts in a folder, as a person would."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=HANG,
    )


def torchrun(folder: Path, processes: int, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the project's scripts in several processes."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]
    return subprocess.run(
        [*launcher, str(ROOT / script), *arguments], cwd=folder, capture_output=True, text=True, timeout=HANG
    )


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script's main in this process and return its one line of error; it must end in status 2."""
    from engine.errors import run_script

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
