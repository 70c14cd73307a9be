"""A run's reports: lines on the terminal, and metrics.jsonl."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from engine.console import silence
from engine.errors import UserError
from engine.system import write_whole


class Console:
    """Prints lines, and on a terminal a progress bar below them; prints nothing unless `is_main`.

    If the pipe or the terminal is closed, it falls silent and the run continues. `details` are lines for
    config.json, printed with --verbose only.
    """

    def __init__(self, is_main: bool) -> None:
        self.speaks = is_main
        self.details: list[str] = []
        self.began = time.perf_counter()
        self.bar: tqdm | None = None
        self.on_terminal = is_main and sys.stdout.isatty() and self._knows_its_width()

    @staticmethod
    def _knows_its_width() -> bool:
        """Whether the width of the terminal, which a bar needs, is known."""
        try:
            return os.get_terminal_size(sys.stdout.fileno()).columns > 0
        except (OSError, ValueError):
            return False

    def say(self, text: str = "") -> None:
        """Print a line, above the bar if there is one."""
        if not self.speaks:
            return
        with self._silence_when_closed():
            if self.bar is not None:
                self.bar.write(text)
            else:
                print(text, flush=True)

    def start_bar(self, done: int, total: int) -> None:
        """Show the bar, on a terminal."""
        if self.on_terminal and done < total:
            with self._silence_when_closed():
                self.bar = tqdm(initial=done, total=total, unit="step", dynamic_ncols=True, leave=False)

    def progress(self, step: int, line: str, due: bool) -> None:
        """Print the step's line if one is due, and move the bar to `step`."""
        if due:
            self.say(f"step {step}: {line}")
        if self.bar is not None:
            with self._silence_when_closed():
                self.bar.set_postfix_str(line, refresh=False)
                self.bar.update(step - self.bar.n)

    def busy(self, what: str) -> None:
        """Show beside the bar what is done between two steps."""
        if self.bar is not None:
            with self._silence_when_closed():
                self.bar.set_postfix_str(what)

    def stop_bar(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            with self._silence_when_closed():
                self.bar.close()
            self.bar = None

    @contextlib.contextmanager
    def _silence_when_closed(self) -> Iterator[None]:
        """After an OSError of the output, discard all further output, including the flush at exit."""
        try:
            yield
        except OSError:
            self.speaks = False
            if self.bar is not None:
                self.bar.disable = True
                self.bar = None
            silence(sys.stdout)


class MetricsLog:
    """metrics.jsonl: one JSON object per line, one for each (step, kind), ordered by step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def start(self, step: int) -> bool:
        """Open for appending; delete the lines after `step`, and a last line that a crash cut short.

        Returns whether any were deleted: then the run repeats steps that it has reported before.
        """
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        if lines:
            write_whole(self.path, b"".join(line + b"\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        return len(kept) < len(lines)

    def record(self, values: dict[str, Any]) -> None:
        """Append one line. Infinities and NaN become null, as JSON requires."""
        assert self._file is not None, "the log is not open"
        tidy = {
            key: None if value != value or value in (math.inf, -math.inf) else value
            for key, value in values.items()
        }
        try:
            self._file.write(json.dumps(tidy) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}; resume when there is room"
            ) from error

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, which `record` has reported
                self._file.close()


def _step_of(line: bytes) -> float:
    """The step of a line; infinity for an invalid line, so that it is dropped."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a last line that a crash cut short."""
    return [json.loads(line) for line in path.read_bytes().splitlines() if _step_of(line) < math.inf]
