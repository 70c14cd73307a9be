"""What a run has left behind, and starting one that is to be interrupted."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from engine.training.metrics import read_metrics
from engine.weights.checkpoint import open_checkpoint
from support.commands import HANG, ROOT, command


def losses(run: Path, kind: str = "train") -> dict[int, float]:
    """The losses in metrics.jsonl by step."""
    key = "loss" if kind == "train" else "val_loss"
    return {line["step"]: line[key] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == kind}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors are equal, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def tensors(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    """All weights and optimizer tensors of a checkpoint."""
    checkpoint = open_checkpoint(run, which)
    return checkpoint.tensors("model") | checkpoint.tensors("optimizer")


def train(folder: Path, *arguments: str) -> str:
    """Run train.py; its output."""
    finished = command(folder, "train.py", "tiny.py", *arguments)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def kill_and_restart(folder: Path, run: str, kills: int, lines: range, script: str, *arguments: str) -> None:
    """Start a script again and again, each time killed after so many of its lines, until it was so often.

    It makes or resumes the run in `run`. One that ends before it is killed begins from scratch.
    """
    done = 0
    while done < kills:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *arguments, "--init_from=auto", f"--out_dir={run}"],
            cwd=folder, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        for _ in range(random.choice(lines)):
            if not process.stdout.readline():
                break
        process.kill()
        process.communicate()
        done += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            shutil.rmtree(folder / run)
            done = 0


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something holds; give up where it must have hung."""
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.02)


def heed_signals() -> None:
    """Heed the signals that nohup, or a shell's &, lets this process and its children ignore."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def start(
    place: Path,
    processes: int,
    *options: str,
    arguments: tuple[str, ...] = (),
    prefix: tuple[str, ...] = (),
) -> subprocess.Popen[str]:
    """Start a run that would take for ever, alone or under torchrun; returns when it is training.

    `prefix` is a command that starts the command, such as nohup.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *options]
    line = [*prefix, sys.executable, *(torchrun if processes > 1 else []), str(ROOT / "train.py"), "tiny.py"]
    line += [
        "--max_iters=1000000",
        "--eval_interval=1000000",
        "--lr_decay_iters=1000",
        "--out_dir=r",
        *arguments,
    ]
    process = subprocess.Popen(
        line,
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=heed_signals,
    )
    metrics = place / "r/metrics.jsonl"
    wait_for(lambda: process.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") > 5))
    assert process.poll() is None, process.stdout.read()
    return process
