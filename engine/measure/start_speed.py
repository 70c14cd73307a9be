"""The time from starting train.py to its first step."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.measure.training_speed import PLAIN, summary


def measure_start(options: Any) -> None:
    """From the start of train.py to its first step, against importing torch and one optimizer step."""
    least = "import torch; p = torch.nn.Parameter(torch.ones(2)); p.sum().backward(); "
    least += "torch.optim.AdamW([p]).step()"
    root = Path(__file__).resolve().parents[2]
    times: dict[str, list[float]] = {"least": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("Something to read, again and again. " * 2000)
        run = [
            sys.executable,
            str(root / "train.py"),
            "--dataset=text",
            "--out_dir=r",
            "--init_from=auto",
            "--max_iters=1",
        ]
        run += [f"--{name}={value}" for name, value in PLAIN.items() if name != "max_iters"]
        run += ["--sample_tokens=0", "--eval_iters=1", "--eval_interval=100"]
        subprocess.run(
            [sys.executable, str(root / "prepare.py"), "text.txt"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        for number in range(options.rounds + 1):
            for name, line in (("least", [sys.executable, "-c", least]), ("ours", run)):
                subprocess.run(["rm", "-rf", "r"], cwd=folder, check=True)
                began = time.perf_counter()
                subprocess.run(line, cwd=folder, check=True, capture_output=True, env=os.environ)
                if number:
                    times[name].append(time.perf_counter() - began)
    ratios = [ours / least for ours, least in zip(times["ours"], times["least"], strict=True)]
    print(f"import torch and one optimizer step: {summary(times['least'])} s")
    print(f"train.py with one step, two small evaluations and a checkpoint: {summary(times['ours'])} s")
    print(f"ratio {summary(ratios)}")
