"""Shared by all measurements: taking turns, the median with its spread, and the machine's limits."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from engine.device import device_name
from engine.kernels import probe_matmul

Name = TypeVar("Name")


def summary(values: Sequence[float]) -> str:
    """Median and spread (10th to 90th percentile), e.g. "17.2 (16.8 to 18.1)"."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return f"{statistics.median(values):.3g} ({low:.3g} to {high:.3g})"


def take_turns(
    measures: Mapping[Name, Callable[[], float]], rounds: int, warm_up: int = 1
) -> dict[Name, list[float]]:
    """The figures of several measurements, taken in turns, without those of the warm-up rounds."""
    figures: dict[Name, list[float]] = {name: [] for name in measures}
    for _ in range(warm_up + rounds):
        for name, measure in measures.items():
            figures[name].append(measure())
    return {name: values[warm_up:] for name, values in figures.items()}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Our figure of each round as a share of theirs."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def synchronize(device: torch.device) -> None:
    """Wait for the device to finish its queue."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(run: Callable[[], Any], device: torch.device | None = None) -> float:
    """Seconds of a call, until the device has finished."""
    began = time.perf_counter()
    run()
    if device is not None:
        synchronize(device)
    return time.perf_counter() - began


def best_time(run: Callable[[], Any], rounds: int, device: torch.device) -> float:
    """Seconds of the fastest of several runs, after one warm-up run."""
    return min([seconds_of(run, device) for _ in range(rounds + 1)][1:])


def machine_limits(device: torch.device) -> dict[str, float]:
    """Measure the matmul peaks "fp32" and "bf16" in FLOP/s and the memory "bandwidth" in bytes/s.

    On a CPU, fp32 is the faster of PyTorch's two libraries for it, if that does not round to bf16.
    """
    limits = {}
    size = 1024 if device.type == "cpu" else 8192
    if device.type == "cpu":
        torch.set_float32_matmul_precision(probe_matmul(1024, 256)[0])
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        limits[name] = 2 * size**3 / best_time(lambda a=a, b=b: a @ b, 15, device)
    large = torch.ones(2**27, device=device)  # 512 MiB, far beyond the caches
    limits["bandwidth"] = large.nbytes / best_time(large.sum, 7, device)
    torch.set_float32_matmul_precision("highest")
    print(
        f"machine: {device_name(device)}, torch {torch.__version__}; "
        f"fp32 {limits['fp32'] / 1e9:.0f} GFLOP/s, bf16 {limits['bf16'] / 1e9:.0f} GFLOP/s, "
        f"memory {limits['bandwidth'] / 1e9:.1f} GB/s"
    )
    return limits
