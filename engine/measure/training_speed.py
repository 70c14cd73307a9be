"""Measure a training step against a baseline and the machine's limits."""

import statistics
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from engine.device import find_device
from engine.measure.timing import machine_limits, ratios, seconds_of, summary, take_turns
from engine.measure.training_step import (
    plain_compute,
    step_function,
    trial_run,
    trial_settings,
    trial_shape,
)
from engine.shape import flops_per_token
from engine.training.diagnose import UpdateFunction
from engine.training.forward import compiled

STEPS_A_TURN = 20
_step: Callable[[], None]  # a worker's, once it has started


def measure_training(update: UpdateFunction, options: Namespace) -> None:
    """Time our training step and the baseline's, in turns, each in its own process."""
    device = find_device(options.device)
    limits = machine_limits(device)
    settings = trial_settings(options.config, device)
    workers = {
        kind: ProcessPoolExecutor(1, get_context("spawn"), start_worker, (update, kind, options))
        for kind in ("ours", "baseline")
    }
    times = take_turns(
        {
            kind: lambda worker=worker: worker.submit(step_seconds).result()
            for kind, worker in workers.items()
        },
        options.rounds,
    )
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
    shares = [100 * ratio for ratio in ratios(*times.values())]
    print(f"ours takes {summary(shares)} % of the baseline's time")


def start_worker(update: UpdateFunction, kind: str, options: Namespace) -> None:
    """Set up, in a new process, the step that `step_seconds` times."""
    global _step
    device = find_device(options.device)
    settings = trial_settings(options.config, device)
    plain = kind == "baseline"
    run = trial_run(settings, device, plain_compute(settings, device) if plain else None, plain=plain)
    _step = step_function(update, run, compiled(run))


def step_seconds() -> float:
    """Median seconds of some training steps."""
    return statistics.median(seconds_of(_step) for _ in range(STEPS_A_TURN))
