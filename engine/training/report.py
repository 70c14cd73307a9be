"""What a step reports, and the clock of training time."""

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.parallel.world import World

if TYPE_CHECKING:
    pass


class StepReport:
    """What one update tells: mean loss, gradient norm, and whether some process was asked to stop.

    The numbers are on their way from the device when this is made; `read` waits for them, so reading a
    step later costs the GPU no pause.
    """

    def __init__(self, step: int, seconds: float, learning_rate: float, values: Tensor, world: World) -> None:
        self.step = step
        self.seconds = seconds
        self.learning_rate = learning_rate
        self.size = world.size
        values = world.sum(values)
        self.arrived = None
        if values.device.type == "cuda":
            self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.values.copy_(values, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()
        else:
            self.values = values

    def read(self) -> tuple[float, float, bool]:
        """(mean loss in nats over the whole step, gradient norm, stop asked)."""
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, norm, stop = self.values.tolist()
        return loss / self.size, norm / self.size, stop > 0


class Clock:
    """Seconds of training: it stands still while something else is done."""

    def __init__(self, step: int, seconds: float) -> None:
        self._before = seconds
        self._since: float | None = None
        self._asked = (step, seconds)

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def steps_per_second(self, step: int, seconds: float) -> float:
        """The speed up to a step that ended at `seconds`, since this was last asked, or since the start."""
        steps, spent = step - self._asked[0], seconds - self._asked[1]
        self._asked = (step, seconds)
        return steps / spent if spent > 0 else 0.0

    def go(self) -> None:
        """Go on."""
        if self._since is None:
            self._since = time.perf_counter()

    def stand(self) -> None:
        """Stand still."""
        self._before, self._since = self.seconds, None
