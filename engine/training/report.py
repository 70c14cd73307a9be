"""The report of a step, and the clock that measures training time."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.parallel.world import World


class Update(NamedTuple):
    """The results of one update. The tensors are scalars on the device."""

    loss_sum: Tensor  # in nats, over this process's targets
    targets: int  # over all processes
    gradient_norm: Tensor  # before clipping
    learning_rate: float


@dataclass(frozen=True)
class Report:
    """An update's numbers, over all processes."""

    step: int
    seconds: float  # of training, when the step had been sent to the device
    learning_rate: float
    loss: float | None  # mean in nats over the step's targets; None: it had none
    gradient_norm: float
    stop_asked: bool  # whether any process was asked to stop


class PendingReport:
    """A report whose numbers are still being copied from the device.

    `read` waits for them. Calling it one step later lets the GPU work on meanwhile.
    """

    def __init__(self, step: int, seconds: float, update: Update, stop_asked: bool, world: World) -> None:
        self.step = step
        self._seconds, self._update, self._size = seconds, update, world.size
        loss_sum = update.loss_sum
        stop = torch.full_like(loss_sum, float(stop_asked))
        numbers = world.all_reduce(torch.stack((loss_sum, update.gradient_norm.to(loss_sum), stop)))
        self._numbers, self._arrived = numbers, None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> Report:
        """Wait for the numbers and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss_sum, norms, stops = self._numbers.tolist()
        return Report(
            step=self.step,
            seconds=self._seconds,
            learning_rate=self._update.learning_rate,
            loss=loss_sum / self._update.targets if self._update.targets else None,
            gradient_norm=norms / self._size,  # the same on all processes
            stop_asked=stops > 0,
        )


class Clock:
    """Counts seconds of training; pause it during other work."""

    def __init__(self, step: int, seconds: float) -> None:
        self._earlier = seconds
        self._started: float | None = None
        self._last_report = (step, seconds)

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._earlier + (0.0 if self._started is None else time.perf_counter() - self._started)

    def steps_per_second(self, step: int, seconds: float) -> float:
        """Steps per second since the last call (or the start), up to a step that ended at `seconds`."""
        steps, spent = step - self._last_report[0], seconds - self._last_report[1]
        self._last_report = (step, seconds)
        return steps / spent if spent > 0 else 0.0

    def start(self) -> None:
        """Start counting, if paused."""
        if self._started is None:
            self._started = time.perf_counter()

    def pause(self) -> None:
        """Stop counting until `start`."""
        self._earlier, self._started = self.seconds, None
