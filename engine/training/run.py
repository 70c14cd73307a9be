"""A training run: what stays the same while it goes on, and where it stands."""

import dataclasses
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from engine.data.dataset import Dataset
from engine.device import Choices, peak_flops
from engine.parallel.world import World
from engine.settings import TrainSettings
from engine.training.memory import Memory
from engine.training.metrics import Console, MetricsLog, WandbLog
from model import GPT, flops_per_token


@dataclass
class Progress:
    """Where a run stands; every checkpoint holds it."""

    step: int = 0
    sequences: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None
    evaluations_without_gain: int = 0

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> "Progress":
        """What a checkpoint's meta.json says of it."""
        return cls(**{field.name: meta[field.name] for field in dataclasses.fields(cls)})


@dataclass
class Run:
    """What stays the same while a run goes on."""

    settings: TrainSettings
    world: World
    console: Console
    choices: Choices
    used_cpu_part: bool
    device: torch.device
    data: Dataset
    model: GPT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    micro_batch: int
    micro_steps: int
    memory: Memory  # predicted
    ranks: list[dict[str, Any]]  # host, device and seed of each process
    folder: Path | None = None  # the fields from here on are None where nothing is to be written
    metrics: MetricsLog | None = None
    wandb: WandbLog | None = None
    recent_losses: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    @property
    def tokens_per_step(self) -> int:
        """Targets of one step, over all processes."""
        return self.settings.sequences_per_step() * self.settings.block_size

    def mfu(self, tokens_per_second: float) -> float | None:
        """The share of the hardware's peak that the model's arithmetic takes; None where that is unknown."""
        peak = peak_flops(self.device, self.choices.dtype)
        return (
            None
            if peak is None
            else tokens_per_second * flops_per_token(self.model.config) / (peak * self.world.size)
        )
