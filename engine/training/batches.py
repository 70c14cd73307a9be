"""Parts of the training loop: batches read ahead, the step report, the clock, signals, evaluation."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.data.order import training_starts

if TYPE_CHECKING:
    from engine.training.run import Run


class Batches:
    """This process's micro-batches, step after step; the next step's are read while this one computes."""

    # Sequences that begin with documents differ in their number of targets; the others all have `block_size`.

    def __init__(self, run: "Run", consumed: int) -> None:
        settings = run.settings
        self.split, self.seed, self.block_size = run.data.train, settings.seed, settings.block_size
        self.sequences, self.consumed = settings.sequences_per_step(), consumed
        self.micro_batch, self.world, self.device = run.micro_batch, run.world, run.device
        self.separator = run.model.config.separator if settings.documents == "aligned" else None
        self.dtype = run.choices.weights_dtype()
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._next: Future[tuple[Tensor, Tensor]] = self._reader.submit(self._read, consumed)

    def step(self) -> Iterator[tuple[Tensor, Tensor, float | Tensor]]:
        """The micro-batches of the next step: inputs and targets, each (B, T) on the device, and a weight.

        Mean losses times these weights sum, over the micro-batches, to the process's part of the step's mean
        loss over all targets, times the number of processes (which DDP divides by).
        """
        rows, lengths = self._next.result()
        self.consumed += self.sequences
        self._next = self._reader.submit(self._read, self.consumed)
        weights: list[float | Tensor] = [self.micro_batch / len(rows)] * (len(rows) // self.micro_batch)
        if self.separator is not None:
            lengths = lengths.to(self.device, non_blocking=True)
            counts = lengths.view(-1, self.micro_batch).sum(dim=1).to(self.dtype)
            weights = (counts * self.world.size / self.world.sum(counts.sum())).unbind()
        for index, micro in enumerate(rows.split(self.micro_batch)):
            on_device = micro.to(self.device, non_blocking=True)
            ids, targets = on_device[:, :-1], on_device[:, 1:]
            if self.separator is not None:
                here = lengths[index * self.micro_batch :][: self.micro_batch, None]
                beyond = torch.arange(self.block_size, device=self.device) >= here
                targets = targets.masked_fill(beyond, -100)
            yield ids, targets, weights[index]

    def _read(self, consumed: int) -> tuple[Tensor, Tensor]:
        """This process's share of the step that begins at sequence `consumed`, pinned for a GPU.

        The rows (share, T + 1), and how many targets each has, (share,).
        """
        share = self.sequences // self.world.size
        first = consumed + self.world.rank * share
        starts = training_starts(self.seed, first, share, self.split.tokens, self.block_size)
        if self.separator is None:
            rows, targets = self.split.windows(starts, self.block_size), np.full(share, self.block_size)
        else:
            rows, targets = self.split.aligned_windows(starts, self.block_size, self.separator)
        tensors = torch.from_numpy(rows), torch.from_numpy(targets)
        return tuple(tensor.pin_memory() for tensor in tensors) if self.device.type == "cuda" else tensors

    def close(self) -> None:
        """Stop reading."""
        self._reader.shutdown(wait=True, cancel_futures=True)
