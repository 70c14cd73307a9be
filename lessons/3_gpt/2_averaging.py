"""Lesson 3.2. Averaging the past, three ways: a loop, a matrix product, a softmax.

To use more than the last character, a position has to gather what came before it. The simplest way to gather
is the mean, and the mean over the past is a product with a triangular matrix. Written as a softmax over
masked scores it is attention that has not yet made up its mind: put other scores in, and each position
chooses what it takes from where.

    python lessons/3_gpt/2_averaging.py

After "Let's build GPT" (Karpathy, 2023).
"""

import math
import sys
import timeit
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import run
from drawing import finish, panels, save
from torch import Tensor


def by_loop(x: Tensor) -> Tensor:
    """(B, T, C) to (B, T, C): position t gets the mean of positions 0 … t. Plain, and slow."""
    means = torch.empty_like(x)
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            means[row, t] = x[row, : t + 1].mean(dim=0)
    return means


def by_matrix(x: Tensor) -> Tensor:
    """The same as one product: row t of the matrix holds 1 / (t + 1) up to the diagonal, then zeros."""
    T = x.shape[1]
    lower = torch.tril(torch.ones(T, T))
    return (lower / lower.sum(dim=1, keepdim=True)) @ x  # (T, T) @ (B, T, C)


def by_softmax(x: Tensor, scores: Tensor | None = None) -> Tensor:
    """The same as a softmax of scores (T, T). The future is masked with -inf, whose exponential is 0.

    With scores of zero (None) every visible position weighs the same; with others it is attention.
    """
    T = x.shape[1]
    scores = torch.zeros(T, T) if scores is None else scores
    future = torch.triu(torch.ones(T, T), diagonal=1).bool()
    return scores.masked_fill(future, -math.inf).softmax(dim=-1) @ x


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. each weight of position 4, counted from 0": 1 / 5,
        "2. the second of two weights, scores 0 and ln 3": torch.tensor([0, math.log(3)])
        .softmax(dim=0)[1]
        .item(),
        "3. pairs of 8 positions that the mask hides": int(torch.ones(8, 8).triu(1).sum()),
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Compare the three, time them, and look at their weights; returns the figures."""
    torch.manual_seed(seed)
    x = torch.randn(4, 8, 2)
    matrix_error = (by_loop(x) - by_matrix(x)).abs().max().item()
    softmax_error = (by_loop(x) - by_softmax(x)).abs().max().item()
    print(
        f"largest difference from the loop: matrix {matrix_error:.1e}, softmax {softmax_error:.1e} (rounding)"
    )

    # Nothing leaks back from the future: change the last position, and only the last mean changes.
    changed = x.clone()
    changed[:, -1] += 1.0
    leak = (by_softmax(changed) - by_softmax(x))[:, :-1].abs().max().item()
    print(f"changing position 7 moves positions 0 to 6 by {leak}")

    lengths = [8, 32, 128] if quick else [8, 16, 32, 64, 128, 256]
    milliseconds = {}
    print(f"{'milliseconds at T =':<20}" + "".join(f"{T:>9}" for T in lengths))
    for name, way in (("loop", by_loop), ("matrix product", by_matrix), ("masked softmax", by_softmax)):
        inputs = [torch.randn(8, T, 32) for T in lengths]
        milliseconds[name] = [1000 * min(timeit.repeat(partial(way, x), number=1)) for x in inputs]
        print(f"{name:<20}" + "".join(f"{value:>9.3f}" for value in milliseconds[name]))

    draw(lengths, milliseconds)
    return {"matrix_error": matrix_error, "softmax_error": softmax_error, "leak": leak}


def draw(lengths: list[int], milliseconds: dict[str, list[float]]) -> None:
    """The weights of the plain mean, weights from other scores, and the times."""
    figure, (left, middle, right) = panels(3, 14)
    one_hot = torch.eye(8)[None]  # averaging unit vectors returns the weights themselves
    left.set_title("scores of zero: the mean of the past")
    middle.set_title("other scores: each row chooses")
    for axes, scores in ((left, None), (middle, 1.5 * torch.randn(8, 8))):
        weights = by_softmax(one_hot, scores)[0]
        axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1)
        for i, j in torch.tril_indices(8, 8).T.tolist():
            color = "white" if weights[i, j] > 0.5 else "black"
            axes.text(j, i, f"{weights[i, j]:.2f}", ha="center", va="center", color=color)
        axes.set(xlabel="looks at position", ylabel="position")
    for name, times in milliseconds.items():
        right.loglog(lengths, times, marker="o", label=name)
    finish(right, title="time for 8 sequences of 32 channels", xlabel="positions T", ylabel="milliseconds")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
