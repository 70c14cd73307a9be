"""Lesson 1.6. A convolution is a matrix product: 9,226 numbers that read digits better than 13,002 do.

A stroke is a stroke wherever it lies, so a small filter is slid over the picture and looks at every place
with the same few weights. Cut the picture into its patches and lay them out as the rows of a matrix (im2col),
and the sliding is one product; backward, the patches' gradients are added to where they were cut from. Two
such layers and a plain one, by hand, do better than lesson 1.4's network, more so on shifted pictures.

    python lessons/1_networks/6_convolution.py

Convolutional networks: LeCun et al. (1989, 1998); im2col: Chellapilla et al. (2006); 99.06% with 50,000
pictures: Nielsen, "Neural networks and deep learning" (2015), chapter 6; define-by-run: Tokui et al. (2015).
"""

import sys
import timeit
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import numpy as np
import torch
from common import Digits, beside, digits, run, size
from drawing import finish, save, tiled
from matplotlib import pyplot
from numpy.lib.stride_tricks import sliding_window_view
from torch.nn import functional as F


def patches(x: np.ndarray, width: int, stride: int, padding: int) -> np.ndarray:
    """im2col: pictures (N, H, W, C) to their square patches, (N, H', W', C · width · width)."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = sliding_window_view(padded, (width, width), axis=(1, 2))[:, ::stride, ::stride]
    return windows.reshape(*windows.shape[:3], -1)


def put_back(gradient: np.ndarray, shape: tuple, width: int, stride: int, padding: int) -> np.ndarray:
    """Backward through `patches`: each pixel gets the sum over all patches that it was copied to."""
    N, H, W, C = shape
    padded = np.zeros((N, H + 2 * padding, W + 2 * padding, C), gradient.dtype)
    rows, columns = gradient.shape[1:3]
    gradient = gradient.reshape(N, rows, columns, C, width, width)
    for i in range(width):
        for j in range(width):
            below, right = slice(i, i + stride * rows, stride), slice(j, j + stride * columns, stride)
            padded[:, below, right] += gradient[..., i, j]
    return padded[:, padding : padding + H, padding : padding + W]


class Linear:
    """x W + b, on all of a picture at once."""

    def __init__(self, inputs: int, outputs: int, dice: np.random.Generator) -> None:
        weights = dice.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
        self.weights, self.bias = weights.astype(np.float32), np.zeros(outputs, np.float32)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.shape, self.x = x.shape, x.reshape(len(x), -1)
        return self.x @ self.weights + self.bias

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        """The gradient in the input; those in weights and bias are kept."""
        self.gradients = self.x.T @ gradient, gradient.sum(axis=0)
        return (gradient @ self.weights.T).reshape(self.shape)


class Convolution(Linear):
    """The same on every patch: the weights are shared by all places."""

    def __init__(self, inputs: int, outputs: int, cut: tuple, dice: np.random.Generator) -> None:
        super().__init__(inputs * cut[0] ** 2, outputs, dice)
        self.cut = cut  # width, stride, padding

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.shape, self.rows = x.shape, patches(x, *self.cut)
        return self.rows @ self.weights + self.bias  # (N, H', W', inputs) @ (inputs, outputs)

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        flat = gradient.reshape(-1, gradient.shape[-1])
        self.gradients = self.rows.reshape(len(flat), -1).T @ flat, flat.sum(axis=0)
        return put_back(gradient @ self.weights.T, self.shape, *self.cut)


class ReLU:
    """Nothing to learn: what is below zero is cut off, and its gradient too."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.above = x > 0
        return x * self.above

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        return gradient * self.above


def cnn(dice: np.random.Generator) -> list:
    """28×28 to 14×14×8 to 7×7×16 to ten scores."""
    first, second = Convolution(1, 8, (5, 2, 2), dice), Convolution(8, 16, (3, 2, 1), dice)
    return [first, ReLU(), second, ReLU(), Linear(7 * 7 * 16, 10, dice)]


def mlp(dice: np.random.Generator) -> list:
    """Lesson 1.4's network."""
    return [Linear(784, 16, dice), ReLU(), Linear(16, 16, dice), ReLU(), Linear(16, 10, dice)]


def scores(layers: list, x: np.ndarray) -> np.ndarray:
    """Pictures (N, 28, 28, 1) to the scores of the ten digits."""
    for layer in layers:
        x = layer.forward(x)
    return x


def train(layers: list, data: tuple[np.ndarray, ...], steps: int, dice: np.random.Generator) -> list[float]:
    """Down the gradient of cross-entropy, 32 pictures a step; ten times on the way, the share read right."""
    x, labels, test, test_labels = data
    learners = [layer for layer in layers if isinstance(layer, Linear)]
    speeds = [[np.zeros_like(each) for each in (layer.weights, layer.bias)] for layer in learners]
    right = []
    for step in range(1, steps + 1):
        some = dice.integers(len(x), size=32)
        logits = scores(layers, x[some])
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        gradient = powers / powers.sum(axis=1, keepdims=True)
        gradient[np.arange(32), labels[some]] -= 1  # probabilities less targets: lesson 1.5
        gradient /= 32
        for layer in reversed(layers):
            gradient = layer.backward(gradient)
        rate = 0.05 * (1 - step / steps)
        for layer, speed in zip(learners, speeds, strict=True):
            for each, slope, v in zip((layer.weights, layer.bias), layer.gradients, speed, strict=True):
                v *= 0.9  # momentum: lesson 1.2
                v -= rate * slope
                each += v
        if step % (steps // 10) == 0:
            right.append(accuracy(layers, test, test_labels))
    return right


def accuracy(layers: list, x: np.ndarray, labels: np.ndarray) -> float:
    """The share of pictures read right."""
    return float((scores(layers, x).argmax(axis=1) == labels).mean())


def against_pytorch(dice: np.random.Generator) -> float:
    """Outputs and all three gradients against conv2d's, for many cuts, in float64; the largest difference."""
    worst = 0.0
    for C, outputs, cut in ((1, 8, (5, 2, 2)), (8, 16, (3, 2, 1)), (3, 4, (3, 1, 0)), (2, 5, (4, 3, 2))):
        layer, (width, stride, padding) = Convolution(C, outputs, cut, dice), cut
        layer.weights, layer.bias = layer.weights.astype(float), dice.standard_normal(outputs)
        x = dice.standard_normal((2, 11, 13, C))
        mine = layer.forward(x)
        upstream = dice.standard_normal(mine.shape)
        results = [mine, layer.backward(upstream), *layer.gradients]

        image = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
        weights = torch.tensor(layer.weights.T.reshape(outputs, C, width, width), requires_grad=True)
        bias = torch.tensor(layer.bias, requires_grad=True)
        theirs = F.conv2d(image, weights, bias, stride, padding)
        theirs.backward(torch.tensor(upstream.transpose(0, 3, 1, 2)))
        slopes = image.grad.permute(0, 2, 3, 1), weights.grad.reshape(outputs, -1).T, bias.grad
        for one, other in zip(results, (theirs.detach().permute(0, 2, 3, 1), *slopes), strict=True):
            worst = max(worst, float(abs(one - other.numpy()).max()))
    return worst


def by_loops(x: np.ndarray, weights: np.ndarray, width: int) -> np.ndarray:
    """A convolution as it is drawn: the filter at one place after the other; to (N, H', W', outputs)."""
    N, H, W, _ = x.shape
    out = np.zeros((N, H - width + 1, W - width + 1, weights.shape[1]))
    for n in range(N):
        for i in range(H - width + 1):
            for j in range(W - width + 1):
                patch = x[n, i : i + width, j : j + width].transpose(2, 0, 1).ravel()
                out[n, i, j] = patch @ weights
    return out


# One screen on graphs. A network that is run line by line (define-by-run: PyTorch, and this file) may do
# something else for each input. A static graph is written down once, then run: it can be looked at and made
# shorter beforehand, but it has forgotten why it took its turns.


def halved(x: "float | Traced") -> "float | Traced":
    """Halved until it is at most 1: how often depends on the number."""
    while abs(x) > 1:
        x = x * 0.5
    return x


class Traced:
    """Stands for a number and writes down what is done to it."""

    def __init__(self, example: float, program: list[float]) -> None:
        self.example, self.program = example, program

    def __mul__(self, factor: float) -> "Traced":
        self.program.append(factor)
        return Traced(self.example * factor, self.program)

    def __abs__(self) -> float:
        return abs(self.example)  # a plain number: the question is answered now, and not written down


def static_graph(example: float, x: float) -> tuple[int, float]:
    """Trace `halved` on an example, then run what was written down on x; its length, and what it gives."""
    program: list[float] = []
    halved(Traced(example, program))
    return len(program), x * float(np.prod(program))  # known beforehand, so all steps become one


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    dice = np.random.default_rng(0)
    learners = [layer for layer in cnn(dice) if isinstance(layer, Linear)]
    times = put_back(np.ones((1, 26, 26, 9)), (1, 28, 28, 1), 3, 1, 0)
    return {
        "1. parameters of the CNN's second layer": learners[1].weights.size + learners[1].bias.size,
        "2. numbers in the patches of a 28×28 picture, filters 3×3, stride 1": 26 * 26 * 9,
        "3. patches that a pixel in the middle is in": float(times[0, 14, 14, 0]),
    }


def compare(dice: np.random.Generator) -> dict[str, float]:
    """A convolution against PyTorch's and against loops, and the two kinds of graph."""
    x, weights = dice.standard_normal((4, 28, 28, 1)), dice.standard_normal((25, 8))
    product, loops = patches(x, 5, 1, 0) @ weights, by_loops(x, weights, 5)
    steps, static = static_graph(example=8.0, x=100.0)
    figures = {
        "from conv2d": against_pytorch(dice),
        "from loops": float(abs(product - loops).max()),
        "define-by-run": halved(100.0),
        "static": static,
    }
    fast = min(timeit.repeat(lambda: patches(x, 5, 1, 0) @ weights, number=1))
    slow = min(timeit.repeat(lambda: by_loops(x, weights, 5), number=1))
    print(f"outputs and gradients, largest difference from PyTorch's conv2d: {figures['from conv2d']:.0e}")
    print(f"loops give the same to {figures['from loops']:.0e}, and take {slow / fast:.0f} times as long")
    print(f"100, halved until at most 1: {figures['define-by-run']:.2f} line by line;", end=" ")
    print(f"{static:g} by a graph of {steps} steps that was written down with 8 as the example")
    return figures


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Is it right, is it fast, and what is it good for: two networks on digits; returns the figures."""
    dice, found = np.random.default_rng(seed), digits()
    figures = compare(dice)
    pictures = (found.images[..., None], found.labels, found.test_images[..., None], found.test_labels)
    data = tuple(each.numpy() for each in pictures)
    steps = size(quick, 300, 2500, 20 * len(found.images) // 32)
    networks, curves, shifted = {"CNN": cnn(dice), "MLP": mlp(dice)}, {}, {}
    for name, layers in networks.items():
        learners = [layer for layer in layers if isinstance(layer, Linear)]
        figures[f"{name}, parameters"] = sum(each.weights.size + each.bias.size for each in learners)
        curves[name] = train(layers, data, steps, dice)
        shifted[name] = [accuracy(layers, np.roll(data[2], shift, axis=2), data[3]) for shift in range(5)]
        figures |= {f"{name}, test accuracy": shifted[name][0], f"{name}, shifted by 2": shifted[name][2]}
    shown = ("parameters", "test accuracy", "shifted by 2")
    originals = dict.fromkeys(f"{name}, {what}" for what in shown for name in networks)
    beside(originals | {"CNN, test accuracy": 0.9906, "MLP, parameters": 13002}, figures)
    draw(found, networks["CNN"], curves, shifted)
    return figures


def draw(data: Digits, layers: list, curves: dict, shifted: dict) -> None:
    """A picture and its patches, accuracies; the filters, what they see in a digit, shifted pictures."""
    figure, axes = pyplot.subplot_mosaic("AABBCC;DDEEFF", figsize=(16, 8.6), layout="constrained")
    small = np.arange(1, 17).reshape(1, 4, 4, 1)
    for name, numbers in (("A", small[0, ..., 0]), ("B", patches(small, 3, 1, 0).reshape(4, 9))):
        axes[name].imshow(numbers, cmap="Blues", vmin=-4, vmax=28)
        for (i, j), number in np.ndenumerate(numbers):
            axes[name].text(j, i, number, ha="center", va="center")
    frame = dict(fill=False, linewidth=3)
    for row, color in ((0, "C1"), (1, "C3")):  # the first two patches, and their rows
        square = pyplot.Rectangle((row - 0.46, -0.46), 2.92, 2.92, edgecolor=color, **frame)
        axes["A"].add_patch(square)
        axes["B"].add_patch(pyplot.Rectangle((-0.46, row - 0.46), 8.92, 0.92, edgecolor=color, **frame))
    axes["A"].set_title("a picture, two of its four patches")
    axes["B"].set_title("im2col: a patch a row; times the filters")
    maps = layers[0].forward(data.test_images[:1, ..., None].numpy())[0].transpose(2, 0, 1)
    for name, pictures in (("D", layers[0].weights.T.reshape(8, 5, 5)), ("E", maps)):
        limit = abs(pictures).max()
        axes[name].imshow(tiled(torch.tensor(pictures), 2).numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
    axes["D"].set_title("eight filters that were learned")
    axes["E"].set_title("what they see in a digit")
    for name, label in (("CNN", "CNN, 9,226 parameters"), ("MLP", "MLP, 13,002 parameters")):
        axes["C"].plot(range(10, 110, 10), curves[name], "o-", label=label)
        axes["F"].plot(shifted[name], "o-", label=name)
    finish(axes["C"], title="pictures never seen", xlabel="% of the training", ylabel="share read right")
    axes["F"].set_xticks(range(5))
    finish(axes["F"], title="the same, shifted", xlabel="pixels to the right", ylabel="share read right")
    for name in "ABDE":
        axes[name].axis("off")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
