"""The time from starting train.py to its first step."""

import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from engine.command_line import ROOT
from engine.measure.timing import ratios, seconds_of, summary, take_turns
from engine.measure.training_step import PLAIN

LEAST = (
    "import torch; p = torch.nn.Parameter(torch.ones(2)); p.sum().backward(); torch.optim.AdamW([p]).step()"
)


def measure_start(options: Namespace) -> None:
    """Time train.py up to its first step, against importing torch and making one optimizer step."""
    settings = PLAIN | {"max_iters": 1, "sample_tokens": 0, "eval_iters": 1, "eval_interval": 100}
    train = [str(ROOT / "train.py"), "--dataset=text", "--out_dir=run"]
    train += [f"--{name}={value}" for name, value in settings.items()]
    with tempfile.TemporaryDirectory() as folder:

        def seconds(line: list[str]) -> float:
            shutil.rmtree(Path(folder, "run"), ignore_errors=True)
            run = [sys.executable, *line]
            return seconds_of(lambda: subprocess.run(run, cwd=folder, check=True, capture_output=True))

        Path(folder, "text.txt").write_text("Something to read, again and again. " * 2000)
        seconds([str(ROOT / "prepare.py"), "text.txt"])
        least, ours = take_turns(
            {"least": lambda: seconds(["-c", LEAST]), "ours": lambda: seconds(train)}, options.rounds
        ).values()
    print(f"import torch and one optimizer step: {summary(least)} s")
    print(f"train.py with one step, two small evaluations and a checkpoint: {summary(ours)} s")
    print(f"ratio {summary(ratios(ours, least))}")
