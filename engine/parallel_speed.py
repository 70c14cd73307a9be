"""What bench.py measures with several processes: steps under DDP, all-reduces, and a profile of both.

`torchrun` starts `bench.py`, which calls these functions on every process; rank 0 prints.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine.config import TrainSettings
from engine.device import Choices, choose_dtype, probe_kernels
from engine.distributed import World, share_of_step
from engine.optimizer import clip_gradients, make_optimizer
from engine.workers import available_cores
from model import GPT, GPTConfig

ROOT = Path(__file__).resolve().parent.parent
MEBIBYTE = 2**20
Interval = tuple[float, float]


def torchrun(processes: int, *arguments: str) -> list[str]:
    """Run `bench.py ARGUMENTS` in so many processes of this machine; the lines that it prints."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]
    finished = subprocess.run(
        [*launcher, str(ROOT / "bench.py"), *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return finished.stdout.splitlines()


def device_of(world: World) -> torch.device:
    """This process's GPU, or the CPU with its share of the cores."""
    if torch.cuda.is_available():
        return torch.device("cuda", world.local_rank)
    torch.set_num_threads(max(1, available_cores() // world.local_size))
    return torch.device("cpu")


def training(settings: TrainSettings, config: GPTConfig, world: World) -> Callable[[], None]:
    """A training step as train.py makes it, on random tokens, this process's share of it."""
    device = device_of(world)
    choices = Choices(device.type, choose_dtype("auto", device), False, torch.get_num_threads())
    micro_batch, micro_steps = share_of_step(settings.sequences_per_step(), settings.batch_size, world)
    if world.is_main:
        probe_kernels(choices, micro_batch, config.block_size, config.n_head, config.n_embd, config.dropout)
    choices = Choices.from_dict(world.broadcast(choices.to_dict()))
    choices.apply()
    model = GPT.empty(config, device)
    model.init_weights(settings.seed)
    model.use_attention_kernel(choices.attention_kernel)
    optimizer = make_optimizer(model, settings)
    forward: Any = model
    if world.size > 1:
        ids = [device.index] if device.type == "cuda" else None
        forward = torch.nn.parallel.DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True
        )
    rows = torch.randint(config.vocab_size, (micro_batch, config.block_size + 1), device=device)

    def step() -> None:
        """One optimizer step of this process."""
        for index in range(micro_steps):
            synced = world.size == 1 or index == micro_steps - 1
            with contextlib.nullcontext() if synced else forward.no_sync():
                with choices.autocast():
                    loss = forward(rows[:, :-1], rows[:, 1:])[1] / micro_steps
                loss.backward()
                del loss
        clip_gradients(model.parameters(), settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def finish(world: World) -> None:
    """Return when all processes and their GPUs are done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    world.wait()


def step_seconds(settings: TrainSettings, config: GPTConfig, world: World, steps: int) -> float:
    """Median seconds of a training step over all processes, after three to warm up."""
    step = training(settings, config, world)
    times = []
    for _ in range(steps + 3):
        finish(world)
        began = time.perf_counter()
        step()
        finish(world)
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:])


def all_reduce_speeds(world: World, largest: int = 256, rounds: int = 7) -> Iterable[dict[str, float]]:
    """For 1, 4, … MiB of float32: seconds of an all-reduce, and bandwidths in bytes a second.

    `algorithm` is the tensor's bytes over the time; `bus`, 2 (N - 1) / N of it, is what a ring moves through
    each process, which is what a link's data sheet can be compared with.
    """
    device, size = device_of(world), 1
    while size <= largest:
        tensor = torch.ones(size * MEBIBYTE // 4, device=device)
        times = []
        for _ in range(rounds + 2):
            finish(world)
            began = time.perf_counter()
            dist.all_reduce(tensor)
            finish(world)
            times.append(time.perf_counter() - began)
            tensor.fill_(1.0)
        seconds = statistics.median(times[2:])
        algorithm = size * MEBIBYTE / seconds
        bus = 2 * (world.size - 1) / world.size * algorithm
        yield {"mebibytes": size, "seconds": seconds, "algorithm": algorithm, "bus": bus}
        size *= 4


def profile_steps(
    settings: TrainSettings, config: GPTConfig, world: World, path: Path, steps: int = 3
) -> float:
    """Write a trace of a few steps of rank 0; the share of its communication that runs beside arithmetic."""
    step = training(settings, config, world)
    for _ in range(3):
        step()
    finish(world)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        finish(world)
    if not world.is_main:
        return 0.0
    profiler.export_chrome_trace(str(path))
    return overlap(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])


def overlap(events: list[dict[str, Any]]) -> float:
    """The share of the all-reduces' time in which the backward pass computes, from a trace's events.

    On a GPU both are kernels. On a CPU an all-reduce is gloo's, in threads of its own, and computing is the
    tensor operations in autograd's functions; the wait for the last gradients is neither. 0 where nothing is
    sent.
    """
    spans = [event for event in events if event.get("ph") == "X"]
    kernels = [event for event in spans if event.get("cat") == "kernel"]
    if kernels:
        sent = [event for event in kernels if "nccl" in event["name"].lower()]
        computed = [event for event in kernels if "nccl" not in event["name"].lower()]
    else:
        sent = [event for event in spans if event["name"].startswith("gloo:all_reduce")]
        backward = union(map(interval, (event for event in spans if "evaluate_function" in event["name"])))
        operations = union(map(interval, (event for event in spans if event["name"].startswith("aten::"))))
        return shared(union(map(interval, sent)), common(backward, operations))
    return shared(union(map(interval, sent)), union(map(interval, computed)))


def interval(event: dict[str, Any]) -> Interval:
    """When an event of a trace began and ended, in microseconds."""
    return event["ts"], event["ts"] + event["dur"]


def shared(covered: list[Interval], by: list[Interval]) -> float:
    """The share of `covered` that lies in `by`; 0 where it is empty."""
    total = sum(end - begin for begin, end in covered)
    return sum(end - begin for begin, end in common(covered, by)) / total if total else 0.0


def common(first: list[Interval], second: list[Interval]) -> list[Interval]:
    """What lies in both: [(1, 4)], [(0, 2), (3, 5)] -> [(1, 2), (3, 4)]."""
    pairs = ((max(a, c), min(b, d)) for a, b in first for c, d in second)
    return [(begin, end) for begin, end in pairs if begin < end]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Intervals that cover the same, apart from each other and in order: (1, 3), (2, 4) -> (1, 4)."""
    apart: list[Interval] = []
    for begin, end in sorted(intervals):
        if apart and begin <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
        else:
            apart.append((begin, end))
    return apart
