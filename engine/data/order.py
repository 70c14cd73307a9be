"""The order in which training and evaluation read a split."""

import hashlib
from collections.abc import Iterator

import numpy as np

from engine.data.dataset import Split


def training_starts(seed: int, consumed: int, count: int, tokens: int, block_size: int) -> np.ndarray:
    """Where the training windows number `consumed` to `consumed + count` begin, (count,) int64.

    Within an epoch windows do not overlap and none comes twice; each epoch has the same number of them.
    """
    per_epoch = max(1, (tokens - block_size) // block_size)
    room = min(block_size, tokens - per_epoch * block_size)  # offsets at which they all fit
    numbers = np.arange(consumed, consumed + count)
    starts = np.empty(count, dtype=np.int64)
    for epoch in np.unique(numbers // per_epoch):
        here = numbers // per_epoch == epoch
        keys = _keys(seed, int(epoch))
        offset = int(keys[0] % np.uint64(room))
        starts[here] = offset + permute(numbers[here] % per_epoch, per_epoch, keys[1:]) * block_size
    return starts


def _keys(seed: int, epoch: int) -> np.ndarray:
    """(8,) uint64: one for the epoch's offset and seven for the rounds of its permutation."""
    return np.frombuffer(hashlib.sha512(f"windows {seed} {epoch}".encode()).digest(), dtype="<u8")


def permute(indices: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """The images of indices (n,) under a pseudo-random permutation of 0 … size - 1, without storing it.

    A Feistel network permutes the numbers of 2b bits, the smallest power of four that holds `size`;
    results outside are permuted again until they fall inside, which keeps it a permutation.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    values = indices.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & low
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & low)
        values[outside] = (left << half) | right
        outside = values >= size
    return values.astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def evaluation_windows(split: Split, block_size: int, windows: int | None) -> int:
    """How many fixed windows an evaluation covers: all of the split's, or the first `windows`."""
    total = -(-(split.tokens - 1) // block_size)
    return total if windows is None else min(total, windows)


def evaluation_batches(
    split: Split, block_size: int, first: int, last: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of fixed windows `first` to `last` in batches; a split's short last one alone."""
    full = (split.tokens - 1) // block_size
    for begin in range(first, min(last, full), batch_size):
        count = min(batch_size, min(last, full) - begin)
        ids = split.read(begin * block_size, count * block_size + 1)
        split.check_ids(ids)
        yield ids[:-1].reshape(count, block_size), ids[1:].reshape(count, block_size)
    if first <= full < last:
        ids = split.read(full * block_size, split.tokens - full * block_size)
        split.check_ids(ids)
        yield ids[None, :-1], ids[None, 1:]
