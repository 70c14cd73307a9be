"""Lesson 2.2. An MLP with embeddings: three letters are looked at, and vowels find each other.

A table for three letters would have 27³ rows, most of them never seen. Instead each letter gets a point in a
space of ten dimensions, the three points go through a hidden layer, and what is learned of one letter serves
all that lie near it. The points are learned too. And since such a network can learn names by heart, it is
judged on names that it has never seen.

    python lessons/2_language/2_mlp.py

After Bengio et al., "A neural probabilistic language model" (2003), and Andrej Karpathy's lecture "Building
makemore part 2: MLP" (2022).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import LETTERS, beside, fit, invent, mean_loss, names, run, size, windows
from drawing import finish, panels, save
from torch import Tensor, nn

V, LENGTH, HIDDEN = len(LETTERS), 3, 200
VOWELS = [LETTERS.index(letter) for letter in "aeiou"]


def network(width: int = 10, large: bool = True) -> nn.Sequential:
    """Letters (B, 3) to logits (B, V). `large`: all weights are about 1 at first, as the lecture has it."""
    model = nn.Sequential(
        nn.Embedding(V, width),  # (B, 3) to (B, 3, 10)
        nn.Flatten(),  # to (B, 30): the three points side by side
        nn.Linear(LENGTH * width, HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, V),
    )
    nn.init.normal_(model[0].weight, std=0.1)
    for parameter in model.parameters() if large else ():
        nn.init.normal_(parameter)
    return model


def search_rate(inputs: Tensor, targets: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Raise the rate from step to step, tenfold each fifth of the way; the rates and the losses met."""
    model = network()
    rates, losses = 10 ** torch.linspace(-4.5, 0.5, steps), []
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate.item()
        some = torch.randint(len(inputs), (256,))
        loss = nn.functional.cross_entropy(model(inputs[some]), targets[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    smooth = torch.tensor(losses).unfold(0, steps // 20, 1).mean(dim=1)  # of a twentieth of the steps
    return rates[steps // 40 :][: len(smooth)], smooth


def closeness(points: Tensor, some: list[int]) -> float:
    """The mean distance among some of the letters' points, divided by that among all letters'."""
    return (nn.functional.pdist(points[some]).mean() / nn.functional.pdist(points[1:]).mean()).item()


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. parameters with 2 dimensions and 100 hidden neurons": V * 2 + 6 * 100 + 100 + 100 * V + V,
        "2. examples that the name emma makes": len("emma") + 1,
        "3. rows of a table for three letters": V**3,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Search a rate, train, learn a few names by heart, look at the points; returns the figures."""
    torch.manual_seed(seed)
    data = names()
    train, dev = windows(data.train, LENGTH), windows(data.dev, LENGTH)
    for context, target in list(zip(*windows(data.train[:1], LENGTH), strict=True))[:4]:
        print(f"    {''.join(LETTERS[i] for i in context)} is followed by {LETTERS[target]}")

    rates, smooth = search_rate(*train, size(quick, 200, 1_000))
    figures = {"best rate of the search": rates[smooth.argmin()].item()}
    model = network()
    figures["parameters"] = sum(each.numel() for each in model.parameters())
    losses = fit(model, *train, size(quick, 400, 8_000))
    figures |= {"loss on names learned from": mean_loss(model, *train), "loss on dev": mean_loss(model, *dev)}

    by_heart, few = network(), windows(data.train[:100], LENGTH)
    fit(by_heart, *few, size(quick, 400, 1_000))
    figures["100 names by heart: their loss"] = mean_loss(by_heart, *few)
    figures["100 names by heart: loss on dev"] = mean_loss(by_heart, *dev)

    flat = network(2, large=False)  # points that can be drawn, and that begin close together
    fit(flat, *train, size(quick, 400, 2_000))
    points = flat[0].weight.detach()
    figures["in 2 dimensions: loss on dev"] = mean_loss(flat, *dev)
    figures["distance among vowels, of that among all"] = closeness(points, VOWELS)
    beside(dict.fromkeys(figures) | {"parameters": 11897, "loss on dev": 2.1701}, figures)
    print(f"it invents: {', '.join(invent(model, LENGTH, 10))}")
    draw(rates, smooth, losses, figures["loss on dev"], points)
    return figures


def draw(rates: Tensor, smooth: Tensor, losses: list[float], dev: float, points: Tensor) -> None:
    """The search for a rate, the loss, and where the letters lie in two dimensions."""
    figure, (left, middle, right) = panels(3, 17, 5.2)
    left.loglog(rates, smooth)
    finish(left, title="too slow, right, too fast", xlabel="learning rate", ylabel="loss as it rises")
    middle.loglog(range(1, len(losses) + 1), losses, linewidth=0.7)
    middle.axhline(dev, color="C3", linestyle="--", label=f"names never seen: {dev:.3f}")
    finish(middle, title="learning", xlabel="step", ylabel="loss, nats a letter")
    right.scatter(*points.T, s=0)
    for number, (x, y) in enumerate(points.tolist()):
        color = "C3" if number in VOWELS else "C0"
        right.text(x, y, LETTERS[number], color=color, fontsize=17, ha="center", va="center")
    finish(right, title="letters in two dimensions, vowels red")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
