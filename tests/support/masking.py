"""Sequences whose positions are no targets, as those of a data set with a mask may be."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from engine.data.dataset import NO_TARGET
from engine.training.batches import Batches


@contextlib.contextmanager
def without_targets(numbers: set[int]) -> Iterator[None]:
    """Training in which the sequences of these numbers, counted over the whole run, have no targets."""
    read, step = Batches._read, Batches.step

    def masked_read(self: Batches, consumed: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids, targets = read(self, consumed)
        first = consumed + self.world.rank * len(targets)
        for row in range(len(targets)):
            if first + row in numbers:
                targets[row] = NO_TARGET
        return ids, targets

    def counting_step(self: Batches) -> object:
        self.all_count = False
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "_read", masked_read)
        patch.setattr(Batches, "step", counting_step)
        yield
