"""Where does a run of several processes hang? Each notes where it is; one that stands still tells of all.

A process that is stopped, swapped out or in an endless loop leaves the others waiting in a collective
operation until its time-out, and the error then names the one that waited, not the one that it waited for.
"""

import json
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Protocol

from engine.parallel.world import World

ROOT = Path(__file__).resolve().parents[2]
LISTED = 8  # processes that a report names
PATIENCE_AFTER_ERROR = 5.0  # seconds for the thread to end after an error, which may be the store's


class HasStep(Protocol):
    """Something that counts the completed steps."""

    step: int


class Watchdog:
    """While training runs, a thread that reports when this process has stood still for `seconds`.

    The note of a process is its step and the function that it is in, written into the group's store a few
    times in `seconds`. The training loop does nothing for it.
    """

    def __init__(self, world: World, state: HasStep, seconds: float) -> None:
        self.world, self.state, self.seconds = world, state, seconds
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched = threading.get_ident()

    def __enter__(self) -> "Watchdog":
        if self.world.size > 1:
            self._watched = threading.get_ident()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread. A thread that is still in the store's C++ when Python ends aborts the process."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(None if kind is None else PATIENCE_AFTER_ERROR)

    def _watch(self) -> None:
        # A connection of its own: the training thread may block the other.
        store = self.world.store.clone()  # pyright: ignore[reportAttributeAccessIssue]
        place, since, told = "", time.monotonic(), False
        while not self._ended.wait(self.seconds / 4):
            now = self.place()
            if now != place:
                place, since, told = now, time.monotonic(), False
            store.set(f"place of rank {self.world.rank}", json.dumps([place, time.time()]))
            if not told and time.monotonic() - since >= self.seconds:
                told = True
                notes = {}
                for rank in range(self.world.size):
                    key = f"place of rank {rank}"
                    notes[rank] = json.loads(store.get(key)) if store.check([key]) else ["the start", 0.0]
                text = report(notes, self.world.rank, self.seconds)
                if text is not None:
                    print(text, file=sys.stderr, flush=True)

    def place(self) -> str:
        """Where the training thread is: e.g. "step 12, in update (train.py, line 140)"."""
        frames = traceback.extract_stack(sys._current_frames()[self._watched])
        ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
        inner = (ours or frames)[-1]
        where = f"in {inner.name} ({Path(inner.filename).name}, line {inner.lineno})"
        return f"step {self.state.step + 1}, {where}"


def report(notes: dict[int, tuple[str, float]], rank: int, seconds: float) -> str | None:
    """What to print from `notes`, each process's place and when it wrote it; None where another speaks.

    The lowest process that is alive speaks. One that has not written for most of `seconds` is silent.
    """
    newest = max(written for _, written in notes.values())
    silent = {other for other, (_, written) in notes.items() if newest - written >= 0.75 * seconds}
    if rank != min(set(notes) - silent):
        return None
    here = notes[rank][0]
    apart = [other for other, (place, _) in notes.items() if other in silent or place != here]
    lines = [f"rank {rank} has waited for {seconds:.0f} s at {here}"]
    for other in apart[:LISTED]:
        state = "silent, last" if other in silent else "alive,"
        lines.append(f"rank {other} is {state} at {notes[other][0]}")
    if len(apart) > LISTED:
        lines.append(f"and {len(apart) - LISTED} more")
    if not apart:
        lines.append(f"all {len(notes)} processes are alive and at the same place")
    return "; ".join(lines)
