"""Lesson 2.3. Initialisation and BatchNorm: 27 nats of loss at the start, and 58% of the neurons asleep.

A network that knows nothing should say so: 27 equal probabilities, a loss of ln 27 = 3.30. Drawn carelessly
it begins at eight times that, certain and wrong, and most tanhs sit at -1 or 1, where their slope is 0 and
nothing gets through. Small last weights cure the first, a gain of 5/3 over the root of the inputs the second.
BatchNorm makes it hard to go wrong: it gives each neuron's sums over a batch the mean 0 and the variance 1,
and remembers what they were on average, for when there is no batch.

    python lessons/2_language/3_initialisation.py

After Andrej Karpathy's lecture "Building makemore part 3: activations & gradients, BatchNorm" (2022); the
gain: He et al. (2015); BatchNorm: Ioffe and Szegedy (2015).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import LETTERS, beside, fit, mean_loss, names, run, size, windows
from drawing import curve, finish, panels, save
from torch import Tensor, nn
from torch.nn import functional as F

V, LENGTH, WIDTH, HIDDEN = len(LETTERS), 3, 10, 200


class BatchNorm(nn.Module):
    """Makes each of C sums have mean 0 and variance 1 over the batch, then a scale and a shift of its own."""

    def __init__(self, channels: int, momentum: float = 0.01) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))  # remembered, not learned
        self.register_buffer("variance", torch.ones(channels))
        self.momentum = momentum

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) to (B, C). When it is used, not trained, with what it remembers: one row is enough then."""
        mean, variance = self.mean, self.variance
        if self.training:
            mean, variance = x.mean(dim=0), x.var(dim=0, correction=0)
            self.mean = torch.lerp(self.mean, mean.detach(), self.momentum)
            self.variance = torch.lerp(self.variance, x.detach().var(dim=0), self.momentum)
        return (x - mean) / (variance + 1e-5).sqrt() * self.scale + self.shift


def network(small_end: bool = True, gain: bool = True, norm: bool = False) -> nn.Sequential:
    """Letters (B, 3) to logits (B, V): lesson 2's network, without or with each remedy."""
    hidden, last = nn.Linear(LENGTH * WIDTH, HIDDEN, bias=not norm), nn.Linear(HIDDEN, V)
    for layer in (hidden, last):
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    with torch.no_grad():
        if small_end:
            last.weight *= 0.01
            last.bias *= 0
        if gain:
            hidden.weight *= 5 / 3 / (LENGTH * WIDTH) ** 0.5
    middle = [hidden, BatchNorm(HIDDEN), nn.Tanh()] if norm else [hidden, nn.Tanh()]
    return nn.Sequential(nn.Embedding(V, WIDTH), nn.Flatten(), *middle, last)


NETWORKS = {
    "careless": dict(small_end=False, gain=False),
    "small last weights": dict(gain=False),
    "and gain 5/3": dict(),
    "BatchNorm": dict(norm=True),
}
ORIGINALS = dict(zip(NETWORKS, (2.168, 2.13, 2.103, 2.105), strict=True))


def through_layers(gain: float, norm: bool = False, depth: int = 20) -> list[float]:
    """How much the tanhs of each of 20 layers of 100 neurons say: their standard deviation."""
    x, spread = torch.randn(1000, 100), []
    for _ in range(depth):
        x = x @ (torch.randn(100, 100) * gain / 100**0.5)
        x = (BatchNorm(100)(x) if norm else x).tanh()
        spread.append(x.std().item())
    return spread


def update_ratios(inputs: Tensor, targets: Tensor, rate: float, steps: int = 200) -> list[float]:
    """log10 of how large a step of plain gradient descent is beside the hidden weights that it changes."""
    model, ratios = network(), []
    for _ in range(steps):
        some = torch.randint(len(inputs), (32,))
        model.zero_grad()
        F.cross_entropy(model(inputs[some]), targets[some]).backward()
        ratios.append((rate * model[2].weight.grad.std() / model[2].weight.std()).log10().item())
        torch.optim.SGD(model.parameters(), lr=rate).step()
    return ratios


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. 64 inputs of variance 1, weights of variance 1: the variance of the sum": 64,
        "2. the slope of tanh where it says 0.99": 1 - 0.99**2,
        "3. parameters that a BatchNorm of 200 sums learns": 2 * 200,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Four ways to begin, what they lead to, what BatchNorm remembers; returns the figures."""
    torch.manual_seed(seed)
    data, figures, says, curves = names(), {}, {}, {}
    train, dev = windows(data.train, LENGTH), windows(data.dev, LENGTH)
    for name, settings in NETWORKS.items():
        model = network(**settings)
        figures[f"{name}: loss at the start"] = F.cross_entropy(model(train[0]), train[1]).item()
        says[name] = model[:-1](train[0][:2000]).detach()  # each tanh for each example
        figures[f"{name}: tanhs asleep"] = (says[name].abs() > 0.99).double().mean().item()
        curves[name] = fit(model, *train, size(quick, 300, 8_000))
        figures[f"{name}: loss on dev"] = mean_loss(model, *dev)
    originals = dict.fromkeys(figures) | {f"{name}: loss on dev": loss for name, loss in ORIGINALS.items()}
    originals |= {"careless: loss at the start": 27.88, "small last weights: loss at the start": 3.32}

    norm = model[3]  # of the last network: what it remembers, beside what the whole training part gives
    sums = model[:3](train[0])
    apart = torch.cat((norm.mean - sums.mean(dim=0), norm.variance.sqrt() - sums.std(dim=0)))
    figures["BatchNorm: remembered, less of all"] = (apart.abs().mean() / sums.std()).item()
    spread = {f"gain {name}": through_layers(gain) for name, gain in (("1", 1), ("5/3", 5 / 3), ("3", 3))}
    spread["BatchNorm, gain 3"] = through_layers(3, norm=True)
    figures |= {f"20th tanh, {name}": values[-1] for name, values in spread.items()}
    ratios = {f"rate {rate}": update_ratios(*train, rate) for rate in (1.0, 0.1, 0.001)}
    figures["step beside weights, rate 0.1, log10"] = sum(ratios["rate 0.1"][100:]) / 100
    beside(originals | {name: None for name in figures if name not in originals}, figures)
    draw(says, spread, ratios, curves)
    return figures


def draw(says: dict, spread: dict, ratios: dict, curves: dict) -> None:
    """What tanhs say at the start, how that goes through 20 layers, how large steps are, the losses."""
    figure, axes = panels(4, 21, 5)
    for name in ("careless", "and gain 5/3"):
        axes[0].hist(says[name].flatten().numpy(), bins=60, density=True, alpha=0.7, label=name)
    axes[0].set_xticks((-1, 0, 1))
    finish(axes[0], title="what the tanhs say at the start", xlabel="tanh", ylabel="density")
    for name, values in spread.items():
        axes[1].plot(range(1, 21), values, label=name)
    finish(axes[1], title="through 20 layers", xlabel="layer", ylabel="standard deviation of the tanhs")
    for name, values in ratios.items():
        axes[2].plot(values, label=name)
    axes[2].axhline(-3, color="black", linestyle="--", label="about right")
    axes[2].set(ylim=(-6, 1.5))
    finish(axes[2], title="a step, beside the weights", xlabel="step", ylabel="log10 of the ratio")
    for name, losses in curves.items():
        curve(axes[3], losses, name)
    axes[3].set(ylim=(2, 2.8))
    finish(axes[3], title="learning", xlabel="share of the steps", ylabel="loss, nats a letter")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
