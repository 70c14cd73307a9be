"""One training step of train.py on random tokens, for the measurements of time and memory."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine import kernels
from engine.command_line import read_settings
from engine.device import Compute, choose_compile, choose_dtype, choose_threads
from engine.measure.timing import synchronize
from engine.parallel.sharding import recompute_blocks
from engine.parallel.world import ALONE, World, share_of_step
from engine.settings import TrainSettings
from engine.shape import empty_model, model_config
from engine.training.batches import Batch
from engine.training.optimizer import make_optimizer
from model import GPT, GPTConfig

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {
    "gradient_accumulation_steps": 1, "batch_size": 12, "block_size": 64,
    "n_layer": 4, "n_head": 4, "n_embd": 128,
    "bias": False, "learning_rate": 1e-3, "beta2": 0.99, "max_iters": 2000, "warmup_iters": 100,
}  # fmt: skip
Update = Callable[..., Any]  # train.py's, which bench.py hands over


@dataclass
class TrialRun:
    """What `update` needs of a run."""

    settings: TrainSettings
    world: World
    device: torch.device
    compute: Compute
    model: GPT
    forward: Any  # the model, compiled where that was chosen
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    micro_batch: int
    micro_steps: int


def trial_settings(config: str | None, device: torch.device) -> TrainSettings:
    """The settings of a configuration file, or of PLAIN if there is none."""
    if config is None:
        return TrainSettings(**PLAIN)
    return read_settings(TrainSettings, [config], "").settings(on_cpu=device.type == "cpu")


def trial_shape(settings: TrainSettings, device: torch.device) -> GPTConfig:
    """The model's shape, with a vocabulary of characters on a CPU and of GPT-2 elsewhere."""
    return model_config(settings, 65 if device.type == "cpu" else 50257)


def plain_compute(settings: TrainSettings, device: torch.device) -> Compute:
    """The device's precision, and PyTorch's defaults for everything else."""
    return Compute(device.type, choose_dtype(settings.dtype, device), False, torch.get_num_threads())


def best_compute(
    settings: TrainSettings, config: GPTConfig, device: torch.device, world: World = ALONE
) -> Compute:
    """What train.py chooses on this machine."""
    compiled, _ = choose_compile(settings.compile, device)
    threads = choose_threads(settings.threads, world.local_size)
    compute = Compute(device.type, choose_dtype(settings.dtype, device), compiled, threads)
    if world.is_main:
        micro_batch, _ = share_of_step(settings.sequences_per_step(), settings.batch_size, world)
        if device.type == "cpu":
            shape = (micro_batch, config.block_size, config.n_head, config.n_embd)
            found = kernels.probe(compute.dtype, *shape, config.dropout)
            compute.matmul_precision, compute.attention_kernel = found.matmul_precision, found.attention
    return Compute.from_dict(world.broadcast(compute.to_dict()))


def trial_run(
    settings: TrainSettings,
    config: GPTConfig,
    device: torch.device,
    compute: Compute,
    world: World = ALONE,
    plain: bool = False,
) -> TrialRun:
    """A run with initial weights. `plain`: model.py without kernels, and AdamW unfused."""
    model = empty_model(config, device, compute.weights_dtype())
    model.init_weights(settings.seed)
    if not plain:
        kernels.install(model, compute.attention_kernel)
    if settings.recompute:
        recompute_blocks(model)
    forward = torch.compile(model, dynamic=False) if compute.compile else model
    scaler = torch.amp.GradScaler(device.type, enabled=compute.dtype == "float16")
    shares = share_of_step(settings.sequences_per_step(), settings.batch_size, world)
    optimizer = make_optimizer(model, settings)
    for group in optimizer.param_groups if plain else ():
        group["fused"] = False
    return TrialRun(settings, world, device, compute, model, forward, optimizer, scaler, *shares)


def step_function(update: Update, run: TrialRun, forward: Any) -> Callable[[], None]:
    """A function that makes one training step with `forward`: `run.forward`, or that under DDP."""
    config = run.model.config
    rows = torch.randint(config.vocab_size, (run.micro_batch, config.block_size + 1), device=run.device)
    micro_batches = [(rows[:, :-1], rows[:, 1:])] * run.micro_steps
    targets = run.settings.sequences_per_step() * run.settings.block_size
    numbers = itertools.count()

    def step() -> None:
        update(run, forward, Batch(iter(micro_batches), targets), next(numbers))
        synchronize(run.device)

    return step
