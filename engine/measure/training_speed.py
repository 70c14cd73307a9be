"""The speed of a training step against a baseline and the machine."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.command_line import read_settings
from engine.settings import TrainSettings

PLAIN = {
    "gradient_accumulation_steps": 1, "batch_size": 12, "block_size": 64,
    "n_layer": 4, "n_head": 4, "n_embd": 128,
    "bias": False, "learning_rate": 1e-3, "beta2": 0.99, "max_iters": 2000, "warmup_iters": 100,
}  # fmt: skip


def summary(values: Sequence[float]) -> str:
    """Median and spread, e.g. "17.2 (16.8 to 18.1)"."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return f"{statistics.median(values):.3g} ({low:.3g} to {high:.3g})"


def best_time(run: Callable[[], Any], rounds: int) -> float:
    """Seconds of the fastest of several runs after one to warm up: what the machine can do undisturbed."""
    run()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def machine_limits() -> dict[str, float]:
    """This machine's matmul peaks in FLOP/s, and the bandwidth of reading memory in bytes/s."""
    import torch

    limits = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(2, 1024, 1024).to(dtype)
        rates = []
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            rates.append(2 * 1024**3 / best_time(lambda a=a, b=b: a @ b, 15))
        limits[name] = max(rates)
    large = torch.ones(2**27)  # 512 MiB, far beyond the caches
    limits["bandwidth"] = large.nbytes / best_time(large.sum, 7)
    torch.set_float32_matmul_precision("highest")
    print(
        f"machine: {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"fp32 {limits['fp32'] / 1e9:.0f} GFLOP/s, bf16 {limits['bf16'] / 1e9:.0f} GFLOP/s, "
        f"memory {limits['bandwidth'] / 1e9:.1f} GB/s"
    )
    return limits


def measure_training(options: Any) -> None:
    """Time training steps of ours and of the baseline, in turns."""
    from engine.shape import model_config
    from model import flops_per_token

    limits = machine_limits()
    settings = training_settings(options.config)
    workers = {kind: start_worker(kind, options.config) for kind in ("ours", "baseline")}
    times: dict[str, list[float]] = {kind: [] for kind in workers}
    for number in range(options.rounds + 1):
        for kind, worker in workers.items():
            measured = ask(worker)
            if number:  # the first round warms up
                times[kind].append(statistics.median(measured))
    for worker in workers.values():
        worker.kill()
    tokens = settings.sequences_per_step() * settings.block_size
    flops = tokens * flops_per_token(model_config(settings, 65))
    for kind, seconds in times.items():
        rate = flops / statistics.median(seconds)
        print(
            f"{kind:9} {summary([1e3 * value for value in seconds])} ms a step, "
            f"{tokens / statistics.median(seconds):,.0f} tokens/s, "
            f"{rate / 1e9:.0f} GFLOP/s of model arithmetic, {rate / limits['fp32']:.0%} of the fp32 peak"
        )
    ratios = [mine / theirs for mine, theirs in zip(times["ours"], times["baseline"], strict=True)]
    print(f"ours takes {summary([100 * ratio for ratio in ratios])} % of the baseline's time")


def training_settings(config: str | None) -> TrainSettings:
    """The plain setting, or that of a configuration file on a CPU."""
    if config is None:
        return TrainSettings(**PLAIN)
    return read_settings(TrainSettings, [config], "").settings(on_cpu=True)


def start_worker(kind: str, config: str | None) -> subprocess.Popen[str]:
    """A process that does 20 training steps whenever it is asked to."""
    line = [
        sys.executable,
        str(Path(__file__).resolve().parents[2] / "bench.py"),
        "worker",
        f"--kind={kind}",
        *([f"--config={config}"] if config else []),
    ]
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: subprocess.Popen[str]) -> list[float]:
    """Have a worker do its steps; their seconds."""
    worker.stdin.write("go\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def work(kind: str, config: str | None) -> None:
    """Be a worker: for each line of input do 20 steps and print their seconds."""
    import torch

    from engine.device import Compute, choose_threads
    from engine.kernels import probe_kernels
    from engine.shape import model_config
    from engine.training.optimizer import clip_gradients, learning_rate_factor, make_optimizer
    from model import GPT

    settings = training_settings(config)
    ours = kind == "ours"
    compute = Compute("cpu", "float32", False, choose_threads(None, 1))
    if ours:
        shape = (settings.batch_size, settings.block_size, settings.n_head, settings.n_embd)
        probe_kernels(compute, *shape, settings.dropout)
        compute.apply()
    model = GPT(model_config(settings, 65))
    model.init_weights(settings.seed)
    model.use_attention_kernel(compute.attention_kernel)
    optimizer = make_optimizer(model, settings)
    if not ours:
        for group in optimizer.param_groups:
            group["fused"] = False
    clip = clip_gradients if ours else torch.nn.utils.clip_grad_norm_
    rows = torch.randint(65, (settings.batch_size, settings.block_size + 1))
    number = 0
    for _ in sys.stdin:
        times = []
        for _ in range(20):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_factor(number, settings) * group["max_lr"]
            for _ in range(settings.gradient_accumulation_steps):
                (model(rows[:, :-1], rows[:, 1:]) / rows[:, 1:].numel()).backward()
            clip(model.parameters(), settings.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            number += 1
            times.append(time.perf_counter() - began)
        print(json.dumps(times), flush=True)
