"""Score a model on a text or on continuations, with standard errors.

A score is a mean over units taken as independent (windows of a text, examples of a task), and its error is
the standard error of that mean. The model must be in evaluation mode.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import UserError
from engine.generation import exact_dtype
from model import GPT


@dataclass(frozen=True)
class Score:
    """A figure and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"


Figures = dict[str, Score | int | None]  # of a task, by what they are; None: unknown


def ratio_of(sums: Sequence[float], counts: Sequence[int]) -> Score:
    """Σ sums / Σ counts over independent units, and a ratio estimate's error (Cochran, 1977, §2.11)."""
    units, total = len(sums), sum(counts)
    ratio = math.fsum(sums) / total
    spread = math.fsum((part - ratio * count) ** 2 for part, count in zip(sums, counts, strict=True))
    return Score(ratio, math.sqrt(spread * units / (units - 1)) / total if units > 1 else math.nan)


def mean_of(values: Sequence[float]) -> Score:
    """The mean of independent values, and its standard error."""
    return ratio_of(values, [1] * len(values))


def perplexity_of(loss: Score) -> Score:
    """exp of a loss in nats, with its standard error to first order; infinite from 700 nats on."""
    perplexity = math.exp(loss.value) if loss.value < 700 else math.inf
    return Score(perplexity, perplexity * loss.error)


def sliding_windows(tokens: int, block_size: int, stride: int) -> list[tuple[int, int, int]]:
    """Windows (begin, end, first): inputs are begin … end - 1, counted targets are first … end.

    Every token but the first is counted once. Every window but the first holds `block_size` inputs and counts
    its last `stride` targets, each predicted from at least block_size - stride + 1 tokens. With a stride of
    block_size windows do not overlap and the last one is shorter, as in train.py.
    """
    windows = []
    first = 1
    while first < tokens:
        last = min(tokens - 1, max(first - 1 + stride, block_size if first == 1 else 0))
        begin = first - 1 if stride == block_size else max(0, last - block_size)
        windows.append((begin, last, first))
        first = last + 1
    return windows


@torch.no_grad()
def score_text(
    model: GPT, ids: Tensor, bytes_per_token: float | None, stride: int, batch_size: int
) -> Figures:
    """Score ids (tokens,) with a sliding window: loss in nats per token, perplexity, bits per byte.

    `bytes_per_token` is a token's mean length in UTF-8; where it is unknown, so are the bits per byte.
    """
    windows = sliding_windows(len(ids), model.config.block_size, stride)
    sums: list[float] = []
    counts = [last - first + 1 for _, last, first in windows]
    for start in range(0, len(windows), batch_size):
        batch = slice(start, start + batch_size)
        rows = [ids[begin : last + 1] for begin, last, _ in windows[batch]]
        for logits, targets in predictions(model, rows, counts[batch]):
            sums.append(F.cross_entropy(logits, targets, reduction="sum").item())
    loss = ratio_of(sums, counts)
    nats = math.log(2) * bytes_per_token if bytes_per_token else None  # of a bit per byte
    bits = None if nats is None else Score(loss.value / nats, loss.error / nats)
    return {"loss": loss, "perplexity": perplexity_of(loss), "bits_per_byte": bits, "tokens": sum(counts)}


def predictions(model: GPT, rows: Sequence[Tensor], counts: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each row the logits (count, V) that predict its last `count` tokens, and these.

    Logits are float64 where the device has it. Shorter rows are padded on the right, which a causal model
    does not see.
    """
    device = model.token_embedding.weight.device
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(device)  # (B, T)
    logits = model(padded[:, :-1])  # (B, T - 1, V)
    for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
        end = len(row)
        scored = logits[index, end - 1 - count : end - 1]
        yield scored.to(exact_dtype(device)), padded[index, end - count : end]


class Continuation(NamedTuple):
    """A continuation's log-probability and length, and whether greedy decoding would give it."""

    log_probability: float
    tokens: int
    greedy: bool


@torch.no_grad()
def score_continuations(
    model: GPT, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int
) -> Iterator[Continuation]:
    """Score (context, continuation) pairs of ids, in their order.

    A context that does not fit into block_size + 1 tokens loses its beginning. Raises UserError for a
    continuation that does not fit.
    """
    room = model.config.block_size + 1
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        for context, continuation in batch:
            if not len(context) or len(continuation) >= room:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens after {len(context)} does not fit into "
                    f"the model's block_size {room - 1}"
                )
        rows = [torch.tensor([*context, *continuation][-room:]) for context, continuation in batch]
        counts = [len(continuation) for _, continuation in batch]
        for logits, targets in predictions(model, rows, counts):
            loss = F.cross_entropy(logits, targets, reduction="sum").item()
            yield Continuation(-loss, len(targets), bool((logits.argmax(-1) == targets).all()))
