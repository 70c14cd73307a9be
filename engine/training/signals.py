"""Catch the signals that end a run, so that all processes stop at the same step and save."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

from engine.parallel.world import World

# SIGQUIT (Ctrl-\) is left alone: it ends a run at once, without a save.
STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
AGREEMENT_SECONDS = 10.0


class StopRequests:
    """Catches the signals by which people and schedulers end a run, so that it can save first.

    All processes must agree on the step to stop at. If they have not done so after `patience` seconds of
    updates, one of them is gone or stuck, and this process exits without saving. A second Ctrl-C exits at
    once. SIGHUP stays ignored if it is ignored (nohup). Python delivers signals to the main thread only, so
    in another thread nothing is caught.
    """

    def __init__(self, world: World) -> None:
        self.received: int | None = None
        # Set by the loop; False during evaluations and saves, when processes cannot agree.
        self.updating = False
        self.patience = AGREEMENT_SECONDS
        self._world = world
        self._received_at = 0.0
        self._handlers_before: dict[int, Any] = {}
        self._wake, self._woken = socket.socketpair()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def step_took(self, seconds: float) -> None:
        """Raise the patience for slow steps: agreement comes two or three steps after the signal."""
        self.patience = max(AGREEMENT_SECONDS, 4 * seconds)

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in STOP_SIGNALS:
            number = getattr(signal, name, None)  # Windows lacks some
            if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                continue
            self._handlers_before[number] = signal.signal(number, self._receive)
        if self._world.size > 1:
            # Python runs no handler while the main thread waits for other processes, but this byte arrives.
            self._wake.setblocking(False)
            signal.set_wakeup_fd(self._wake.fileno())
            self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._thread is not None:
            signal.set_wakeup_fd(-1)
            self._ended.set()
            self._wake.send(b"\0")
            self._thread.join()
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._wake.close()
        self._woken.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = number, now
            if self._world.is_main:
                with contextlib.suppress(OSError):  # the terminal is gone
                    os.write(2, b"stopping: a checkpoint is written after the step in progress\n")
        # A terminal sends Ctrl-C to all processes, and torchrun passes it on once more.
        elif number == signal.SIGINT and now - self._received_at > 2:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """In a thread: wait for a signal, then exit the process when `patience` has passed."""
        number = self._woken.recv(1)[0]
        waited = 0.0
        while waited < self.patience:
            if self._ended.wait(0.1):
                return
            waited = waited + 0.1 if self.updating else 0.0
        with contextlib.suppress(OSError):
            print(
                f"rank {self._world.rank}: no agreement to stop within {self.patience:.0f} s, so a process "
                f"is gone or stuck; leaving without a checkpoint",
                file=sys.stderr,
                flush=True,
            )
        os._exit(128 + number)
