"""What bench.py measures with several processes: steps under DDP, all-reduces, and a profile of both.

`torchrun` starts `bench.py`, which calls these functions on every process; rank 0 prints.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine.device import Compute, choose_dtype
from engine.kernels import probe_kernels
from engine.measure.training_speed import summary, training_settings
from engine.parallel.world import World, share_of_step
from engine.settings import TrainSettings
from engine.system import available_cores
from engine.training.optimizer import clip_gradients, make_optimizer
from model import GPT, GPTConfig


def default_processes() -> int:
    """One for each GPU; without GPUs one for each core."""
    import torch

    from engine.system import available_cores

    return torch.cuda.device_count() or available_cores()


def shape_of(settings: TrainSettings) -> Any:
    """The model of a setting, with characters on a CPU and GPT-2's vocabulary on GPUs."""
    import torch

    from engine.shape import model_config

    return model_config(settings, 50304 if torch.cuda.is_available() else 65)


def is_one_of_several() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def measure_scaling(options: Any) -> None:
    """Tokens per second of 1, 2, 4, … processes on the same sequences, taking turns."""
    settings = training_settings(options.config)
    if is_one_of_several():
        with the_world() as world:
            pass

            seconds = step_seconds(settings, shape_of(settings), world, 20)
            if world.is_main:
                print(seconds)
        return
    import torch

    pass

    most = options.processes or default_processes()
    numbers = [number for number in range(1, most + 1) if settings.sequences_per_step() % number == 0]
    numbers = [number for number in numbers if number & (number - 1) == 0 or number == most]
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    config = [f"--config={options.config}"] if options.config else []
    for _ in range(max(3, options.rounds // 3)):
        for number in numbers:
            seconds = float(torchrun(number, "scaling", *config)[-1])
            rates[number].append(settings.sequences_per_step() * settings.block_size / seconds)
    on_gpus = torch.cuda.is_available()
    print("each process has a GPU" if on_gpus else f"the processes share {default_processes()} cores")
    for number, values in rates.items():
        best = number if on_gpus else 1  # times as fast as one process, at best
        shares = [100 * mine / one / best for mine, one in zip(values, rates[1], strict=True)]
        print(f"{number} processes: {summary(values)} tokens/s, efficiency {summary(shares)} %")


def measure_network(options: Any) -> None:
    """All-reduces of growing tensors, by the processes of torchrun or by some started here."""
    pass

    if not is_one_of_several():
        print(
            "\n".join(
                torchrun(options.processes or default_processes(), "network", f"--largest={options.largest}")
            )
        )
        return
    with the_world() as world:
        for row in all_reduce_speeds(world, options.largest):
            if world.is_main:
                print(
                    f"{row['mebibytes']:4.0f} MiB over {world.size} processes: "
                    f"{1e3 * row['seconds']:8.2f} ms, "
                    f"algorithm {row['algorithm'] / 1e9:7.2f} GB/s, "
                    f"bus {row['bus'] / 1e9:7.2f} GB/s",
                    flush=True,
                )


def measure_profile(options: Any) -> None:
    """A trace for ui.perfetto.dev or chrome://tracing, and how much of the communication is hidden."""
    pass

    if not is_one_of_several():
        path = Path(options.trace).resolve()
        config = [f"--config={options.config}"] if options.config else []
        lines = torchrun(options.processes or default_processes(), "profile", f"--trace={path}", *config)
        print("\n".join(lines))
        return
    settings = training_settings(options.config)
    with the_world() as world:
        share = profile_steps(settings, shape_of(settings), world, Path(options.trace))
        if world.is_main:
            print(
                f"{options.trace}: three steps of rank 0 of {world.size}; {share:.0%} of the time of its "
                f"communication lies beside the arithmetic of the backward pass"
            )


@contextlib.contextmanager
def the_world() -> Iterator[Any]:
    """This process among its peers, until the measurement is over."""
    from engine.parallel.world import join

    world = join()
    yield world
    world.leave()


ROOT = Path(__file__).resolve().parents[2]
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
    compute = Compute(device.type, choose_dtype("auto", device), False, torch.get_num_threads())
    micro_batch, micro_steps = share_of_step(settings.sequences_per_step(), settings.batch_size, world)
    if world.is_main:
        probe_kernels(compute, micro_batch, config.block_size, config.n_head, config.n_embd, config.dropout)
    compute = Compute.from_dict(world.broadcast(compute.to_dict()))
    compute.apply()
    model = GPT.empty(config, device)
    model.init_weights(settings.seed)
    model.use_attention_kernel(compute.attention_kernel)
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
                with compute.autocast():
                    loss = forward(rows[:, :-1], rows[:, 1:]) / (micro_steps * rows[:, 1:].numel())
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
    world.barrier()


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
