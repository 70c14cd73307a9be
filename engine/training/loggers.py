"""Optional loggers: Weights & Biases, trackio, TensorBoard. Their packages are imported when one is used."""

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.training.metrics import Console


@dataclass(frozen=True)
class LoggedRun:
    """What a logger needs to know about a run that starts or resumes."""

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


class Logger:
    """A logger of a run; its methods may raise anything. These fit Weights & Biases and trackio."""

    id: str | None = None  # kept in checkpoints, for LoggedRun.id
    view_with: str | None  # a command, or an address
    _run: Any  # of Weights & Biases or trackio

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log the fields of one line of metrics.jsonl."""
        self._run.log(values, step=step)

    def finish(self) -> None:
        """Send what is left."""
        self._run.finish()


class Wandb(Logger):
    """A run of Weights & Biases, or a new part of one, in the group of the run's name.

    Weights & Biases drops steps that it has seen before, and syncing two offline parts with one id keeps only
    the second. So a resumed run becomes a new part if it repeats steps or is offline.
    """

    def __init__(self, run: LoggedRun) -> None:
        import wandb

        resumes = run.id is not None and not run.repeats and wandb.setup().settings.mode == "online"
        self._run = wandb.init(
            project=run.project,
            group=run.name,
            name=run.name if resumes else run.part_name,
            id=run.id if resumes else None,
            resume="allow" if resumes else None,
            dir=str(run.folder),
            config=run.settings,
            settings=wandb.Settings(silent=True, init_timeout=30),
        )
        self.id = self._run.id
        self.view_with = self._run.url
        if self._run.settings.mode == "offline":
            self.view_with = f"wandb sync {shlex.quote(self._run.settings.sync_dir)}"


class Trackio(Logger):
    """A run in trackio's local database; a resumed run that repeats steps becomes a new part."""

    def __init__(self, run: LoggedRun) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.view_with = f"trackio show --project {shlex.quote(run.project)}"
        name = run.part_name if run.repeats else run.name
        self._run = trackio.init(
            run.project, name, group=run.name, config=run.settings, resume="allow" if run.step else "never"
        )


class TensorBoard(Logger):
    """Event files in the run's folder. TensorBoard hides the older values of repeated steps."""

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(run.folder / "tensorboard")
        self.view_with = f"tensorboard --logdir {shlex.quote(folder)}"
        self._writer = SummaryWriter(folder, purge_step=run.step + 1)

    def log(self, values: dict[str, Any], step: int) -> None:
        for name, value in values.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{values['kind']}/{name}", value, step)

    def finish(self) -> None:
        self._writer.close()


LOGGERS = {"wandb": Wandb, "trackio": Trackio, "tensorboard": TensorBoard}


class GuardedLogger:
    """A logger that is switched off, with a warning, at its first error; training continues."""

    def __init__(self, kind: str, run: LoggedRun, console: Console) -> None:
        self.kind, self.console = kind, console
        self.id: str | None = None
        self._logger: Logger | None = None
        with self._switched_off_by_errors():
            logger = LOGGERS[kind](run)
            self._logger, self.id = logger, logger.id

    def record(self, values: dict[str, Any]) -> None:
        """Log a line of metrics.jsonl."""
        with self._switched_off_by_errors():
            if self._logger is not None:
                self._logger.log(values, step=values["step"])

    def finish(self) -> None:
        """End the logging, and print how to view it."""
        with self._switched_off_by_errors():
            if self._logger is not None:
                self._logger.finish()
                if self._logger.view_with is not None:
                    self.console.say(f"{self.kind}: {self._logger.view_with}")

    @contextlib.contextmanager
    def _switched_off_by_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a logger must not stop the training, whatever its reason
            self._logger = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            text = f"warning: {self.kind} is off from here on ({reason}); metrics.jsonl has everything"
            self.console.say(text)
