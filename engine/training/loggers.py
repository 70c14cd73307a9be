"""Optional loggers: Weights & Biases, trackio, TensorBoard. Their packages are imported when one is used."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.training.metrics import Console


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told of a run when it starts or resumes."""

    project: str
    name: str
    folder: Path
    settings: dict[str, Any]
    id: str | None  # the logger's own name for the run, if it is resumed
    step: int  # completed steps; 0 for a new run
    repeats: bool  # steps after this one were logged before

    @property
    def part_name(self) -> str:
        """The name of the part that starts at this step."""
        return f"{self.name} from step {self.step}" if self.step else self.name


class Logger(Protocol):
    """What a run needs of a logger. Its methods may raise anything."""

    id: str | None  # kept in checkpoints, for LoggedRun.id
    to_see_it: str | None  # a command

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log the fields of one line of metrics.jsonl."""
        ...

    def finish(self) -> Any:
        """Send what is left."""
        ...


class Wandb:
    """A run of Weights & Biases, or a new part of one, in the group of the run's name.

    Weights & Biases drops steps that it has seen before, and syncing two offline parts with one id keeps only
    the second. So a resumed run becomes a new part if it repeats steps or is offline.
    """

    def __init__(self, run: LoggedRun) -> None:
        import wandb

        goes_on = run.id is not None and not run.repeats and wandb.setup().settings.mode == "online"
        self._run = wandb.init(
            project=run.project,
            group=run.name,
            name=run.name if goes_on else run.part_name,
            id=run.id if goes_on else None,
            resume="allow" if goes_on else None,
            dir=str(run.folder),
            config=run.settings,
            settings=wandb.Settings(silent=True, init_timeout=30),
        )
        self.id: str | None = self._run.id
        offline = self._run.settings.mode == "offline"
        self.to_see_it = (
            f"wandb sync {shlex.quote(self._run.settings.sync_dir)}" if offline else self._run.url
        )

    def log(self, values: dict[str, Any], step: int) -> None:
        self._run.log(values, step=step)

    def finish(self) -> None:
        self._run.finish()


class Trackio:
    """A run in trackio's local database; a resumed run that repeats steps becomes a new part."""

    id: str | None = None

    def __init__(self, run: LoggedRun) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.to_see_it: str | None = f"trackio show --project {shlex.quote(run.project)}"
        name = run.part_name if run.repeats else run.name
        self._run = trackio.init(
            run.project, name, group=run.name, config=run.settings, resume="allow" if run.step else "never"
        )

    def log(self, values: dict[str, Any], step: int) -> None:
        self._run.log(values, step=step)

    def finish(self) -> None:
        self._run.finish()


class TensorBoard:
    """Event files in the run's folder. TensorBoard hides the older values of repeated steps."""

    id: str | None = None

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(run.folder / "tensorboard")
        self.to_see_it: str | None = f"tensorboard --logdir {shlex.quote(folder)}"
        self._writer = SummaryWriter(folder, purge_step=run.step + 1)

    def log(self, values: dict[str, Any], step: int) -> None:
        for name, value in values.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{values['kind']}/{name}", value, step)

    def finish(self) -> None:
        self._writer.close()


LOGGERS: dict[str, Callable[[LoggedRun], Logger]] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "tensorboard": TensorBoard,
}


class GuardedLogger:
    """A logger that is switched off, with a warning, at its first error; training continues."""

    def __init__(self, kind: str, run: LoggedRun, console: Console) -> None:
        self.kind, self.console = kind, console
        self.id: str | None = None
        self._logger: Logger | None = None
        try:
            self._logger = LOGGERS[kind](run)
            self.id = self._logger.id
        except Exception as error:  # a logger must not stop the training, whatever its reason
            self._give_up(error)

    def record(self, values: dict[str, Any]) -> None:
        """Log a line of metrics.jsonl."""
        if self._logger is not None:
            try:
                self._logger.log(values, step=values["step"])
            except Exception as error:  # as above
                self._give_up(error)

    def finish(self) -> None:
        """End the logging, and print the command that shows it."""
        if self._logger is not None:
            try:
                self._logger.finish()
                if self._logger.to_see_it is not None:
                    self.console.say(f"{self.kind}: {self._logger.to_see_it}")
            except Exception as error:  # as above
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._logger = None
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        self.console.say(f"warning: {self.kind} is off from here on ({reason}); metrics.jsonl has everything")
