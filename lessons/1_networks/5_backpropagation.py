"""Lesson 1.5. Backpropagation by hand: four equations, 13,002 gradients, each equal to autograd's to 1e-12.

How much does the loss move with the sum of each neuron? Call that the neuron's error. At the outputs it can
be seen; one layer back it is the errors ahead, sent back through the same weights; and a weight or a bias has
it, times what it was multiplied by. That is all. It costs about as much as two runs forward, where trying
out each weight would cost 26,004.

    python lessons/1_networks/5_backpropagation.py

The equations, and the speeds at which layers learn: Nielsen, "Neural networks and deep learning" (2015),
chapters 2 and 5; 784-30-10 and its 95.42%: chapter 1.
"""

import sys
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import numpy as np
import torch
from common import beside, digits, run, size
from drawing import finish, panels, save

Layers = list[tuple[np.ndarray, np.ndarray]]  # weights (inputs, outputs) and biases (outputs,)
EQUATIONS = {
    "at the outputs": r"$\delta^L = (a^L - y)\;\sigma'(z^L)$",
    "one layer back": r"$\delta^l = (\delta^{l+1} W^{l+1\,T})\;\sigma'(z^l)$",
    "biases": r"$\partial C / \partial b^l = \sum_n \delta^l_n$",
    "weights": r"$\partial C / \partial W^l = a^{l-1\,T} \delta^l$",
}
PUBLISHED = {2: (0.07, 0.31), 3: (0.012, 0.060, 0.283)}  # Nielsen's speeds of two and of three hidden layers


def network(sizes: tuple[int, ...], dice: np.random.Generator) -> Layers:
    """Fresh layers: weights and biases of about 1."""
    return [(dice.standard_normal((n, m)), dice.standard_normal(m)) for n, m in pairwise(sizes)]


def sigmoid(sums: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-sums))


def forward(layers: Layers, x: np.ndarray) -> list[np.ndarray]:
    """Images (N, 784) to what every layer says, the images first."""
    said = [x]
    for weights, bias in layers:
        said.append(sigmoid(said[-1] @ weights + bias))  # the bias (m,) is broadcast to N rows
    return said


def backward(layers: Layers, said: list, wanted: np.ndarray, cross_entropy: bool = False) -> Layers:
    """The gradient of the loss in every weight and bias. `said` is what `forward` returned."""
    N, outputs = len(wanted), said[-1]
    # (1) At the outputs: how far off, times the sigmoid's slope s (1 - s), which cross-entropy cancels.
    error = (outputs - wanted) / N
    if not cross_entropy:
        error = error * outputs * (1 - outputs)
    gradients = []
    for (weights, _), below in zip(reversed(layers), reversed(said[:-1]), strict=True):
        # (3) and (4). What was broadcast forward is summed backward; a factor gets the other factor.
        gradients.append((below.T @ error, error.sum(axis=0)))
        # (2) One layer back: the errors through the weights, times the slope there. (N, m) @ (m, n) to (N, n)
        error = error @ weights.T * below * (1 - below)
    return gradients[::-1]


def summed_back(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of what was broadcast from `shape`: a number used in many places gets their sum."""
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))  # axes that it did not have
    stretched = tuple(axis for axis, length in enumerate(shape) if length == 1)
    return gradient.sum(axis=stretched, keepdims=True)


def softmax_backward(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy's gradient in logits (N, V), step by step, and by the short form that it comes to."""
    N, rows = len(labels), np.arange(len(labels))
    powers = np.exp(logits)
    total = powers.sum(axis=1, keepdims=True)  # (N, 1)
    p = powers / total  # `total` is broadcast to (N, V)
    # loss = -mean of log p at the labels. Backward, line by line from the last:
    dp = np.zeros_like(p)
    dp[rows, labels] = -1 / (N * p[rows, labels])
    dpowers = dp / total
    dtotal = summed_back(-dp * powers / total**2, total.shape)  # it was broadcast, so it sums
    dpowers += np.broadcast_to(dtotal, powers.shape)  # it was a sum, so it is broadcast
    short = p.copy()
    short[rows, labels] -= 1
    return dpowers * powers, short / N


def by_autograd(layers: Layers, x: np.ndarray, wanted: np.ndarray, cross_entropy: bool = False) -> Layers:
    """The same gradients from PyTorch, which is only told how to go forward."""
    tensors = [tuple(torch.tensor(each, requires_grad=True) for each in layer) for layer in layers]
    said = torch.tensor(x)
    for weights, bias in tensors:
        said = torch.sigmoid(said @ weights + bias)
    targets = torch.tensor(wanted)
    if cross_entropy:
        result = torch.nn.functional.binary_cross_entropy(said, targets, reduction="sum") / len(x)
    else:
        result = (said - targets).square().sum(dim=1).mean() / 2
    result.backward()
    return [(weights.grad.numpy(), bias.grad.numpy()) for weights, bias in tensors]


def flat(gradients: Layers) -> np.ndarray:
    """All gradients in one row."""
    return np.concatenate([each.ravel() for layer in gradients for each in layer])


def broadcasting(dice: np.random.Generator) -> float:
    """`summed_back` against autograd for shapes that broadcast against (4, 3, 5); the largest difference."""
    worst = 0.0
    for shape in ((5,), (3, 1), (1, 5), (4, 1, 1), (1, 3, 5), (1,)):
        small, large = dice.standard_normal(shape), dice.standard_normal((4, 3, 5))
        tensor = torch.tensor(small, requires_grad=True)
        (tensor * torch.tensor(large)).sum().backward()
        worst = max(worst, abs(summed_back(large, shape) - tensor.grad.numpy()).max())
    return worst


def train(layers: Layers, x: np.ndarray, wanted: np.ndarray, steps: int, dice: np.random.Generator) -> None:
    """Nielsen's settings: 10 images a step, the rate 3; the layers are changed in place."""
    for _ in range(steps):
        some = dice.integers(len(x), size=10)
        gradients = backward(layers, forward(layers, x[some]), wanted[some])
        for layer, gradient in zip(layers, gradients, strict=True):
            for each, slope in zip(layer, gradient, strict=True):
                each -= 3 * slope


def speeds(hidden: int, x: np.ndarray, wanted: np.ndarray, dice: np.random.Generator) -> list[float]:
    """How fast each hidden layer of 30 would learn at first: the length of the gradient of its biases."""
    layers = network((784, *[30] * hidden, 10), dice)
    layers = [(weights / np.sqrt(len(weights)), bias) for weights, bias in layers]  # sums of about 1
    gradients = backward(layers, forward(layers, x), wanted, cross_entropy=True)
    return [float(np.linalg.norm(bias)) for _, bias in gradients[:-1]]


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    slope = 0.5 * (1 - 0.5)  # where the sigmoid says 0.5
    return {
        "1. the largest slope of a sigmoid": slope,
        "2. the gradient of a bias whose 32 rows have the error 0.5 each": 32 * 0.5,
        "3. the error of a neuron that says 0.5, sent back from 0.3 through a weight of 2": 0.3 * 2 * slope,
    }


def compare(x: np.ndarray, wanted: np.ndarray, dice: np.random.Generator) -> tuple:
    """784-16-16-10 by hand against autograd; largest differences, and the gradients in one row."""
    layers = network((784, 16, 16, 10), dice)
    said = forward(layers, x)
    mine, theirs = flat(backward(layers, said, wanted)), flat(by_autograd(layers, x, wanted))
    entropies = flat(backward(layers, said, wanted, True)), flat(by_autograd(layers, x, wanted, True))
    steps, short = softmax_backward(dice.standard_normal((32, 10)), dice.integers(10, size=32))
    apart = {
        "from autograd": abs(mine - theirs).max(),
        "from autograd, cross-entropy": abs(entropies[0] - entropies[1]).max(),
        "softmax in steps, from its short form": abs(steps - short).max(),
        "broadcasting, from autograd": broadcasting(dice),
    }
    return apart, mine, theirs


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """By hand against autograd, training by hand, the speeds of layers; returns the figures."""
    dice, data = np.random.default_rng(seed), digits()
    x, test = (each.flatten(1).double().numpy() for each in (data.images, data.test_images))
    wanted = np.eye(10)[data.labels.numpy()]
    figures, mine, theirs = compare(x[:50], wanted[:50], dice)
    print(f"{len(mine):,} gradients by hand; largest differences:")
    for name, value in figures.items():
        print(f"    {name:<40}{value:.0e}")

    layers, curve = network((784, 30, 10), dice), [(0, 0.1)]
    for _ in range(10 if quick else 30):
        steps = size(quick, 100, 400, len(x) // 10)
        train(layers, x, wanted, steps, dice)
        right = forward(layers, test)[-1].argmax(axis=1) == data.test_labels.numpy()
        curve.append((curve[-1][0] + steps, right.mean()))
    figures |= {"gradients": len(mine), "784-30-10, test accuracy": float(curve[-1][1])}
    originals: dict[str, float | None] = {"784-30-10, test accuracy": 0.9542}
    speed = {hidden: speeds(hidden, x[:1000], wanted[:1000], dice) for hidden in PUBLISHED}
    for hidden, published in PUBLISHED.items():
        names = [f"speed of hidden layer {number} of {hidden}" for number in range(1, hidden + 1)]
        originals |= zip(names, published, strict=True)
        figures |= zip(names, speed[hidden], strict=True)
    beside(originals, figures)
    draw(mine, theirs, curve, speed)
    return figures


def draw(mine: np.ndarray, theirs: np.ndarray, curve: list, speed: dict[int, list[float]]) -> None:
    """The equations, the gradients by hand and by autograd, the accuracy, the speeds of the layers."""
    figure, axes = panels(4, 18, 4.6)
    for row, (name, formula) in enumerate(EQUATIONS.items()):
        axes[0].text(0, 0.95 - 0.26 * row, name, color="C5", fontsize=12, va="top")
        axes[0].text(0, 0.87 - 0.26 * row, formula, fontsize=18, va="top")
    axes[0].set_title("four equations")
    axes[0].axis("off")
    axes[1].plot(theirs, mine, ".", markersize=3)
    finish(axes[1], title="13,002 gradients", xlabel="by autograd", ylabel="by hand")
    axes[2].plot(*zip(*curve, strict=True))
    finish(axes[2], title="784-30-10, trained by hand", xlabel="step", ylabel="share of new ones read right")
    for hidden, values in speed.items():
        axes[3].semilogy(range(1, hidden + 1), values, "o-", label=f"{hidden} hidden layers")
        label = "Nielsen" if hidden == 3 else None
        axes[3].semilogy(range(1, hidden + 1), PUBLISHED[hidden], "o--", color="C5", zorder=0, label=label)
    axes[3].set(xticks=(1, 2, 3), yticks=(0.01, 0.1, 1))
    axes[3].minorticks_off()
    finish(axes[3], title="the first layers learn slowest", xlabel="hidden layer", ylabel="biases' gradient")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
