"""Lesson 1.2. Downhill: in one narrow valley, gradient descent takes 691 steps, momentum 93, Newton one.

f(x, y) = ½ (x² + b y²) with a small b is a valley, steep in x and nearly level in y. The steepest way down
leads across it: gradient descent goes from side to side and hardly along. Momentum keeps a share of the last
step, so that what the steps agree on adds up. Newton's method divides by the curvature, which turns the
valley into a bowl. And where f is a mean over examples, the gradient of one of them, drawn by chance, costs
next to nothing and points downhill on average.

    python lessons/1_networks/2_downhill.py

f, the rates and the figures: Strang, MIT 18.065 (2018), lectures 22, 23 and 25, and "Linear algebra and
learning from data" (2019), VI.4; momentum: Polyak (1964); one example at a time: Robbins and Monro (1951).
"""

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import numpy as np
from common import beside, run, size
from drawing import finish, panels, save

START = np.array([1.0, 1.0])


def curvature(b: float) -> np.ndarray:
    """Of f in x and in y; the gradient is (x, b y), the curvature times the point."""
    return np.array([1.0, b])


def descend(b: float, steps: int, rate: float, momentum: float = 0.0) -> np.ndarray:
    """Step down the gradient, plus a share of the step before; all points, (steps + 1, 2)."""
    points, step = [START], np.zeros(2)
    for _ in range(steps):
        gradient = curvature(b) * points[-1]
        step = momentum * step - rate * gradient
        points.append(points[-1] + step)
    return np.array(points)


def plain(b: float, steps: int) -> np.ndarray:
    """At the best rate: x is overshot by as much as y falls short."""
    return descend(b, steps, rate=2 / (1 + b))


def heavy(b: float, steps: int) -> np.ndarray:
    """With the best momentum, and the best rate for it."""
    root = math.sqrt(b)
    return descend(b, steps, rate=(2 / (1 + root)) ** 2, momentum=((1 - root) / (1 + root)) ** 2)


def newton(b: float) -> np.ndarray:
    """One step: the gradient divided by the curvature is the whole way to the bottom. (2, 2)."""
    return np.array([START, START - curvature(b) * START / curvature(b)])


def one_at_a_time(b: float, rate: Callable, steps: int, dice: np.random.Generator) -> np.ndarray:
    """f at each step (less its smallest value) when every step sees one example of 1,000.

    Example i wants to be at p_i: its f is ½ ((x - x_i)² + b (y - y_i)²), and the mean of the p_i is 0.
    """
    examples = dice.standard_normal((1000, 2))
    examples -= examples.mean(axis=0)
    examples /= examples.std(axis=0)
    point, heights = 10 * START, []
    for step, i in enumerate(dice.integers(1000, size=steps)):
        point = point - rate(step) * curvature(b) * (point - examples[i])
        heights.append(0.5 * (curvature(b) * point**2).sum())
    return np.array(heights)


def floor(b: float, rate: float) -> float:
    """Where one_at_a_time stays: each coordinate keeps the variance rate · c / (2 - rate · c)."""
    c = curvature(b)
    return float(0.5 * (c * (rate * c / (2 - rate * c))).sum())


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    x = 0.5  # f = √(1 + x²) has the slope x / √(1 + x²) and the curvature (1 + x²)^(-3/2)
    slope, bend = x / math.sqrt(1 + x**2), (1 + x**2) ** -1.5
    factor = (1 - math.sqrt(1 / 4)) / (1 + math.sqrt(1 / 4))
    return {
        "1. the rate above which gradient descent climbs, b = 1/100": 2 / curvature(1 / 100).max(),
        "2. with momentum and b = 1/4, the distance shrinks a step by the factor": factor,
        "3. Newton's step on √(1 + x²) leads from 0.5 to": x - slope / bend,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Four ways down, measured against what the formulas say; returns the figures."""
    b, figures = 1 / 100, {}
    ways = {"gradient descent": plain(b, 1200), "with momentum": heavy(b, 1200), "Newton": newton(b)}
    for name, points in ways.items():
        distance = np.linalg.norm(points, axis=1) / math.sqrt(2)
        figures[f"steps, {name}"] = int(np.argmax(distance < 1e-6))
        print(f"{name}: a millionth of the distance is left after {figures[f'steps, {name}']} steps")
        if name != "Newton":
            factor = (distance[1200] / distance[600]) ** (1 / 600)
            figures |= {f"distance, {name}": factor, f"f, {name}": factor**2}
    root = math.sqrt(b)
    theory = {
        "distance, gradient descent": (1 - b) / (1 + b),
        "distance, with momentum": (1 - root) / (1 + root),
    }
    print("what a step multiplies by, b = 1/100 (f's are Strang's figures, the distance's his formulas):")
    beside(theory | {"f, gradient descent": 0.96, "f, with momentum": 0.67}, figures)

    steps = size(quick, 6_000, 20_000)
    rates = {"rate 0.4": lambda _: 0.4, "rate 0.1": lambda _: 0.1, "falling": lambda t: 0.4 / (1 + t / 500)}
    heights = {}
    for name, rate in rates.items():
        heights[name] = one_at_a_time(b, rate, steps, np.random.default_rng(seed))
        figures[f"f stays at, {name}"] = heights[name][-steps // 4 :].mean()
    print("\none example at a time, mean f of the last quarter (the original: the formula in `floor`):")
    beside({f"f stays at, {name}": floor(b, float(name[5:])) for name in ("rate 0.4", "rate 0.1")}, figures)
    print(f"with a rate that falls: {figures['f stays at, falling']:.5f}")

    draw(ways, heights)
    return figures


def draw(ways: dict[str, np.ndarray], heights: dict[str, np.ndarray]) -> None:
    """The ways on the contours of a wider valley, the distance, and f with one example at a time."""
    figure, (left, middle, right) = panels(3, 16, 4.8)
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 100), np.linspace(-0.5, 1.15, 100))
    levels = np.linspace(0, 1.2, 20) ** 2
    left.contour(x, y, 0.5 * (x**2 + y**2 / 10), levels=levels, colors="#d3d7de", linewidths=1)
    wider = {"gradient descent": plain(0.1, 40), "with momentum": heavy(0.1, 40), "Newton": newton(0.1)}
    for name, points in wider.items():
        left.plot(*points.T, "o-", markersize=4, label=name)
    finish(left, title="three ways down, b = 1/10", xlabel="x", ylabel="y")
    for name, points in ways.items():
        middle.semilogy(np.linalg.norm(points, axis=1)[:200] + 1e-9, label=name)
    middle.set(ylim=(1e-8, 6))
    finish(middle, title="b = 1/100", xlabel="step", ylabel="distance from the bottom")
    for name, values in heights.items():
        edges = np.unique(np.geomspace(1, len(values), 40).astype(int))
        means = [values[low:high].mean() for low, high in pairwise(edges)]
        right.loglog(edges[1:], means, label=name)
    full = 0.5 * (curvature(1 / 100) * (10 * plain(1 / 100, len(values) // 1000)) ** 2).sum(axis=1)
    right.loglog(1000 * np.arange(1, len(full)), full[1:], "ko", markersize=4, label="all 1,000 a step")
    finish(right, title="one example at a time", xlabel="examples looked at", ylabel="f, less its smallest")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
