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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import numpy as np
import torch
from common import Digits, beside, digits, run, size
from drawing import finish, in_squares, save, signed
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
        self.speeds = np.zeros_like(self.weights), np.zeros_like(self.bias)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.shape, self.x = x.shape, x.reshape(len(x), -1)
        return self.x @ self.weights + self.bias

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        """The gradient in the input; those in weights and bias are kept."""
        self.gradients = self.x.T @ gradient, gradient.sum(axis=0)
        return (gradient @ self.weights.T).reshape(self.shape)

    def step(self, rate: float) -> None:
        """Downhill with momentum: lesson 1.2."""
        for each, speed, slope in zip((self.weights, self.bias), self.speeds, self.gradients, strict=True):
            speed *= 0.9
            speed -= rate * slope
            each += speed


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


def learners(layers: list) -> list[Linear]:
    """The layers that have weights."""
    return [layer for layer in layers if isinstance(layer, Linear)]


def train(layers: list, data: tuple[np.ndarray, ...], steps: int, dice: np.random.Generator) -> list[float]:
    """Down the gradient of cross-entropy, 32 pictures a step; ten times on the way, the share read right."""
    x, labels, test, test_labels = data
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
        for layer in learners(layers):
            layer.step(0.05 * (1 - step / steps))
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
        results = mine, layer.backward(upstream), *layer.gradients

        tensors = [torch.tensor(each, requires_grad=True) for each in (x, layer.weights, layer.bias)]
        filters = tensors[1].T.reshape(outputs, C, width, width)
        theirs = F.conv2d(tensors[0].permute(0, 3, 1, 2), filters, tensors[2], stride, padding)
        theirs = theirs.permute(0, 2, 3, 1)
        slopes = torch.autograd.grad(theirs, tensors, torch.tensor(upstream))
        for one, other in zip(results, (theirs.detach(), *slopes), strict=True):
            worst = max(worst, float(abs(one - other.numpy()).max()))
    return worst


# One screen on graphs. A network that is run line by line (define-by-run: PyTorch, and this file) may do
# something else for each input. A static graph is written down once, then run: it can be looked at and made
# shorter beforehand, but it has forgotten why it took its turns.


def halved(x: float) -> float:
    """Halved until it is at most 1: how often depends on the number."""
    while abs(x) > 1:
        x = x * 0.5
    return x


def static_graph(example: float, x: float) -> tuple[int, float]:
    """Trace `halved` on an example, then run what was written down on x; its length, and what it gives."""
    program: list[float] = []

    class Traced(float):
        """Writes down what it is multiplied by. What `while` asks is answered now, and not written down."""

        def __mul__(self, factor: float) -> "Traced":
            program.append(factor)
            return Traced(float(self) * factor)

    halved(Traced(example))
    return len(program), x * float(np.prod(program))  # known beforehand, so all steps become one


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    second = learners(cnn(np.random.default_rng(0)))[1]
    times = put_back(np.ones((1, 26, 26, 9)), (1, 28, 28, 1), 3, 1, 0)
    return {
        "1. parameters of the CNN's second layer": second.weights.size + second.bias.size,
        "2. numbers in the patches of a 28×28 picture, filters 3×3, stride 1": 26 * 26 * 9,
        "3. patches that a pixel in the middle is in": float(times[0, 14, 14, 0]),
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Is it right, and what is it good for: two networks on digits; returns the figures."""
    dice, found = np.random.default_rng(seed), digits()
    figures = {"from conv2d": against_pytorch(dice)}
    print(f"outputs and gradients, largest difference from PyTorch's conv2d: {figures['from conv2d']:.0e}")
    steps, static = static_graph(example=8.0, x=100.0)
    print(f"100, halved until at most 1: {halved(100.0):.2f} line by line;", end=" ")
    print(f"{static:g} by a graph of {steps} steps that was written down with 8 as the example")

    pictures = (found.images[..., None], found.labels, found.test_images[..., None], found.test_labels)
    data = tuple(each.numpy() for each in pictures)
    steps = size(quick, 300, 2500, 20 * len(found.images) // 32)
    networks, curves, shifted = {"CNN": cnn(dice), "MLP": mlp(dice)}, {}, {}
    for name, layers in networks.items():
        figures[f"{name}, parameters"] = sum(each.weights.size + each.bias.size for each in learners(layers))
        curves[name] = train(layers, data, steps, dice)
        shifted[name] = [accuracy(layers, np.roll(data[2], shift, axis=2), data[3]) for shift in range(5)]
        figures |= {f"{name}, test accuracy": shifted[name][0], f"{name}, shifted by 2": shifted[name][2]}
    originals = {"CNN, test accuracy": 0.9906, "MLP, parameters": 13002}
    beside(dict.fromkeys(figures) | originals, figures)
    draw(found, networks["CNN"], curves, shifted)
    return figures


def draw(data: Digits, layers: list, curves: dict, shifted: dict) -> None:
    """A picture and its patches, accuracies; the filters, what they see in a digit, shifted pictures."""
    figure, axes = pyplot.subplot_mosaic("AABBCC;DDEEFF", figsize=(16, 8.6), layout="constrained")
    small = np.arange(1, 17).reshape(1, 4, 4, 1)
    in_squares(
        axes["A"], small[0, ..., 0], "a picture, two of its four patches", ((0, 0, 3, 3), (0, 1, 3, 3))
    )
    rows, title = patches(small, 3, 1, 0).reshape(4, 9), "im2col: a patch a row; times the filters"
    in_squares(axes["B"], rows, title, ((0, 0, 1, 9), (1, 0, 1, 9)))
    signed(axes["D"], torch.tensor(layers[0].weights.T).view(8, 5, 5), 2, "eight filters that were learned")
    maps = layers[0].forward(data.test_images[:1, ..., None].numpy())[0].transpose(2, 0, 1)
    signed(axes["E"], torch.tensor(maps), 2, "what they see in a digit")
    for name, label in (("CNN", "CNN, 9,226 parameters"), ("MLP", "MLP, 13,002 parameters")):
        axes["C"].plot(range(10, 110, 10), curves[name], "o-", label=label)
        axes["F"].plot(shifted[name], "o-", label=name)
    finish(axes["C"], title="pictures never seen", xlabel="% of the training", ylabel="share read right")
    axes["F"].set_xticks(range(5))
    finish(axes["F"], title="the same, shifted", xlabel="pixels to the right", ylabel="share read right")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
