"""Processes that work on pieces of input, and what they answer in the order of the pieces."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from engine.encode import Job, start_worker
from engine.errors import UserError


class Workers:
    """So many processes, or this one alone where the number is 1, that know a job."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool: ProcessPoolExecutor | None = None

    def start(self, job: Job) -> None:
        """Let them know a job, in place of the one before."""
        self.close()
        # This process too: it finds out what is wrong with the job before others are started.
        start_worker(job)
        if self.number > 1:
            self._pool = ProcessPoolExecutor(self.number, get_context("spawn"), start_worker, (job, True))

    def in_order(
        self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]
    ) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Each task and the function's answer to it, in the tasks' order; a few are under way at a time."""
        if self._pool is None:
            for task in tasks:
                yield task, function(*task)
            return
        waiting: deque[tuple[tuple[Any, ...], Future[Any]]] = deque()
        try:
            for task in tasks:
                waiting.append((task, self._pool.submit(function, *task)))
                if len(waiting) > 2 * self.number:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process has died, for want of memory perhaps; run the same command again with "
                "fewer --workers: it goes on where it was"
            ) from error

    def close(self) -> None:
        """Stop the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hashes_of(paths: list[Path]) -> list[str]:
    """The SHA-256 of files, several at a time."""
    with ThreadPoolExecutor(available_cores()) as threads:
        return list(threads.map(_hash_of, paths))


def _hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
