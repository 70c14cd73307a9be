"""Measurements with several processes: training steps under DDP, all-reduces, and a trace.

`bench.py` starts itself under torchrun; every process runs these functions, and rank 0 prints.
"""

import contextlib
import functools
import os
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import profile

from engine.command_line import ROOT
from engine.device import find_device
from engine.errors import UserError
from engine.measure.timing import ratios, seconds_of, summary, synchronize, take_turns
from engine.measure.training_step import step_function, trial_run, trial_settings
from engine.parallel.world import World, join
from engine.system import available_cores
from engine.training.diagnose import UpdateFunction
from engine.training.forward import compiled, in_parallel


def is_one_of_several() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def default_processes(device: torch.device) -> int:
    """The number of GPUs, or of cores on a CPU."""
    return torch.cuda.device_count() if device.type == "cuda" else available_cores()


def torchrun(options: Namespace, processes: int | None, *arguments: str) -> list[str]:
    """Run `bench.py ARGUMENTS` under torchrun; return the lines that it prints."""
    device = find_device(options.device)
    count = processes or default_processes(device)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    line += [str(ROOT / "bench.py"), *arguments, f"--device={device.type}"]
    line += [f"--config={options.config}"] if options.config else []
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device.type == "cpu" else {})
    finished = subprocess.run(line, stdout=subprocess.PIPE, text=True, env=environment)
    if finished.returncode:
        raise UserError(f"bench.py {' '.join(arguments)} failed in one of {count} processes, as said above")
    return finished.stdout.splitlines()


@contextlib.contextmanager
def joined(options: Namespace) -> Iterator[tuple[World, torch.device]]:
    """Join the process group for a measurement; yields the world and this process's device."""
    world = join(device=options.device)
    try:
        device = find_device(options.device)
        if device.type == "cuda":
            device = torch.device("cuda", world.local_rank)
        yield world, device
        world.barrier()
    finally:
        world.leave()


def median_seconds(world: World, device: torch.device, rounds: int, *runs: Callable[[], Any]) -> list[float]:
    """Median seconds of each function, called in turns by all processes."""

    def finish() -> None:
        synchronize(device)
        world.barrier()

    def seconds(run: Callable[[], Any]) -> float:
        finish()
        return seconds_of(lambda: (run(), finish()))

    measures = {number: functools.partial(seconds, run) for number, run in enumerate(runs)}
    return [statistics.median(found) for found in take_turns(measures, rounds, warm_up=3).values()]


def measure_scaling(update: UpdateFunction, options: Namespace) -> None:
    """Print tokens per second of 1, 2, 4, … processes, measured in turns."""
    if is_one_of_several():
        with joined(options) as (world, device):
            run = trial_run(trial_settings(options.config, device), device, world=world)
            step = step_function(update, run, in_parallel(run, compiled(run)))
            (seconds,) = median_seconds(world, device, 20, step)
            if world.is_main:
                print(seconds)
        return
    device = find_device(options.device)
    settings = trial_settings(options.config, device)
    sequences = settings.sequences_per_step()
    max_processes = options.processes or default_processes(device)
    powers = {2**exponent for exponent in range(max_processes.bit_length())}
    numbers = [number for number in sorted(powers | {max_processes}) if sequences % number == 0]
    tokens = sequences * settings.block_size

    def rate(number: int) -> float:
        return tokens / float(torchrun(options, number, "scaling")[-1])

    measures = {number: functools.partial(rate, number) for number in numbers}
    rates = take_turns(measures, max(3, options.rounds // 3), warm_up=0)
    on_gpus = device.type == "cuda"
    print("each process has a GPU" if on_gpus else f"the processes share {available_cores()} cores")
    for number, found in rates.items():
        best = number if on_gpus else 1  # times as fast as one process, at best
        shares = [100 * ratio / best for ratio in ratios(found, rates[1])]
        print(f"{number} processes: {summary(found)} tokens/s, efficiency {summary(shares)} %")


def measure_network(options: Namespace) -> None:
    """Time all-reduces of growing float32 tensors, under torchrun or in processes started here.

    Algorithm bandwidth is the tensor's bytes divided by the time. Bus bandwidth is 2 (N - 1) / N times that:
    what a ring all-reduce sends through each process, to compare with a link's data sheet.
    """
    if not is_one_of_several():
        print("\n".join(torchrun(options, options.processes, "network", f"--largest={options.largest}")))
        return
    with joined(options) as (world, device):
        if world.size == 1:
            raise UserError("one process sends nothing; add --processes=2, or more")
        size = 1
        while size <= options.largest:
            tensor = torch.zeros(size * 2**20 // 4, device=device)
            (seconds,) = median_seconds(world, device, 7, lambda tensor=tensor: dist.all_reduce(tensor))
            algorithm = size * 2**20 / seconds
            bus = 2 * (world.size - 1) / world.size * algorithm
            if world.is_main:
                print(
                    f"{size:4} MiB over {world.size} processes: {1e3 * seconds:8.2f} ms, "
                    f"algorithm {algorithm / 1e9:7.2f} GB/s, bus {bus / 1e9:7.2f} GB/s",
                    flush=True,
                )
            size *= 4


def measure_profile(update: UpdateFunction, options: Namespace) -> None:
    """Write a trace for ui.perfetto.dev, and print how much communication is hidden."""
    path = Path(options.trace).resolve()
    if not is_one_of_several():
        print("\n".join(torchrun(options, options.processes, "profile", f"--trace={path}")))
        return
    with joined(options) as (world, device):
        run = trial_run(trial_settings(options.config, device), device, world=world)
        forward = compiled(run)
        step = step_function(update, run, in_parallel(run, forward))
        local_step = step_function(update, run, forward)
        step()
        world.barrier()
        with profile() as profiler:
            for _ in range(3):
                step()
        if world.is_main:
            profiler.export_chrome_trace(str(path))
        summary_line = f"{options.trace}: three steps of rank 0 of {world.size}"
        if world.size > 1:
            gradients = torch.zeros(sum(x.numel() for x in run.model.parameters()), device=device)
            runs = step, local_step, lambda: dist.all_reduce(gradients)
            seconds, local, all_reduce = median_seconds(world, device, 20, *runs)
            summary_line += (
                f". A step takes {1e3 * seconds:.3g} ms, and {1e3 * local:.3g} ms where nothing is sent; "
                f"adding up the gradients by itself takes {1e3 * all_reduce:.3g} ms, "
                f"{hidden_share(seconds, local, all_reduce):.0%} of it hidden"
            )
        if world.is_main:
            print(summary_line)


def hidden_share(step: float, local_step: float, communication: float) -> float:
    """The share of the communication that does not lengthen the step, from 0 to 1."""
    return min(1.0, max(0.0, 1 - (step - local_step) / communication))
