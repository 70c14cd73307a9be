"""A training run: what stays the same during it (Run), and its progress (RunState)."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.data.dataset import Dataset
from engine.device import Compute, peak_flops
from engine.errors import UserError
from engine.parallel.world import World
from engine.settings import TrainSettings
from engine.shape import flops_per_token
from engine.training.loggers import GuardedLogger
from engine.training.metrics import Console, MetricsLog
from model import GPT


@dataclass
class RunState:
    """The progress of a run, stored in every checkpoint."""

    step: int = 0  # completed updates
    sequences: int = 0  # consumed by them
    seconds: float = 0.0  # of training
    best_step: int | None = None
    best_loss: float | None = None
    evaluations_without_gain: int = 0
    evaluation_windows: int | None = None  # windows that an evaluation covers; None: all of a split
    steps_without_targets: int = 0  # steps that made no update, since their sequences held no target

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> "RunState":
        """The state in a checkpoint's meta.json. Raises UserError for an impossible number."""
        windows, empty = meta.get("evaluation_windows"), meta.get("steps_without_targets", 0)
        if not (windows is None or (type(windows) is int and windows > 0)) or type(empty) is not int:
            raise UserError("the checkpoint's evaluation_windows or steps_without_targets is damaged")
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in meta.items() if name in names})

    def count_evaluation(self, val_loss: float) -> None:
        """Record an evaluation at this step: the best one so far, or one more without a gain."""
        if self.best_loss is None or val_loss < self.best_loss:
            self.best_loss, self.best_step = val_loss, self.step
            self.evaluations_without_gain = 0
        else:
            self.evaluations_without_gain += 1

    def forget_best(self) -> None:
        """Restart the search for the best loss: later losses are not comparable with earlier ones."""
        self.best_loss, self.best_step, self.evaluations_without_gain = None, None, 0


@dataclass
class Run:
    """What stays the same during a run."""

    settings: TrainSettings
    world: World
    console: Console
    compute: Compute
    used_cpu_part: bool
    device: torch.device
    data: Dataset
    model: GPT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ranks: list[dict[str, Any]]  # host, device and seed of each process
    resumed: bool
    micro_batch: int = 1  # sequences that this process works on at a time
    micro_steps: int = 1  # micro-batches of a step
    folder: Path | None = None  # None if nothing is written; the two logs are None on all ranks but 0
    metrics: MetricsLog | None = None
    logger: GuardedLogger | None = None

    @property
    def tokens_per_step(self) -> int:
        """Tokens that a step reads, over all processes."""
        return self.settings.sequences_per_step() * self.settings.block_size

    def mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation: the share of the hardware's peak in use; None if the peak is unknown."""
        peak = peak_flops(self.device, self.compute.dtype)
        if peak is None:
            return None
        return tokens_per_second * flops_per_token(self.model.config) / (peak * self.world.size)

    def record(self, step: int, kind: str, seconds: float, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, and hand it to the logger; only rank 0 has these."""
        tokens = step * self.tokens_per_step
        line = {"step": step, "kind": kind, "tokens": tokens, "seconds": round(seconds, 4)}
        for log in (self.metrics, self.logger):
            if log is not None:
                log.record(line | values)
