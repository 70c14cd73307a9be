"""Lesson 4.2. Scale: the loss falls along a line, and the line predicts models that nobody has trained yet.

Train GPTs of several sizes on as much text each, and one size on more and more text. With logarithms on both
axes the losses lie near straight lines, power laws, and a line can be continued: here four times as many
parameters, and twice as much text, are predicted first and trained then. Both come within some percent. How
much a prediction is worth, one sees by how far the line falls from one size to the next beside that error.

    python lessons/4_inside/2_scale.py            (LESSONS=full: four times as much text, two seeds)

Kaplan et al., "Scaling laws for neural language models" (2020): straight lines. Hoffmann et al., "Training
compute-optimal large language models" (2022): lines towards a floor.
"""

import dataclasses
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import Text, beside, run, shakespeare, size, small_gpt, validation_loss
from drawing import finish, panels, save

LENGTH, BATCH = 32, 32
WIDTHS, NEXT_WIDTH = (8, 12, 16, 24, 32), 64
SHARES, NEXT_SHARE = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1), 2  # of the steps that every size is given


def trained(text: Text, width: int, steps: int, seed: int) -> tuple[int, float]:
    """A GPT of two blocks: its parameters without the embeddings, and its validation loss."""
    torch.manual_seed(seed)
    rate = 0.16 / width  # wider ones need smaller steps
    model = small_gpt(text, steps, seed, width=width, heads=2, length=LENGTH, rate=rate)
    return sum(each.numel() for each in model.blocks.parameters()), validation_loss(model, text, LENGTH)


def line(amounts: list[float], losses: list[float]) -> tuple[float, float]:
    """loss = scale · amount^-exponent, a straight line through the logarithms by least squares."""
    x, y = torch.tensor(amounts).double().log(), torch.tensor(losses).double().log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return (y.mean() - slope * x.mean()).exp().item(), -slope.item()


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. parameters of a block of width 128, without biases, norms apart": 12 * 128**2,
        "2. by what twice as many parameters multiply the loss, exponent 0.076": 2**-0.076,
        "3. how many times as many parameters halve it": 2 ** (1 / 0.076),
    }


def measure(text: Text, steps: int, seeds: list[int]) -> dict[str, tuple[list[float], list[float]]]:
    """Losses against parameters and against tokens, the last of each being the one that is predicted."""

    def mean(width: int, steps: int) -> tuple[int, float]:
        ends = [trained(text, width, steps, seed) for seed in seeds]
        return ends[0][0], sum(loss for _, loss in ends) / len(ends)

    sizes = [mean(width, steps) for width in (*WIDTHS, NEXT_WIDTH)]
    lengths = [round(share * steps) for share in (*SHARES, NEXT_SHARE)]
    ends = [sizes[len(WIDTHS) - 1][1] if n == steps else mean(WIDTHS[-1], n)[1] for n in lengths]
    tokens = [float(n * BATCH * LENGTH) for n in lengths]
    return {
        "parameters": ([float(n) for n, _ in sizes], [loss for _, loss in sizes]),
        "tokens": (tokens, ends),
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Train the family, fit, predict, train what was predicted; returns the figures."""
    text = shakespeare()
    if quick:
        text = dataclasses.replace(text, val=text.val[:10_000])
    seeds = [seed + i for i in range(size(quick, 1, 1, 2))]
    curves, figures = measure(text, size(quick, 48, 600, 2_400), seeds), {}
    for name, (amounts, losses) in curves.items():
        for amount, loss in zip(amounts, losses, strict=True):
            print(f"{amount:>12,.0f} {name}: loss {loss:.3f}")
        known = (amounts[:-1], losses[:-1])
        scale, exponent = line(*known)
        predicted = scale * amounts[-1] ** -exponent
        figures |= {f"{name}: exponent": exponent, f"{name}: the line predicts": predicted}
        figures |= {f"{name}: came out": losses[-1], f"{name}: off by": losses[-1] / predicted - 1}
    originals = {"parameters: exponent": 0.076, "tokens: exponent": 0.095}
    beside(dict.fromkeys(figures) | originals, figures)
    draw(curves)
    return figures


def draw(curves: dict[str, tuple[list[float], list[float]]]) -> None:
    """Losses with the lines of all but the last, and the last, which they predict."""
    figure, each = panels(2, 14, 5.6, sharey=True)
    titles = {"parameters": "larger models, as much text", "tokens": "one model, more text"}
    for axes, (name, (amounts, losses)) in zip(each, curves.items(), strict=True):
        known = (amounts[:-1], losses[:-1])
        scale, exponent = line(*known)
        reach = torch.logspace(math.log10(amounts[0]), math.log10(3 * amounts[-1]), 2)
        axes.plot(reach, scale * reach**-exponent, label=f"exponent {exponent:.3f}")
        axes.plot(*known, "o", color="black", markersize=8, label="the line is fitted to these")
        axes.plot(amounts[-1], losses[-1], "*", color="C3", markersize=20, label="trained after predicting")
        axes.set(xscale="log", yscale="log", yticks=(1.5, 2, 2.5, 3))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        finish(axes, title=titles[name], xlabel=name, ylabel="validation loss, nats per character")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
