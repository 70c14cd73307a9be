"""Report which process of a run hangs, and where.

A collective operation that times out names a process that waits, not the one at fault. So every process
writes its position into the group's store now and then, and a stalled process reports the positions of all.
"""

import json
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from engine.parallel.world import World
from engine.versions import ROOT

LISTED = 8  # processes that a report names
PATIENCE_AFTER_ERROR = 5.0  # seconds for the thread to end after an error, which may be the store's


class Watchdog:
    """Reports, from a thread, when this process has made no progress for `seconds`.

    `state.step` counts completed steps; the training loop needs no call for it.
    """

    def __init__(self, world: World, state: Any, seconds: float) -> None:
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

    def __exit__(self, *exception: object) -> None:
        """End the thread. The process would abort if the thread were in the store's C++ code at exit."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(None if exception[0] is None else PATIENCE_AFTER_ERROR)

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
        """Position of the training thread, e.g. "step 12, in update (train.py, line 140)"."""
        frames = traceback.extract_stack(sys._current_frames()[self._watched])
        ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
        inner = (ours or frames)[-1]
        where = f"in {inner.name} ({Path(inner.filename).name}, line {inner.lineno})"
        return f"step {self.state.step + 1}, {where}"


def report(notes: dict[int, tuple[str, float]], rank: int, seconds: float) -> str | None:
    """The report to print, or None if another process prints it.

    `notes` holds each process's position and when it was written. The lowest rank that still writes prints;
    a rank that has not written for most of `seconds` counts as silent.
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
