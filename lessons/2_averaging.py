"""Lesson 2. Averaging the past, three ways: a loop, a matrix product, a softmax.

To use more than the last character, a position has to gather what came before it. The simplest way to gather
is the mean, and the mean over the past is a product with a triangular matrix. Written as a softmax over
masked scores it is attention that has not yet made up its mind: put other scores in, and each position
chooses what it takes from where.

    python lessons/2_averaging.py       (5 seconds)

After "Let's build GPT" (Karpathy, 2023).
"""

import math
import time

import torch
from common import run, save
from matplotlib import pyplot
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
    """The same as a softmax of scores. The future is masked with -inf, whose exponential is 0.

    With scores of zero (the default) every visible position weighs the same; with other scores it is
    attention.
    """
    T = x.shape[1]
    scores = torch.zeros(T, T) if scores is None else scores
    future = torch.triu(torch.ones(T, T), diagonal=1).bool()
    return scores.masked_fill(future, -math.inf).softmax(dim=-1) @ x


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
    ways = {"loop": by_loop, "matrix product": by_matrix, "masked softmax": by_softmax}
    seconds = {name: [time_of(way, torch.randn(8, T, 32)) for T in lengths] for name, way in ways.items()}
    print(f"{'milliseconds at T =':<20}" + "".join(f"{T:>9}" for T in lengths))
    for name, times in seconds.items():
        print(f"{name:<20}" + "".join(f"{1000 * value:>9.3f}" for value in times))

    draw(lengths, seconds)
    return {"matrix_error": matrix_error, "softmax_error": softmax_error, "leak": leak}


def time_of(way, x: Tensor) -> float:
    """Seconds of the fastest of five calls."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        way(x)
        times.append(time.perf_counter() - begin)
    return min(times)


def draw(lengths: list[int], seconds: dict[str, list[float]]) -> None:
    """The weights of the plain mean, weights from other scores, and the times."""
    T = 8
    one_hot = torch.eye(T)[None]  # averaging unit vectors returns the weights themselves
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    for axes, weights, title in (
        (left, by_softmax(one_hot)[0], "scores of zero: the mean of the past"),
        (middle, by_softmax(one_hot, 1.5 * torch.randn(T, T))[0], "other scores: each row chooses"),
    ):
        axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1)
        for i in range(T):
            for j in range(i + 1):
                dark = weights[i, j] > 0.5
                axes.text(
                    j, i, f"{weights[i, j]:.2f}", ha="center", va="center", color="white" if dark else "black"
                )
        axes.set(title=title, xlabel="looks at position", ylabel="position")
    for name, times in seconds.items():
        right.loglog(lengths, [1000 * value for value in times], marker="o", label=name)
    right.set(title="time for 8 sequences of 32 channels", xlabel="positions T", ylabel="milliseconds")
    right.grid(alpha=0.3, which="both")
    right.legend()
    save(figure, "2_averaging")
    pyplot.close(figure)


if __name__ == "__main__":
    run(main, __doc__)
