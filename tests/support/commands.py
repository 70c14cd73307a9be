"""The project's real commands, as a person runs them, and the text that they run on."""

import atexit
import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

ROOT = Path(__file__).resolve().parents[2]


TEXT = "\n\n".join(topics[name] for name in sorted(topics))[:120_000]


HANG = 300  # seconds after which a command must have hung


# Small enough that a step takes milliseconds, with everything switched on that has a state to get wrong.
TINY = """
device = "cpu"
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


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train"])  # which imports torch and most of the engine, once


def command(
    folder: Path, script: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run one of the project's scripts in a folder, as a person would.

    Without an environment of its own it runs in a fork of a process that has imported torch already: that
    saves the two seconds of a start.
    """
    if environment:
        return subprocess.run(
            [sys.executable, str(ROOT / script), *arguments], cwd=folder, env=os.environ | environment,
            capture_output=True, text=True, timeout=HANG,
        )  # fmt: skip
    return in_forks(folder, [str(ROOT / script), *arguments], [{}])


def several(folder: Path, processes: int, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the project's scripts in several processes, with the variables that torchrun would set."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    ranks = [shared | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(processes)]
    return in_forks(folder, [str(ROOT / script), *arguments], ranks)


def in_forks(
    folder: Path, line: list[str], variables: list[dict[str, str]]
) -> subprocess.CompletedProcess[str]:
    """Run a script in a fork for each set of variables; outputs one after the other, the worst exit status.

    Where one fails the others end, too.
    """
    with tempfile.TemporaryDirectory() as place:
        outputs = [
            [Path(place, f"{name}{number}") for name in ("out", "err")] for number in range(len(variables))
        ]
        forks = [
            FORKS.Process(target=run_as_main, args=(folder, line, dict(os.environ) | own, files))
            for own, files in zip(variables, outputs, strict=True)
        ]
        for fork in forks:
            fork.start()
        deadline, waiting = time.monotonic() + HANG, [fork.sentinel for fork in forks]
        while waiting:
            ended = multiprocessing.connection.wait(waiting, deadline - time.monotonic())
            if not ended or any(fork.exitcode for fork in forks):
                for fork in forks:
                    fork.kill()
            if not ended:
                raise subprocess.TimeoutExpired(line, HANG)
            waiting = [sentinel for sentinel in waiting if sentinel not in ended]
        for fork in forks:
            fork.join()
        texts = ["".join(files[kind].read_text() for files in outputs) for kind in (0, 1)]
    return subprocess.CompletedProcess(line, max((fork.exitcode or 0 for fork in forks), key=abs), *texts)


def run_as_main(folder: Path, line: list[str], environment: dict[str, str], outputs: list[Path]) -> None:
    """Run a script as `python SCRIPT …` does, in this process, its two outputs written to files."""
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    sys.argv, sys.path[0] = line, str(Path(line[0]).parent)
    try:
        runpy.run_path(line[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


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
