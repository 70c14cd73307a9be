"""Signals that end a run: caught, agreed on by all processes, answered by a save."""

import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from engine.parallel.world import World

if TYPE_CHECKING:
    pass

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
AGREEMENT_SECONDS = 10.0


class StopRequests:
    """Catches the signals by which people and schedulers end a run, so that it can save first.

    Several processes must agree on the step to stop at. Where they have not agreed after `patience` seconds
    of updating, one must be gone or stuck; this one leaves, without writing. A second Ctrl-C leaves at once.
    """

    def __init__(self, world: World) -> None:
        self.received: int | None = None
        # Set by the loop: between evaluations and saves, when agreement can be expected.
        self.updating = False
        self.patience = AGREEMENT_SECONDS
        self._world = world
        self._at = 0.0
        self._old: dict[int, object] = {}
        self._wake, self._woken = socket.socketpair()

    def step_took(self, seconds: float) -> None:
        """Agreement comes two or three steps after the signal, so slow steps need more patience."""
        self.patience = max(AGREEMENT_SECONDS, 4 * seconds)

    def __enter__(self) -> "StopRequests":
        for name in STOP_SIGNALS:
            if hasattr(signal, name):
                number = getattr(signal, name)
                self._old[number] = signal.signal(number, self._receive)
        if self._world.size > 1:
            # Python runs no handler while the main thread waits for other processes; a byte arrives anyhow.
            self._wake.setblocking(False)
            signal.set_wakeup_fd(self._wake.fileno())
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.updating = False
        if self._world.size > 1:
            signal.set_wakeup_fd(-1)
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = number, now
            if self._world.is_main:
                os.write(2, b"stopping: a checkpoint is written after the step in progress\n")
        # torchrun passes on a Ctrl-C that has arrived already.
        elif number == signal.SIGINT and now - self._at > 2:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """In a thread: wait for a signal, then for the end of patience."""
        number = self._woken.recv(1)[0]
        waited = 0.0
        while waited < self.patience:
            time.sleep(0.1)
            waited = waited + 0.1 if self.updating else 0.0
        print(
            f"rank {self._world.rank}: no agreement to stop within {self.patience:.0f} s, so a process is "
            f"gone or stuck; leaving without a checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + number)
