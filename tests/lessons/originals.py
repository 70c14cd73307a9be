"""What makemore's lectures train, by their protocol, for the lessons of part 2 to be held against.

Written in plain PyTorch from what the lectures do, apart from the lessons: they share the names, how these
are divided, and nothing else. 200,000 steps of 32 examples each, plain gradient descent at 0.1 and at the end
at 0.01; then the loss on all of dev, a BatchNorm with its running statistics.

    python tests/lessons/originals.py --seed 1      # minutes on one core; docs/results.md has the figures
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lessons"))

from common import names, windows

STEPS, BATCH, VOCABULARY = 200_000, 32, 27


class Pairs(nn.Module):
    """Joins neighbouring positions: (B, T, C) to (B, T / 2, 2C)."""

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        joined = x.reshape(B, T // 2, 2 * C)
        return joined.squeeze(1) if T == 2 else joined


class Norm(nn.BatchNorm1d):
    """BatchNorm over all but the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


def bigram(inputs: Tensor, targets: Tensor) -> nn.Sequential:
    """Part 1: counts of what follows each letter, one added to each."""
    counts = torch.ones(VOCABULARY, VOCABULARY).index_put((inputs[:, 0], targets), torch.tensor(1.0), True)
    return nn.Sequential(nn.Embedding.from_pretrained(counts.log()), nn.Flatten())


def mlp() -> nn.Sequential:
    """Part 2: 11,897 parameters, every one of them drawn from a normal distribution of variance 1."""
    model = nn.Sequential(
        nn.Embedding(VOCABULARY, 10), nn.Flatten(), nn.Linear(30, 200), nn.Tanh(), nn.Linear(200, VOCABULARY)
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def calm_logits() -> nn.Sequential:
    """Part 3, first repair: the last layer begins small."""
    model = mlp()
    with torch.no_grad():
        model[4].weight.mul_(0.01)
        model[4].bias.zero_()
    return model


def calm_tanh() -> nn.Sequential:
    """Part 3, second repair: the hidden layer begins with a gain of 5/3 over the root of its inputs."""
    model = calm_logits()
    with torch.no_grad():
        model[2].weight.mul_(5 / 3 / 30**0.5)
        model[2].bias.mul_(0.01)
    return model


def batch_norm() -> nn.Sequential:
    """Part 3, last form: a BatchNorm between the hidden layer, without a bias, and its tanh."""
    model = calm_tanh()
    hidden = nn.Linear(30, 200, bias=False)
    hidden.weight = model[2].weight
    return nn.Sequential(model[0], model[1], hidden, nn.BatchNorm1d(200, momentum=0.001), model[3], model[4])


def flat() -> nn.Sequential:
    """Part 5, for comparison: eight letters at once, 22,097 parameters."""
    hidden, last = nn.Linear(80, 200, bias=False), nn.Linear(200, VOCABULARY)
    nn.init.normal_(hidden.weight, std=80**-0.5)
    nn.init.normal_(last.weight, std=0.1 * 200**-0.5)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, 10), nn.Flatten(), hidden, nn.BatchNorm1d(200), nn.Tanh(), last
    )


def wavenet() -> nn.Sequential:
    """Part 5: eight letters joined in pairs three times, 76,579 parameters."""
    layers: list[nn.Module] = [nn.Embedding(VOCABULARY, 24)]
    for inputs in (2 * 24, 2 * 128, 2 * 128):
        linear = nn.Linear(inputs, 128, bias=False)
        nn.init.normal_(linear.weight, std=inputs**-0.5)
        layers += [Pairs(), linear, Norm(128), nn.Tanh()]
    last = nn.Linear(128, VOCABULARY)
    nn.init.normal_(last.weight, std=0.1 * 128**-0.5)
    nn.init.zeros_(last.bias)
    nn.init.normal_(layers[0].weight)
    return nn.Sequential(*layers, last)


# Each model, how many letters it sees, and the share of the steps that are made at a rate of 0.1.
MODELS = {
    "MLP": (mlp, 3, 0.5),
    "MLP, calm logits": (calm_logits, 3, 0.5),
    "MLP, calm tanh": (calm_tanh, 3, 0.5),
    "MLP, BatchNorm": (batch_norm, 3, 0.5),
    "flat, eight letters": (flat, 8, 0.75),
    "WaveNet": (wavenet, 8, 0.75),
}


def train(model: nn.Module, inputs: Tensor, targets: Tensor, share: float) -> None:
    """Plain gradient descent on random examples."""
    parameters = list(model.parameters())
    for step in range(STEPS):
        some = torch.randint(len(inputs), (BATCH,))
        loss = F.cross_entropy(model(inputs[some]), targets[some])
        gradients = torch.autograd.grad(loss, parameters)
        rate = 0.1 if step < share * STEPS else 0.01
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=rate)


def report(seed: int, name: str, model: nn.Module, dev: tuple[Tensor, Tensor]) -> None:
    """Print a model's size and its loss on dev."""
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(dev[0]), dev[1]).item()
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"seed {seed}  {name:<20}{count:>7,} parameters  dev {loss:.4f}", flush=True)


def main() -> None:
    """Train each, print its loss on dev."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    torch.set_num_threads(1)
    data = names()
    report(seed, "bigram", bigram(*windows(data.train, 1)), windows(data.dev, 1))
    for name, (make, length, share) in MODELS.items():
        torch.manual_seed(seed)
        model = make()
        train(model, *windows(data.train, length), share)
        report(seed, name, model, windows(data.dev, length))


if __name__ == "__main__":
    main()
