"""Measure a training step against a baseline and the machine's limits."""

import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from engine.device import find_device
from engine.measure.timing import machine_limits, summary
from engine.measure.training_step import (
    Update,
    best_compute,
    plain_compute,
    step_function,
    trial_run,
    trial_settings,
    trial_shape,
)
from engine.shape import flops_per_token

KINDS = ("ours", "baseline")
STEPS_A_TURN = 20
_step: Callable[[], None]  # a worker's, once it has started


def measure_training(update: Update, options: Namespace) -> None:
    """Time our training step and the baseline's, in turns, each in its own process."""
    device = find_device(options.device)
    limits = machine_limits(device)
    settings = trial_settings(options.config, device)
    workers = {
        kind: ProcessPoolExecutor(1, get_context("spawn"), start_worker, (update, kind, options))
        for kind in KINDS
    }
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(options.rounds + 1):
        for kind, worker in workers.items():
            seconds = worker.submit(step_seconds).result()
            if number:  # the first round warms up
                times[kind].append(seconds)
    for worker in workers.values():
        worker.shutdown()
    tokens = settings.sequences_per_step() * settings.block_size
    flops = tokens * flops_per_token(trial_shape(settings, device))
    peak = "fp32" if plain_compute(settings, device).dtype == "float32" else "bf16"
    for kind, found in times.items():
        rate = flops / statistics.median(found)
        print(
            f"{kind:9} {summary([1e3 * value for value in found])} ms a step, "
            f"{tokens / statistics.median(found):,.0f} tokens/s, "
            f"{rate / 1e9:.0f} GFLOP/s of model arithmetic, {rate / limits[peak]:.0%} of the {peak} peak"
        )
    ratios = [ours / baseline for ours, baseline in zip(*times.values(), strict=True)]
    print(f"ours takes {summary([100 * ratio for ratio in ratios])} % of the baseline's time")


def start_worker(update: Update, kind: str, options: Namespace) -> None:
    """Set up, in a new process, the step that `step_seconds` times."""
    global _step
    device = find_device(options.device)
    settings = trial_settings(options.config, device)
    config = trial_shape(settings, device)
    if kind == "ours":
        compute = best_compute(settings, config, device)
        compute.apply()
        run = trial_run(settings, config, device, compute)
    else:
        run = trial_run(settings, config, device, plain_compute(settings, device), plain=True)
    _step = step_function(update, run, run.forward)


def step_seconds() -> float:
    """Median seconds of some training steps."""
    times = []
    for _ in range(STEPS_A_TURN):
        began = time.perf_counter()
        _step()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
