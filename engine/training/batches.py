"""Micro-batches, read ahead while the previous step is computed."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.data.dataset import NO_TARGET
from engine.data.order import training_starts
from engine.training.run import Run


class Batch(NamedTuple):
    """One step's micro-batches of this process, and the number of targets over all processes."""

    # Ids and targets, each (B, T), on the device; in tune.py what its losses take.
    micro_batches: Iterator[tuple[Any, Any]]
    targets: int  # that are not NO_TARGET, over all processes


class Batches:
    """This process's micro-batches, step after step."""

    def __init__(self, run: Run, consumed: int) -> None:
        """Start after `consumed` sequences."""
        settings = run.settings
        self.split, self.seed, self.block_size = run.data.train, settings.seed, settings.block_size
        self.sequences, self.consumed = settings.sequences_per_step(), consumed
        self.micro_batch, self.world, self.device = run.micro_batch, run.world, run.device
        self.separator = run.model.config.separator if settings.documents == "aligned" else None
        self.all_count = self.separator is None  # every position is a target
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._next: Future[tuple[Tensor, Tensor]] = self._reader.submit(self._read, consumed)

    def step(self) -> Batch:
        """The next step's batch. All processes must call this together if sequences differ in targets."""
        ids, targets = self._next.result()
        self.consumed += self.sequences
        self._next = self._reader.submit(self._read, self.consumed)
        number = self.sequences * self.block_size
        if not self.all_count:
            number = int(self.world.all_reduce((targets != NO_TARGET).sum()))
        return Batch(self._on_device(ids, targets), number)

    def _on_device(self, ids: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Split a step's (share, T) into micro-batches on the device; only pinned memory is copied async."""
        pinned = self.device.type == "cuda"
        for micro in zip(ids.split(self.micro_batch), targets.split(self.micro_batch), strict=True):
            micro_ids, micro_targets = (tensor.to(self.device, non_blocking=pinned) for tensor in micro)
            yield micro_ids, micro_targets

    def _read(self, consumed: int) -> tuple[Tensor, Tensor]:
        """This process's share of the step that begins at sequence `consumed`, pinned for a GPU.

        Ids and targets, each (share, T).
        """
        share = self.sequences // self.world.size
        first = consumed + self.world.rank * share
        starts = training_starts(self.seed, first, share, self.split.tokens, self.block_size)
        if self.separator is None:
            rows = self.split.windows(starts, self.block_size)
            ids, targets = rows[:, :-1], rows[:, 1:]
        else:
            ids, targets = self.split.aligned_windows(starts, self.block_size, self.separator)
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (ids, targets)]
        if self.device.type == "cuda":
            tensors = [tensor.pin_memory() for tensor in tensors]
        return tensors[0], tensors[1]

    def close(self) -> None:
        """Stop reading, and end the thread that reads."""
        self._reader.shutdown(wait=True, cancel_futures=True)
