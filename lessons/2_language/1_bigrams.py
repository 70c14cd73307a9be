"""Lesson 2.1. Bigrams: names from a table of 27 × 27 counts, and a network that learns the same table.

Which letter follows which? Count it, divide each row by its sum, and there is a language model. How good it
is, its mean surprise says, -log p over all letters: the loss. A pair that was never seen would surprise
infinitely, so one is added to every count. A network of one layer, which is told nothing of counts and goes
down the gradient of that loss, arrives at the same table.

    python lessons/2_language/1_bigrams.py

After Andrej Karpathy's lecture "The spelled-out intro to language modeling: building makemore" (2022).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import LETTERS, beside, names, run, size, windows
from drawing import finish, heat_map, panels, save
from torch import Tensor
from torch.nn import functional as F

V = len(LETTERS)


def count_pairs(first: Tensor, second: Tensor) -> Tensor:
    """How often each letter follows each, (V, V): row: the first, column: the second."""
    return torch.bincount(first * V + second, minlength=V * V).view(V, V).double()


def shares(counts: Tensor) -> Tensor:
    """Each row divided by its sum, so that it sums to 1.

    (V, V) / (V, 1). Without keepdim it were (V, V) / (V,): shapes are aligned from the right, so there is no
    error, but the sums lie along the columns.
    """
    return counts / counts.sum(dim=1, keepdim=True)


def surprise(table: Tensor, first: Tensor, second: Tensor) -> float:
    """The mean of -log p over pairs of letters, in nats."""
    return -table[first, second].log().mean().item()


def learn(first: Tensor, second: Tensor, steps: int) -> tuple[Tensor, list[float]]:
    """One layer, 27 letters in and 27 scores out, from chance down the gradient; its table and its losses.

    A letter goes in as 27 numbers, a 1 in its place; such a vector times a matrix is a row of the matrix.
    """
    weights = torch.randn(V, V, dtype=torch.float64, requires_grad=True)
    one_hot = F.one_hot(first[:5], V).double()
    assert torch.equal(one_hot @ weights, weights[first[:5]])  # so the row is looked up, which is quicker
    counts, losses = count_pairs(first, second), []
    for _ in range(steps):
        # The mean over all pairs: there are 729 kinds, each as often as it was counted.
        loss = -(counts * weights.log_softmax(dim=1)).sum() / counts.sum()
        (gradient,) = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            weights -= 50 * gradient
        losses.append(loss.item())
    return weights.detach().softmax(dim=1), losses


def draw_name(table: Tensor) -> str:
    """Letter after letter, each drawn from the row of the one before, until the end is drawn."""
    name = "."
    while len(name) == 1 or name[-1] != ".":
        name += LETTERS[int(torch.multinomial(table[LETTERS.index(name[-1])], 1))]
    return name.strip(".")


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. the loss of a table that knows nothing": torch.tensor(27.0).log().item(),
        "2. never seen, in a row with 73 counts, one added to each": 1 / (73 + 27),
        "3. the loss where each right letter has probability 0.1": -torch.tensor(0.1).log().item(),
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Count, smooth, divide wrongly, learn; returns the figures."""
    torch.manual_seed(seed)
    inputs, second = windows(names().words, 1)
    first = inputs[:, 0]
    counts = count_pairs(first, second)
    table, wrong = shares(counts), counts / counts.sum(dim=1)
    print("most frequent pairs, '.' at a name's begin or end:", end=" ")
    places = counts.flatten().argsort(descending=True)[:8]
    print(", ".join(f"{LETTERS[i // V]}{LETTERS[i % V]} {counts.flatten()[i]:.0f}" for i in places))

    learned, losses = learn(first, second, size(quick, 200, 2_000, 20_000))
    figures = {
        "loss, counted": surprise(table, first, second),
        "loss, one added to each count": surprise(shares(counts + 1), first, second),
        "loss, one layer that learned": surprise(learned, first, second),
        "pairs never seen": (counts == 0).sum().item(),
        "largest distance of a row's sum from 1": (table.sum(dim=1) - 1).abs().max().item(),
        "the same without keepdim": (wrong.sum(dim=1) - 1).abs().max().item(),
    }
    originals = {"loss, counted": 2.4541, "loss, one added to each count": 2.4544}
    beside(originals | dict.fromkeys(list(figures)[2:]), figures)
    for title, each in (("counted", table), ("learned", learned), ("without keepdim", wrong)):
        print(f"{title + ':':<17}{', '.join(draw_name(each) for _ in range(6))}")
    draw(counts, learned, losses, figures["loss, counted"])
    return figures


def draw(counts: Tensor, learned: Tensor, losses: list[float], best: float) -> None:
    """The counted table, the learned one, and the way from the one to the other."""
    figure, (left, middle, right) = panels(3, 19, 6, width_ratios=(1.2, 1.2, 1))
    for axes, table, title in ((left, shares(counts), "counted"), (middle, learned, "learned")):
        heat_map(axes, table.sqrt(), title, LETTERS)
        axes.set(xlabel="next letter", ylabel="this letter")
    right.semilogx(range(1, len(losses) + 1), losses)
    right.axhline(best, color="C3", linestyle="--", label=f"counted: {best:.4f}")
    finish(right, title="one layer arrives at the same", xlabel="step", ylabel="loss, nats a letter")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
