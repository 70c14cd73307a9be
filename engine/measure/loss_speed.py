"""Compare two configurations: their final losses and training times, over several seeds, in turns."""

import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError
from engine.measure.timing import summary
from engine.measure.training_step import PLAIN, ROOT
from engine.training.metrics import read_metrics


@dataclass(frozen=True)
class Outcome:
    """The end of a run: validation loss in nats over the whole split, and seconds of training."""

    loss: float
    seconds: float


def measure_loss(options: Namespace) -> None:
    """Train both configurations with each seed, in turns; print validation losses and seconds."""
    plain = ["configs/shakespeare_char.py", *(f"--{name}={value}" for name, value in PLAIN.items())]
    names = [options.config or "configs/shakespeare_char_fast.py", options.compare or "the plain setting"]
    lines = [names[0].split(), plain if options.compare is None else options.compare.split()]
    outcomes = race(lines, options.seeds)
    for name, found in zip(names, outcomes, strict=True):
        print(report(name, found))
    ratios = [mine.seconds / theirs.seconds for mine, theirs in zip(*outcomes, strict=True)]
    print(f"{names[0]} takes {summary([100 * ratio for ratio in ratios])} % of the other's time")


def race(lines: Sequence[Sequence[str]], seeds: Sequence[int]) -> list[list[Outcome]]:
    """Run each command line of train.py with each seed, in turns; return the outcomes per line."""
    outcomes: list[list[Outcome]] = [[] for _ in lines]
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for number, line in enumerate(lines):
                outcomes[number].append(run(line, seed, Path(folder, f"{number}-{seed}")))
    return outcomes


def run(line: Sequence[str], seed: int, folder: Path) -> Outcome:
    """Train in a new process, on the data in the current folder, and read the result."""
    fixed = [f"--seed={seed}", f"--out_dir={folder}", "--eval_iters=None", "--sample_tokens=0"]
    fixed += ["--eval_interval=1000000", "--keep_checkpoints=1"]
    finished = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *line, *fixed], stdout=subprocess.DEVNULL
    )
    if finished.returncode:
        raise UserError(f"train.py {' '.join(line)} ended with status {finished.returncode}")
    last = [entry for entry in read_metrics(folder / "metrics.jsonl") if entry["kind"] == "eval"][-1]
    return Outcome(last["val_loss"], last["seconds"])


def report(name: str, outcomes: Sequence[Outcome]) -> str:
    """One line: the mean loss with its range, and the median of the seconds."""
    losses = [outcome.loss for outcome in outcomes]
    seconds = statistics.median(outcome.seconds for outcome in outcomes)
    spread = f"{statistics.fmean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"
    return f"{name}: validation loss {spread} over {len(losses)} seeds, {seconds:.1f} s of training"
