"""What a GPU shows in a few minutes: one JSON file, and a line for each finding.

A part that fails is reported with its error, and the others go on. On a CPU a smaller model is measured.
"""

import json
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from engine import kernels
from engine.data.dataset import open_dataset
from engine.device import device_name, find_device, make_current, peak_flops
from engine.errors import UserError
from engine.measure.command_speed import train_to_the_end
from engine.measure.memory_check import check_memory
from engine.measure.sampling_speed import seconds_per_token
from engine.measure.timing import best_time, machine_limits, ratios, seconds_of, take_turns
from engine.measure.training_step import (
    best_compute,
    plain_compute,
    step_function,
    trial_run,
    trial_settings,
    trial_shape,
)
from engine.settings import TrainSettings
from engine.shape import empty_model, flops_per_token
from engine.system import write_whole
from engine.training.diagnose import UpdateFunction
from engine.training.forward import compiled
from engine.training.muon import orthogonalise_by_gram, orthogonalise_directly
from engine.versions import versions

Figures = dict[str, Any]


def measure_gpu(update: UpdateFunction, options: Namespace) -> None:
    """Run all parts, print their figures, and write them to a JSON file."""
    device = make_current(find_device(options.device))
    config = options.config or ("configs/gpt2.py" if device.type == "cuda" else None)
    settings = trial_settings(config, device)
    parts: dict[str, Callable[[], Figures]] = {
        "identity": lambda: identity(device),
        "limits": lambda: dict(machine_limits(device)),
        "training": lambda: training(update, settings, device, options.rounds),
        "memory": lambda: memory(update, settings, device),
        "decoding": lambda: decoding(settings, device),
        "muon": lambda: muon(settings, device),
        "repeats": lambda: repeats(update, settings, device),
        "time to a loss": lambda: time_to_loss(options.dataset),
    }
    report: dict[str, Figures] = {}
    for name, part in parts.items():
        began = time.perf_counter()
        try:
            report[name] = part()
        except Exception as error:  # one part's fault must not hide what the others find
            report[name] = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        report[name]["seconds of this part"] = time.perf_counter() - began
        for key, value in report[name].items():
            print(f"{name}: {key}: {f'{value:.4g}' if isinstance(value, float) else value}", flush=True)
    write_whole(Path(options.output), json.dumps(report, indent=1).encode())
    print(f"written to {options.output}")


def identity(device: torch.device) -> Figures:
    """The device, its driver and libraries."""
    found: Figures = {"device": device_name(device)} | versions()
    if device.type == "cuda":
        found |= {
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "built for": " ".join(torch.cuda.get_arch_list()),
            "CUDA": torch.version.cuda or torch.version.hip,
            "cuDNN": torch.backends.cudnn.version(),
            "memory": torch.cuda.get_device_properties(device).total_memory,
            "peak known": peak_flops(device, "bfloat16"),
        }
    return found


def training(update: UpdateFunction, settings: TrainSettings, device: torch.device, rounds: int) -> Figures:
    """Our step against a plain compiled loop's; compile time, utilisation, slowest kernels."""
    config, compute = trial_shape(settings, device), best_compute(settings, device)
    runs = [trial_run(settings, device, compute, plain=plain) for plain in (False, True)]
    step, plain_step = (step_function(update, run, compiled(run)) for run in runs)
    first_step = seconds_of(step)

    def ten_steps(step: Callable[[], None]) -> float:
        return seconds_of(lambda: [step() for _ in range(10)]) / 10

    measures = {"ours": lambda: ten_steps(step), "plain": lambda: ten_steps(plain_step)}
    ours, plain = take_turns(measures, max(3, rounds // 3)).values()
    tokens = settings.sequences_per_step() * settings.block_size
    seconds = statistics.median(ours)
    figures: Figures = {
        "tokens per second": tokens / seconds,
        "share of the plain compiled loop's time": statistics.median(ratios(ours, plain)),
        "first step's seconds": first_step,
    }
    peak = peak_flops(device, compute.dtype)
    if peak is not None:
        figures["model FLOPs utilisation"] = tokens * flops_per_token(config) / seconds / peak
    return figures | {"slowest kernels": slowest_kernels(step, device)}


def slowest_kernels(step: Callable[[], None], device: torch.device) -> list[str]:
    """The ten operations that take most of a step, with their share of it."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        step()
    attribute = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, attribute))
    total = sum(getattr(event, attribute) for event in events)
    return [f"{event.key[:80]} {getattr(event, attribute) / max(1, total):.1%}" for event in events[:10]]


def memory(update: UpdateFunction, settings: TrainSettings, device: torch.device) -> Figures:
    """Predicted and measured memory of three steps."""
    config = trial_shape(settings, device)
    predicted, measured = check_memory(update, config, settings, plain_compute(settings, device))
    return {"predicted": predicted, "measured": measured, "ratio": predicted / measured}


def decoding(settings: TrainSettings, device: torch.device) -> Figures:
    """Tokens per second through the cache, for one sequence and for 256."""
    config = trial_shape(settings, device)
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = empty_model(config, device, half).eval()
    model.init_weights(0)
    kernels.install(model, inference=True)
    figures: Figures = {}
    for batch in (1, 256):
        ids = torch.randint(config.vocab_size, (batch, config.block_size // 2), device=device)
        seconds = seconds_per_token(model, ids, min(64, config.block_size // 2))
        figures[f"tokens per second, {batch} at once"] = batch / seconds
    return figures


def muon(settings: TrainSettings, device: torch.device) -> Figures:
    """Seconds and error of the ways to orthogonalise a block's widest matrices."""
    width = settings.n_embd
    matrices = torch.randn(settings.n_layer, width, 4 * width, device=device)
    matrices /= matrices.norm(dim=(-2, -1), keepdim=True)
    left, _, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    exact = left @ right
    figures: Figures = {}
    ways = {
        "fp32, by Gram matrix": ("highest", lambda: orthogonalise_by_gram(matrices)),
        "fp32 with TF32": ("high", lambda: orthogonalise_directly(matrices)),
        "bf16": ("highest", lambda: orthogonalise_directly(matrices.bfloat16())),
    }
    for name, (precision, way) in ways.items():
        torch.set_float32_matmul_precision(precision)
        figures[f"seconds, {name}"] = best_time(way, 5, device)
        figures[f"distance, {name}"] = ((way().double() - exact).norm() / exact.norm()).item()
    torch.set_float32_matmul_precision("highest")
    return figures


def repeats(update: UpdateFunction, settings: TrainSettings, device: torch.device) -> Figures:
    """How far weights drift apart in three equal steps, without --deterministic."""
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        run = trial_run(settings, device, plain_compute(settings, device))
        step = step_function(update, run, run.model)
        for _ in range(3):
            step()
        found.append([parameter.detach().cpu() for parameter in run.model.parameters()])
    return {"largest difference": max((a - b).abs().max().item() for a, b in zip(*found, strict=True))}


def time_to_loss(dataset: str | None) -> Figures:
    """Loss and seconds of training of the best small setting, on a prepared tiny Shakespeare."""
    if dataset is None:
        raise UserError("skipped; python prepare.py shakespeare_char, then add --dataset shakespeare_char")
    open_dataset(dataset, 1)
    line = ["configs/shakespeare_char_best.py", f"--dataset={dataset}"]
    last = train_to_the_end(line, 1, Path("out/bench-gpu"))
    return {
        "validation loss": last["val_loss"],
        "goal": 1.4697,  # nanoGPT's best
        "seconds of training": last["seconds"],
    }
