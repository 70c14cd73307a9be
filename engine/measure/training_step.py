"""train.py's own update on random tokens, for whatever times, traces or weighs it."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.command_line import read_settings
from engine.device import Choices, choose_compile, choose_dtype, choose_threads
from engine.kernels import probe_kernels
from engine.measure.timing import synchronize
from engine.parallel.world import ALONE, World, share_of_step
from engine.settings import TrainSettings
from engine.shape import model_config
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
    choices: Choices
    model: GPT
    forward: Any  # the model, compiled where that was chosen
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    micro_batch: int
    micro_steps: int


def trial_settings(config: str | None, device: torch.device) -> TrainSettings:
    """The plain setting, or that of a configuration file."""
    if config is None:
        return TrainSettings(**PLAIN)
    return read_settings(TrainSettings, [config], "").settings(on_cpu=device.type == "cpu")


def trial_shape(settings: TrainSettings, device: torch.device) -> GPTConfig:
    """The model of a setting: for characters on a CPU, for GPT-2's vocabulary elsewhere."""
    return model_config(settings, 65 if device.type == "cpu" else 50257)


def plain_choices(settings: TrainSettings, device: torch.device) -> Choices:
    """The precision of the device, and otherwise what PyTorch does without being asked."""
    return Choices(device.type, choose_dtype(settings.dtype, device), False, torch.get_num_threads())


def best_choices(
    settings: TrainSettings, config: GPTConfig, device: torch.device, world: World = ALONE
) -> Choices:
    """What train.py chooses on this machine."""
    compiled, _ = choose_compile(settings.compile, device)
    threads = choose_threads(settings.threads, world.local_size)
    choices = Choices(device.type, choose_dtype(settings.dtype, device), compiled, threads)
    if world.is_main:
        micro_batch, _ = share_of_step(settings.sequences_per_step(), settings.batch_size, world)
        probe_kernels(choices, micro_batch, config.block_size, config.n_head, config.n_embd, config.dropout)
    return Choices.from_dict(world.broadcast(choices.to_dict()))


def trial_run(
    settings: TrainSettings, config: GPTConfig, device: torch.device, choices: Choices, world: World = ALONE
) -> TrialRun:
    """A run with its initial weights."""
    model = GPT.empty(config, device, choices.weights_dtype())
    model.init_weights(settings.seed)
    model.use_attention_kernel(choices.attention_kernel)
    model.recompute_blocks(settings.recompute)
    forward = torch.compile(model) if choices.compile else model
    scaler = torch.amp.GradScaler(device.type, enabled=choices.dtype == "float16")
    shares = share_of_step(settings.sequences_per_step(), settings.batch_size, world)
    optimizer = make_optimizer(model, settings)
    return TrialRun(settings, world, device, choices, model, forward, optimizer, scaler, *shares)


def step_function(update: Update, run: TrialRun, forward: Any) -> Callable[[], None]:
    """A function that makes one training step; `forward` is `run.forward`, perhaps under DDP."""
    config = run.model.config
    rows = torch.randint(config.vocab_size, (run.micro_batch, config.block_size + 1), device=run.device)
    micro_batches = [(rows[:, :-1], rows[:, 1:], 1 / run.micro_steps)] * run.micro_steps
    numbers = itertools.count()

    def step() -> None:
        update(run, forward, micro_batches, next(numbers), False)
        synchronize(run.device)

    return step
