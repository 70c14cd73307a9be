"""Lesson 1.4. Digits: 13,002 numbers that read handwriting, and are certain that noise is a digit.

784 pixels, two hidden layers of 16 neurons, ten outputs. First as it is told on the blackboard, with sigmoids
and squared errors; then with ReLU and cross-entropy. What the first has learned looks like noise, because it
began as noise, large and never forgotten; begun with small weights, one sees strokes. And no network here was
ever told that there are pictures of nothing.

    python lessons/1_networks/4_digits.py

The network: 3Blue1Brown, "Neural networks", chapters 1 and 2 (2017), and Nielsen, "Neural networks and deep
learning" (2015), chapter 1; random labels: Zhang et al. (2017); 784-50-100-10 from a file, on a batch: Saito,
"Deep learning from scratch" (2016), chapter 3.
"""

import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import Digits, beside, digits, run, size
from drawing import finish, save, signed
from matplotlib import pyplot
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

Layers = list[Tensor]  # weights (inputs, outputs) and biases (outputs,), in turn
BATCH = 10


def network(*sizes: int, large: bool = False) -> Layers:
    """Fresh layers: weights of about 1, biases too, as in the video; or small, so that sums stay about 1."""
    layers: Layers = []
    for n, m in pairwise(sizes):
        layers.append(torch.randn(n, m) / (1 if large else n**0.5))
        layers.append(torch.randn(m) if large else torch.zeros(m))
    return [each.requires_grad_() for each in layers]


def forward(layers: Layers, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Images (N, 784) to the sums of the ten outputs (N, 10), before any activation of theirs."""
    for weights, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        x = activation(x @ weights + bias)
    return x @ layers[-2] + layers[-1]


def step(x: Tensor) -> Tensor:
    """What a perceptron does: 1 above 0, else 0."""
    return (x > 0).to(x.dtype)


def squared_error(sums: Tensor, labels: Tensor, activation: Callable = torch.sigmoid) -> Tensor:
    """How far the outputs are from 1 for the right digit and 0 for the others; the mean over the examples."""
    return (activation(sums) - F.one_hot(labels, 10)).square().sum(dim=1).mean() / 2


def accuracy(sums: Tensor, labels: Tensor) -> float:
    """The share of examples whose largest output is that of the right digit."""
    return (sums.argmax(dim=1) == labels).double().mean().item()


# An activation, a loss, and a learning rate for them.
VIDEO = torch.sigmoid, squared_error, 3.0
MODERN = torch.relu, F.cross_entropy, 0.05


def train(layers: Layers, data: Digits, way: tuple, steps: int, labels: Tensor) -> dict[str, list[float]]:
    """Stochastic gradient descent on 10 images a step; 30 times on the way, how it does."""
    activation, loss_of, rate = way
    images, test_images = data.images.flatten(1), data.test_images.flatten(1)
    seen: dict[str, list[float]] = {"step": [], "train": [], "test": []}
    for number in range(1, steps + 1):
        some = torch.randint(len(images), (BATCH,))
        loss = loss_of(forward(layers, images[some], activation), labels[some])
        gradients = torch.autograd.grad(loss, layers)
        with torch.no_grad():
            for each, gradient in zip(layers, gradients, strict=True):
                each -= rate * gradient
            if number % (steps // 30) == 0:
                seen["step"].append(number)
                seen["train"].append(accuracy(forward(layers, images[:4000], activation), labels[:4000]))
                seen["test"].append(accuracy(forward(layers, test_images, activation), data.test_labels))
    return seen


def why_loss_and_sigmoid(layers: Layers, data: Digits) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Which measure feels a nudge, with which neurons: shares of weights, and curves as one weight moves."""
    layers = [each.detach().double() for each in layers]
    images, labels = data.test_images[::10].flatten(1).double(), data.test_labels[::10]
    ways = {
        "loss, sigmoid neurons": (torch.sigmoid, squared_error),
        "accuracy, sigmoid neurons": (torch.sigmoid, accuracy),
        "loss, step neurons": (step, lambda sums, labels: squared_error(sums, labels, step)),
    }
    shares, curves = {}, {"the weight": layers[2][0, 0] + torch.linspace(-2, 2, 401)}
    for name, (activation, measure) in ways.items():
        hidden = activation(images @ layers[0] + layers[1])  # the first layer stays as it is
        later = [each.clone() for each in layers[2:]]
        before, felt = measure(forward(later, hidden, activation), labels), []
        for weights in later[::2]:
            for place in range(weights.numel()):  # each of the 416 weights behind the first layer
                value = weights.view(-1)[place].item()
                weights.view(-1)[place] += 0.001
                felt.append(bool(measure(forward(later, hidden, activation), labels) != before))
                weights.view(-1)[place] = value
        shares[f"nudges felt by the {name}"] = sum(felt) / len(felt)
        curves[name] = []
        for value in curves["the weight"]:
            later[0][0, 0] = value
            curves[name].append(float(measure(forward(later, hidden, activation), labels)))
    return shares, curves


def from_a_file(data: Digits, steps: int) -> dict[str, float]:
    """Train 784-50-100-10, write it down, read it again, and run it on a batch and one image at a time."""
    layers = network(784, 50, 100, 10)
    train(layers, data, MODERN, steps, data.labels)
    names = ("W1", "b1", "W2", "b2", "W3", "b3")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.safetensors")
        save_file(dict(zip(names, (each.detach() for each in layers), strict=True)), file)
        loaded = load_file(file)
    print("from a file: " + ", ".join(f"{name} {tuple(loaded[name].shape)}" for name in names))
    read, images = [loaded[name] for name in names], data.test_images.flatten(1)
    together = forward(read, images, torch.relu)
    one_by_one = torch.cat([forward(read, image[None], torch.relu) for image in images[:100]])
    return {
        "784-50-100-10, test accuracy": accuracy(together, data.test_labels),
        "batch against one by one": (together[:100] - one_by_one).abs().max().item(),
    }


def pictures_of(layers: Layers) -> Tensor:
    """The weights of each neuron of the first layer as a picture, (16, 28, 28)."""
    return layers[0].detach().T.view(-1, 28, 28)


def neighbours(pictures: Tensor) -> float:
    """How alike neighbouring pixels are: their correlation over pictures (N, 28, 28), the middle alone."""
    middle = pictures[:, 6:22, 6:22]
    return torch.corrcoef(torch.stack((middle[:, :, 1:].flatten(), middle[:, :, :-1].flatten())))[0, 1].item()


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. parameters of 784-30-10": 784 * 30 + 30 + 30 * 10 + 10,
        "2. cross-entropy of a network that knows nothing": torch.tensor(10.0).log().item(),
        "3. squared error (halved) of outputs that are all 0.5": 10 * 0.5**2 / 2,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Two ways to train, a network from a file, random labels, nudges, noise; returns the figures."""
    torch.manual_seed(seed)
    data = digits()
    steps = size(quick, 1_500, 12_000, 3 * len(data.images))  # 30 times through all, or through 4,000
    video, modern = network(784, 16, 16, 10, large=True), network(784, 16, 16, 10)
    figures = {"parameters": sum(each.numel() for each in video)}
    curves = {
        "sigmoid, squared error": train(video, data, VIDEO, steps, data.labels),
        "ReLU, cross-entropy": train(modern, data, MODERN, steps, data.labels),
    }
    figures |= {f"{name}, test accuracy": seen["test"][-1] for name, seen in curves.items()}
    figures |= from_a_file(data, steps)
    originals = {"parameters": 13002, "sigmoid, squared error, test accuracy": 0.96}
    originals |= {"ReLU, cross-entropy, test accuracy": None, "784-50-100-10, test accuracy": 0.9352}
    beside(originals, figures)

    torch.manual_seed(seed)
    shuffled = data.labels[torch.randperm(len(data.labels))]
    learned = curves["ReLU, cross-entropy"]
    by_heart = train(network(784, 16, 16, 10), data, MODERN, steps, shuffled)
    figures |= {"true labels, learned": learned["train"][-1], "random labels, learned": by_heart["train"][-1]}
    shares, one_weight = why_loss_and_sigmoid(video, data)
    noise = torch.rand(1000, 784)
    certain = forward(modern, noise, torch.relu).softmax(dim=1).amax(dim=1)
    figures |= shares | {"certainty about noise": certain.mean().item()}
    begun = {"large": video, "small": modern}
    for name, layers in begun.items():
        figures[f"neighbouring weights alike, begun {name}"] = neighbours(pictures_of(layers))
    print()
    for name in list(figures)[5:]:
        print(f"{name:<46}{figures[name]:.1%}")
    draw(curves, by_heart, one_weight, begun, noise)
    return figures


def draw(curves: dict, by_heart: dict, one_weight: dict, begun: dict[str, Layers], noise: Tensor) -> None:
    """Accuracies, random labels, one weight that moves; the weights as pictures; noise and its outputs."""
    figure, axes = pyplot.subplot_mosaic("AABBCC;DDEEFG", figsize=(17, 9), layout="constrained")
    for name, seen in curves.items():
        axes["A"].plot(seen["step"], seen["test"], label=name)
    axes["A"].set(ylim=(0.5, 1))
    finish(axes["A"], title="pictures never seen", xlabel="step", ylabel="share read right")
    axes["B"].plot(by_heart["step"], curves["ReLU, cross-entropy"]["train"], label="true labels")
    axes["B"].plot(by_heart["step"], by_heart["train"], "C3", label="random labels")
    finish(axes["B"], title="learned by heart, slowly", xlabel="step", ylabel="share of the pictures")
    weight = one_weight.pop("the weight")
    for (name, values), color in zip(one_weight.items(), ("C0", "C2", "C3"), strict=True):
        axes["C"].plot(weight, torch.tensor(values) / max(values), color, label=name)
    low, high = axes["C"].get_ylim()
    axes["C"].set_ylim(low - 0.6 * (high - low), high)  # room for the legend
    finish(
        axes["C"], title="one weight moves: a slope, and stairs", xlabel="the weight", ylabel="of the most"
    )
    for name, (size_at_first, layers) in zip("DE", begun.items(), strict=True):
        signed(axes[name], pictures_of(layers), 4, f"16 neurons, begun {size_at_first}")
    axes["F"].imshow(noise[0].view(28, 28).numpy(), cmap="gray_r")
    axes["F"].set_title("noise …")
    probabilities = forward(begun["small"], noise[:1], torch.relu).softmax(dim=1)[0].detach()
    axes["G"].barh(range(10), probabilities.numpy())
    axes["G"].set(title="… read as", yticks=range(10), xlim=(0, 1), xlabel="probability")
    axes["F"].axis("off")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
