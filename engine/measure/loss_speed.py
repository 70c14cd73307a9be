"""Compare two configurations: their final losses and training times, over several seeds, in turns."""

import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.command_line import ROOT
from engine.errors import UserError
from engine.measure.timing import ratios, summary
from engine.measure.training_step import PLAIN
from engine.training.metrics import read_metrics


def measure_loss(options: Namespace) -> None:
    """Train both configurations with each seed, in turns; print validation losses and seconds."""
    plain = ["configs/shakespeare_char.py", *(f"--{name}={value}" for name, value in PLAIN.items())]
    names = [options.config or "configs/shakespeare_char_fast.py", options.compare or "the plain setting"]
    lines = [names[0].split(), plain if options.compare is None else options.compare.split()]
    outcomes: list[list[dict[str, Any]]] = [[] for _ in lines]
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for number, line in enumerate(lines):
                outcomes[number].append(train_to_the_end(line, seed, Path(folder, f"{number}-{seed}")))
    seconds = [[outcome["seconds"] for outcome in found] for found in outcomes]
    for name, found, spent in zip(names, outcomes, seconds, strict=True):
        losses = [outcome["val_loss"] for outcome in found]
        spread = f"{statistics.fmean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"
        spent = f"{statistics.median(spent):.1f} s of training"
        print(f"{name}: validation loss {spread} over {len(losses)} seeds, {spent}")
    shares = [100 * ratio for ratio in ratios(*seconds)]
    print(f"{names[0]} takes {summary(shares)} % of the other's time")


def train_to_the_end(line: Sequence[str], seed: int, folder: Path) -> dict[str, Any]:
    """Train in a new process; the last evaluation, of the whole split. Raises UserError."""
    fixed = [f"--seed={seed}", f"--out_dir={folder}", "--eval_iters=None", "--sample_tokens=0"]
    fixed += ["--eval_interval=1000000", "--keep_checkpoints=1"]
    finished = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *line, *fixed], stdout=subprocess.DEVNULL
    )
    if finished.returncode:
        raise UserError(f"train.py {' '.join(line)} ended with status {finished.returncode}")
    return [entry for entry in read_metrics(folder / "metrics.jsonl") if entry["kind"] == "eval"][-1]
