"""Lesson 1.3. Micrograd: a number that knows its own gradient, and a network made of such numbers.

A Value is a number that remembers what it was made from, and how much it moves when one of those moves (the
slope). From the last one back to the first, slopes are multiplied along each way and added where ways meet:
that is the chain rule, and all of backpropagation. It trains a network, and agrees with PyTorch.

    python lessons/1_networks/3_micrograd.py

After Karpathy, micrograd (2020) and "The spelled-out intro to neural networks and backpropagation" (2022),
whose examples and figures these are; backpropagation: Rumelhart, Hinton and Williams (1986).
"""

import gc
import math
import random
import sys
from collections.abc import Iterable
from itertools import count, pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import beside, run, size
from drawing import draw_graph, finish, panels, save, two_sides


class Value:
    """A number, its gradient, and the Values that it was made from, each with its slope."""

    __slots__ = ("data", "grad", "inputs", "number", "sign")
    numbers = count()

    def __init__(self, data: float, inputs: tuple = (), sign: str = "") -> None:
        self.data, self.grad, self.sign = data, 0.0, sign  # the sign of what made it
        self.inputs = inputs  # pairs of a Value and the slope of this one in it
        self.number = next(Value.numbers)  # larger than those of its inputs

    def __add__(self, other: "Value | float") -> "Value":
        other = value(other)
        return Value(self.data + other.data, ((self, 1.0), (other, 1.0)), "+")

    def __mul__(self, other: "Value | float") -> "Value":
        other = value(other)
        return Value(self.data * other.data, ((self, other.data), (other, self.data)), "×")

    def __pow__(self, power: float) -> "Value":
        return Value(self.data**power, ((self, power * self.data ** (power - 1)),), f"^{power}")

    def exp(self) -> "Value":
        return Value(math.exp(self.data), ((self, math.exp(self.data)),), "exp")

    def tanh(self) -> "Value":
        return Value(math.tanh(self.data), ((self, 1 - math.tanh(self.data) ** 2),), "tanh")

    def relu(self) -> "Value":
        return Value(max(self.data, 0.0), ((self, float(self.data > 0)),), "relu")

    # Python asks these for `1 + a` and `2 * a`, since 1 and 2 know nothing of Values.
    __radd__, __rmul__ = __add__, __mul__

    def __sub__(self, other: "Value") -> "Value":
        return self + other * -1

    def made_from(self) -> list["Value"]:
        """This Value and all behind it, the youngest first: each before what it was made from."""
        found, to_visit = {self}, [self]
        while to_visit:
            for other, _ in to_visit.pop().inputs:
                if other not in found:
                    found.add(other)
                    to_visit.append(other)
        return sorted(found, key=lambda each: each.number, reverse=True)

    def backward(self) -> None:
        """Add to the gradient of every Value behind this one how much this one moves with it."""
        order = self.made_from()
        for each in order:
            if each.inputs:
                each.grad = 0.0  # those that were given, not made, keep what they have: see zero_grad below
        self.grad = 1.0
        for each in order:
            for other, slope in each.inputs:
                other.grad += slope * each.grad  # += and not =, since a Value may be used twice


def value(number: "Value | float") -> Value:
    """A plain number as a Value."""
    return number if isinstance(number, Value) else Value(number)


# What follows works with Values and, unchanged, with PyTorch's tensors: so they can be compared.


def worked_example(a: Any, b: Any) -> Any:
    """micrograd's own: 24.7041 at a = -4, b = 2."""
    c = 3 * a + 4 * b + 3
    d = 4 * (3 * (a * b + b**3) + (a + b).relu()) + (b - a).relu()
    e = c - d
    return 0.5 * e**2 + 10 * e**-2


def neuron(x1: Any, x2: Any, w1: Any, w2: Any, b: Any) -> Any:
    """The lecture's: 0.7071 at x = (2, 0), w = (-3, 1), b = 6.8814."""
    return (x1 * w1 + x2 * w2 + b).tanh()


def network(sizes: list[int], dice: random.Random) -> list:
    """Layers of neurons; a neuron is a list of its weights, and its bias."""

    def new_neuron(inputs: int) -> tuple[list[Value], Value]:
        return [Value(dice.uniform(-1, 1)) for _ in range(inputs)], Value(0.0)

    return [[new_neuron(inputs) for _ in range(outputs)] for inputs, outputs in pairwise(sizes)]


def parameters(layers: list) -> list:
    """All weights and biases."""
    return [each for layer in layers for weights, bias in layer for each in (*weights, bias)]


def forward(layers: list, x: Iterable) -> Any:
    """What the one neuron of the last layer says; a ReLU follows each layer before it."""
    for layer in layers:
        x = [sum((w * xi for w, xi in zip(weights, x, strict=True)), bias) for weights, bias in layer]
        x = x if layer is layers[-1] else [each.relu() for each in x]
    return x[0]


def hinge_loss(layers: list, examples: list) -> Any:
    """0 for an example on its side (label 1 or -1) by a margin of 1; and a little for large weights."""
    misses = sum((1 + -label * forward(layers, x)).relu() for x, label in examples)
    return misses * (1 / len(examples)) + 1e-4 * sum(each * each for each in parameters(layers))


def moons(n: int, dice: random.Random) -> list:
    """n points on two half circles that reach into each other, with labels 1 and -1."""
    examples = []
    for i in range(n):
        angle, label = math.pi * dice.random(), 1 if i % 2 else -1
        x, y = (math.cos(angle), math.sin(angle)) if i % 2 else (1 - math.cos(angle), 0.5 - math.sin(angle))
        examples.append(((x + dice.gauss(0, 0.1), y + dice.gauss(0, 0.1)), label))
    return examples


def as_torch(layers: list) -> list:
    """The same network with PyTorch's tensors in the place of Values."""

    def tensor(each: Value) -> torch.Tensor:
        return torch.tensor(each.data, dtype=torch.float64, requires_grad=True)

    return [[([tensor(w) for w in weights], tensor(bias)) for weights, bias in layer] for layer in layers]


def train(layers: list, examples: list, steps: int, dice: random.Random) -> list[float]:
    """Gradient descent on 25 examples a step, the rate falling from 1 to 0.1; the losses."""
    gc.disable()  # a graph has no circles, and Python's search for them would take most of the time
    losses = []
    for step in range(steps):
        loss = hinge_loss(layers, dice.sample(examples, 25))
        for each in parameters(layers):
            each.grad = 0.0  # zero_grad: without it the gradients of all steps so far would add up
        loss.backward()
        for each in parameters(layers):
            each.data -= (1 - 0.9 * step / steps) * each.grad
        losses.append(loss.data)
    gc.enable()
    return losses


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    a, b, c = Value(2.0), Value(3.0), Value(0.0)
    (a * b + a * a).backward()
    ((1 + (c * -1).exp()) ** -1).backward()
    return {
        "1. the gradient of a in a·b + a·a, at a = 2 and b = 3": a.grad,
        "2. Values in the graph of the lecture's neuron": len(
            neuron(a, b, Value(1.0), Value(1.0), c).made_from()
        ),
        "3. the slope of the sigmoid 1 / (1 + exp(-c)) at c = 0": c.grad,
    }


def compare(layers: list, examples: list) -> float:
    """The largest difference of the gradients of all parameters from PyTorch's."""
    for each in parameters(layers):
        each.grad = 0.0
    same = as_torch(layers)
    hinge_loss(layers, examples).backward()
    hinge_loss(same, examples).backward()
    pairs = zip(parameters(layers), parameters(same), strict=True)
    return max(abs(mine.grad - theirs.grad.item()) for mine, theirs in pairs)


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Worked examples, the pitfalls, moons, and PyTorch beside it all; returns the figures."""
    a, b = Value(-4.0), Value(2.0)
    result = worked_example(a, b)
    result.backward()
    inputs = dict(x1=Value(2.0), x2=Value(0.0), w1=Value(-3.0), w2=Value(1.0), b=Value(6.8813735870195432))
    output = neuron(**inputs)
    output.backward()
    figures = {"worked example": result.data, "its gradient in a": a.grad, "its gradient in b": b.grad}
    figures["neuron"] = output.data
    figures |= {f"its gradient in {name}": inputs[name].grad for name in inputs if name != "b"}
    originals = (24.7041, 138.8338, 645.5773, 0.7071, -1.5, 0.5, 1.0, 0.0)

    twice = Value(3.0)
    (twice + twice).backward()
    figures["twice"] = twice.grad  # 2: one from each use
    (1 + twice).backward()
    print(f"a + a has the slope 2 in a; 1 + a adds to it, as nobody set it to zero: {twice.grad:g}")

    dice = random.Random(seed)
    examples, layers = moons(100, dice), network([2, 16, 16, 1], dice)
    losses = train(layers, examples, size(quick, 30, 100), dice)
    figures["parameters"] = len(parameters(layers))
    figures["right"] = sum((forward(layers, x).data > 0) == (label > 0) for x, label in examples)
    figures["apart"] = compare(layers, examples[:25])
    beside(dict.fromkeys(figures) | dict(zip(figures, originals, strict=False)) | {"right": 100}, figures)

    figure, axes = panels(3, 17, 5, width_ratios=(2.2, 1.1, 1))
    draw_graph(axes[0], output.made_from(), {each: name for name, each in inputs.items()})
    axes[0].set_title("the lecture's neuron: numbers forward, gradients back")
    two_sides(axes[1], lambda x, y: forward(as_torch(layers), (x, y)), examples)
    axes[1].set_title("moons, and the line between")
    axes[2].plot(losses)
    finish(axes[2], title="loss of each step", xlabel="step")
    save(figure, __file__)
    return figures


if __name__ == "__main__":
    run(main, __doc__, exercises)
