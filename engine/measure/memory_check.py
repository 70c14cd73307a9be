"""Compare predicted with measured memory of training. Each case is trained in a new process.

Measured is how far the process grows on a CPU, and the peak of PyTorch's allocator on a GPU.
"""

import re
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from engine.device import Compute, find_device
from engine.measure.training_step import plain_compute, step_function, trial_run
from engine.settings import TrainSettings
from engine.training.diagnose import UpdateFunction
from engine.training.memory import TrainingMemory, gigabytes
from model import GPTConfig

STEPS = 3
WIDE = GPTConfig(vocab_size=256, block_size=512, n_layer=6, n_head=8, n_embd=512, bias=False)
DROPPING = replace(WIDE, dropout=0.1)
TURNING = replace(WIDE, position="rotary", qk_norm=True, activation="relu2")
GPT2 = GPTConfig(vocab_size=50304, block_size=256, bias=False)
# Shape, attention kernel, and settings.
CASES: list[tuple[GPTConfig, str, dict[str, Any]]] = [
    (WIDE, "sdpa", {"batch_size": 8}),
    (WIDE, "matmul", {"batch_size": 8}),
    (DROPPING, "sdpa", {"batch_size": 8}),
    (DROPPING, "matmul", {"batch_size": 8}),
    (TURNING, "sdpa", {"batch_size": 8}),
    (WIDE, "sdpa", {"batch_size": 12, "dtype": "bfloat16"}),
    (GPT2, "sdpa", {"batch_size": 4}),
    (GPT2, "sdpa", {"batch_size": 4, "gradient_accumulation_steps": 2}),
    (GPT2, "sdpa", {"batch_size": 2, "optimizer": "muon"}),
]


def measure_memory(update: UpdateFunction, options: Namespace) -> None:
    """Print predicted and measured memory of training, for shapes that need a gigabyte or more."""
    for config, kernel, changes in CASES:
        settings = TrainSettings(**{"gradient_accumulation_steps": 1, **changes})
        compute = replace(plain_compute(settings, find_device(options.device)), attention_kernel=kernel)
        predicted, measured = check_memory(update, config, settings, compute)
        print(
            f"{config.n_layer} × {config.n_embd}, block {config.block_size}, vocabulary {config.vocab_size}, "
            f"{settings.gradient_accumulation_steps} × {settings.batch_size} sequences, "
            f"{settings.optimizer}, {compute.dtype}, attention {kernel}, dropout {config.dropout}, "
            f"{config.position}: predicted {gigabytes(predicted)}, measured {gigabytes(measured)}, "
            f"ratio {predicted / measured:.2f}",
            flush=True,
        )


def check_memory(
    update: UpdateFunction, config: GPTConfig, settings: TrainSettings, compute: Compute
) -> tuple[int, int]:
    """Bytes predicted, and measured in a new process, for some steps of training."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        measured = pool.submit(train_and_measure, update, config, settings, compute).result()
    return TrainingMemory(config, settings, compute).predict(settings.batch_size).total, measured


def train_and_measure(
    update: UpdateFunction, config: GPTConfig, settings: TrainSettings, compute: Compute
) -> int:
    """Train in this new process; return the bytes that it took."""
    compute.apply()
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], fused=True).step()  # loads what the first does
    before = resident("VmRSS") if compute.device == "cpu" else 0
    run = trial_run(settings, torch.device(compute.device), compute, config)
    step = step_function(update, run, run.model)
    for _ in range(STEPS):
        step()
    if compute.device == "cpu":
        return resident("VmHWM") - before
    return torch.accelerator.max_memory_allocated()


def resident(key: str) -> int:
    """Resident bytes of this process, from /proc: "VmRSS" now, "VmHWM" the peak."""
    (found,) = re.findall(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found) * 1024
