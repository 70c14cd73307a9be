"""The time from starting train.py to its first step."""

import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from engine.measure.timing import summary
from engine.measure.training_step import PLAIN, ROOT

LEAST = (
    "import torch; p = torch.nn.Parameter(torch.ones(2)); p.sum().backward(); torch.optim.AdamW([p]).step()"
)


def measure_start(options: Namespace) -> None:
    """Time train.py up to its first step, against importing torch and making one optimizer step."""
    times: dict[str, list[float]] = {"least": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("Something to read, again and again. " * 2000)
        settings = PLAIN | {"max_iters": 1, "sample_tokens": 0, "eval_iters": 1, "eval_interval": 100}
        train = [sys.executable, str(ROOT / "train.py"), "--dataset=text", "--out_dir=run"]
        train += [f"--{name}={value}" for name, value in settings.items()]
        prepare = [sys.executable, str(ROOT / "prepare.py"), "text.txt"]
        subprocess.run(prepare, cwd=folder, check=True, capture_output=True)
        for number in range(options.rounds + 1):
            for name, line in (("least", [sys.executable, "-c", LEAST]), ("ours", train)):
                shutil.rmtree(Path(folder, "run"), ignore_errors=True)
                began = time.perf_counter()
                subprocess.run(line, cwd=folder, check=True, capture_output=True)
                if number:
                    times[name].append(time.perf_counter() - began)
    ratios = [ours / least for ours, least in zip(times["ours"], times["least"], strict=True)]
    print(f"import torch and one optimizer step: {summary(times['least'])} s")
    print(f"train.py with one step, two small evaluations and a checkpoint: {summary(times['ours'])} s")
    print(f"ratio {summary(ratios)}")
