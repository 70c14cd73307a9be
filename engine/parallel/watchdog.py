"""Report which process of a run hangs, and where.

A collective operation that times out names a process that waits, not the one at fault. So every process
writes its position into the group's store now and then, and a stalled process reports the positions of all.
"""

import contextlib
import functools
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.parallel.world import World
from engine.versions import ROOT

LISTED = 8  # processes that a report names
PATIENCE_AFTER_ERROR = 5.0  # seconds for the thread to end after an error, which may be the store's


@contextlib.contextmanager
def watchdog(world: World, state: Any, seconds: float) -> Iterator[None]:
    """Report, from a thread, when this process makes no progress for `seconds`."""
    if world.size == 1:
        yield
        return
    ended, watched = threading.Event(), threading.get_ident()
    watch = functools.partial(_watch, world, lambda: place_of(watched, state.step + 1), seconds, ended)
    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    patience: float | None = PATIENCE_AFTER_ERROR
    try:
        yield
        patience = None
    finally:  # the process would abort if the thread were in the store's C++ code at exit
        ended.set()
        thread.join(patience)


def _watch(world: World, find_place: Callable[[], str], seconds: float, ended: threading.Event) -> None:
    # A connection of its own: the training thread may block the other.
    store = world.store.clone()  # pyright: ignore[reportAttributeAccessIssue]
    place, since, told = "", time.monotonic(), False
    while not ended.wait(seconds / 4):
        now = find_place()
        if now != place:
            place, since, told = now, time.monotonic(), False
        store.set(f"place of rank {world.rank}", json.dumps([place, time.time()]))
        if not told and time.monotonic() - since >= seconds:
            told = True
            notes = {}
            for rank in range(world.size):
                key = f"place of rank {rank}"
                notes[rank] = json.loads(store.get(key)) if store.check([key]) else ["the start", 0.0]
            text = report(notes, world.rank, seconds)
            if text is not None:
                print(text, file=sys.stderr, flush=True)


def place_of(thread: int, step: int) -> str:
    """Position of a thread, e.g. "step 12, in update (train.py, line 140)"."""
    frames = traceback.extract_stack(sys._current_frames()[thread])
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
    inner = (ours or frames)[-1]
    return f"step {step}, in {inner.name} ({Path(inner.filename).name}, line {inner.lineno})"


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
