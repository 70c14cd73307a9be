"""The surroundings of every test: its random numbers, caches and encoding; a small data set; the commands."""

import hashlib
import os
import random
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

from support.commands import TEXT, TINY, command

# One thread for each process: tests run side by side, and figures of lessons are those of one thread.
os.environ["OMP_NUM_THREADS"] = "1"
# Commands, and the processes that xdist starts, read and write UTF-8 under any locale.
os.environ["PYTHONUTF8"] = "1"
os.environ.pop("PYTHONIOENCODING", None)

import pytest

# Where libraries keep what they make: matplotlib, wandb, and whatever follows XDG's rules.
CACHE_VARIABLES = (
    "XDG_CACHE_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR", "HF_HOME", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="seed of the tests' random numbers (default: a fresh one)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed, and give libraries a folder to write to: the home folder may be read-only.

    The processes that xdist starts inherit both.
    """
    if config.option.markexpr.strip() != "gpu":
        # The CPU computes, also where there is a GPU: its results are the ones that the tests expect.
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""
    if hasattr(config, "workerinput"):
        return
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(2**32)
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(config.option.seed)
    folder = tempfile.TemporaryDirectory(prefix="plaingpt-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ |= dict.fromkeys(CACHE_VARIABLES, folder.name)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Print the seed. (The usual place, the header, is not shown with -q.)"""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"random numbers: to repeat these, add --seed={session.config.option.seed}")


def seed_all(seed: int, name: str) -> None:
    """Seed the generators of Python, numpy and torch by the session's seed and the name of who draws."""
    import numpy as np  # the process that only hands out tests does without
    import torch

    number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """A fixture that several tests share draws the same numbers, whichever of them comes first."""
    if fixturedef.scope != "function":
        seed_all(request.config.option.seed, f"{fixturedef.baseid} {fixturedef.argname}")
    return (yield)


@pytest.fixture(autouse=True)
def random_numbers(request: pytest.FixtureRequest) -> None:
    """Every test has random numbers of its own, which do not depend on the tests before it."""
    seed_all(request.config.option.seed, request.node.nodeid)


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
        with pytest.raises(SystemExit) as exit_info:
            run_script(main, list(arguments))
        lines = capfd.readouterr().err.strip().splitlines()
        assert exit_info.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return run
