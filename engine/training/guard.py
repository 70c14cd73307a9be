"""Stop a run whose loss diverges, before its weights are saved."""

import math
import statistics
from collections import deque

from engine.errors import UserError
from engine.training.report import Report


class Diverged(UserError):
    """The loss or the gradient of the update to `step` is not finite."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class LossGuard:
    """Checks the losses, step after step."""

    def __init__(self, max_ratio: float | None, scaled: bool) -> None:
        """`max_ratio` is the setting loss_spike; `scaled`: a scaler skips updates that overflow."""
        self.max_ratio, self.scaled = max_ratio, scaled
        self.losses: deque[float] = deque(maxlen=100)

    def check(self, report: Report) -> None:
        """Raise Diverged if loss or gradient is not finite, UserError if the loss jumps up."""
        if report.loss is None:
            return
        if not (math.isfinite(report.loss) and (math.isfinite(report.gradient_norm) or self.scaled)):
            raise Diverged(
                report.step,
                f"training diverged at step {report.step} (loss {report.loss}, gradient norm "
                f"{report.gradient_norm}, learning rate {report.learning_rate:.3g}); the checkpoints before "
                f"it are good, resume with a lower --learning_rate",
            )
        mean = statistics.fmean(self.losses or [report.loss])
        if self.max_ratio is not None and report.loss > self.max_ratio * mean:
            raise UserError(
                f"the loss of step {report.step} is {report.loss:.4f}, more than loss_spike "
                f"{self.max_ratio} times the mean of those before, {mean:.4f}; "
                f"resume from the last checkpoint, or raise loss_spike"
            )
        self.losses.append(report.loss)
