"""The project's real commands, as a person runs them, and the text that they run on."""

import os
import subprocess
import sys
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
