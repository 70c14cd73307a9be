"""The order in which training and evaluation read a split.

The sequences of a step are a function of (seed, number of sequences consumed before it) alone. Each epoch
cuts the text into windows of `block_size` at an offset of its own and visits them in a random order, each one
once. The order is computed, not stored: a keyed permutation (a Feistel network with cycle walking, Black and
Rogaway 2002). Resuming needs one number, and any number of processes read the same sequences at a step.

An evaluation reads windows of a fixed grid, which begins with the split and does not overlap: all of them, or
so many spread evenly over the split. So each token is predicted at most once, at every evaluation the same.
"""

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
        # One for the offset, and seven for the rounds of the permutation.
        keys = np.frombuffer(hashlib.sha512(f"windows {seed} {epoch}".encode()).digest(), dtype="<u8")
        offset = int(keys[0] % np.uint64(room))
        starts[here] = offset + permute(numbers[here] % per_epoch, per_epoch, keys[1:]) * block_size
    return starts


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
    """How many windows an evaluation reads: `windows`, at most all of the grid; all for None."""
    grid = -(-(split.tokens - 1) // block_size)  # the last one may be short
    return grid if windows is None else min(grid, windows)


def evaluation_batches(
    split: Split,
    block_size: int,
    windows: int,
    first: int,
    last: int,
    batch_size: int,
    separator: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets, each (B, T) int64, of an evaluation's windows number `first` to `last`, in batches.

    The grid is cut into `windows` equal parts, and the window in the middle of each is read. A split's short
    last window comes alone. Those of conversations are `aligned_windows`. Raises UserError for an unknown id.
    """
    grid = evaluation_windows(split, block_size, None)
    full = (split.tokens - 1) // block_size
    places = (2 * np.arange(first, last) + 1) * grid // (2 * windows)
    whole = places if split.is_masked else places[places < full]
    for begin in range(0, len(whole), batch_size):
        starts = whole[begin : begin + batch_size] * block_size
        if split.is_masked:
            assert separator is not None, "conversations begin with a separator"
            yield split.aligned_windows(starts, block_size, separator)
        else:
            rows = split.windows(starts, block_size)
            yield rows[:, :-1], rows[:, 1:]
    if len(whole) < len(places):
        row = split.windows(np.array([full * block_size]), split.tokens - 1 - full * block_size)
        yield row[:, :-1], row[:, 1:]
