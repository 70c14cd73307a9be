"""Lesson 2.6. WaveNet: eight letters joined two by two, three times, and why that is a convolution.

An MLP squeezes all its letters into one layer at once. A tree joins neighbours, then neighbours of those, so
each layer has little to do, three layers see eight letters, and a fourth would see sixteen. Slid along a
name, the tree does most of its work again and again, since what is made of a pair does not depend on who
asks. A convolution whose layers reach 1, 2 and 4 letters back makes it once, and gives the same numbers.

    python lessons/2_language/6_wavenet.py

After van den Oord et al., "WaveNet" (2016), and Andrej Karpathy's lecture "Building makemore part 5" (2022).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import beside, fit, invent, mean_loss, names, run, size, windows
from drawing import curve, finish, panels, save
from torch import Tensor, nn
from torch.nn import functional as F

V, LENGTH, WIDTH, HIDDEN = 27, 8, 24, 128


class JoinPairs(nn.Module):
    """A layer of the tree: two neighbours become one, (B, T, C) to (B, T / 2, H)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.join = nn.Linear(2 * channels, HIDDEN, bias=False)
        self.norm = nn.BatchNorm1d(HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        pairs = x.view(B, T // 2, 2 * C)  # memory lies so that this puts neighbours side by side
        sums = self.join(pairs)  # (B, T / 2, H)
        return self.norm(sums.flatten(0, 1)).view(sums.shape).tanh()  # the mean is that of all places

    def slide(self, x: Tensor, reach: int) -> Tensor:
        """At every place at once, each with the one `reach` before it: (B, C, T) to (B, H, T - reach)."""
        weights = self.join.weight.view(HIDDEN, 2, -1).transpose(1, 2)  # (H, C, 2): a filter of width 2
        return self.norm(F.conv1d(x, weights, dilation=reach)).tanh()


class WaveNet(nn.Module):
    """Letters (B, 8) to logits (B, V)."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Embedding(V, WIDTH)
        self.layers = nn.ModuleList(JoinPairs(channels) for channels in (WIDTH, HIDDEN, HIDDEN))
        self.head = nn.Linear(HIDDEN, V)
        with torch.no_grad():
            self.head.weight *= 0.1  # begins by knowing nothing: lesson 3

    def forward(self, ids: Tensor) -> Tensor:
        x = self.points(ids)  # (B, 8, C)
        for layer in self.layers:
            x = layer(x)  # (B, 4, H), (B, 2, H), (B, 1, H)
        return self.head(x[:, 0])

    def slide(self, ids: Tensor) -> Tensor:
        """A text (B, T) to logits (B, T - 7, V): for every place that has eight letters to look at."""
        x = self.points(ids).transpose(1, 2)  # (B, C, T)
        for number, layer in enumerate(self.layers):
            x = layer.slide(x, reach=2**number)
        return self.head(x.transpose(1, 2))


def flat() -> nn.Sequential:
    """Eight letters (B, 8) squeezed into one layer, (B, V): 22,097 parameters."""
    last = nn.Linear(200, V)
    nn.init.normal_(last.weight, std=0.01)
    layers = nn.Linear(LENGTH * 10, 200, bias=False), nn.BatchNorm1d(200), nn.Tanh(), last
    return nn.Sequential(nn.Embedding(V, 10), nn.Flatten(), *layers)


def same_by_sliding(model: WaveNet, words: list[str]) -> float:
    """The largest difference between eight letters at a time and sliding, over whole names, in float64."""
    model = model.double().eval()
    apart = 0.0
    with torch.no_grad():
        for word in words:
            contexts, _ = windows([word], LENGTH)  # (letters + 1, 8)
            text = torch.cat((contexts[0], contexts[1:, -1]))
            apart = max(apart, (model.slide(text[None])[0] - model(contexts)).abs().max().item())
    model.float()
    return apart


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. letters that a tree of 5 layers sees": 2**5,
        "2. joins that a tree over 8 letters makes for one letter": 4 + 2 + 1,
        "3. joins that sliding makes for one more letter": 3,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Flat and tree on the same letters, and the tree as a convolution; returns the figures."""
    torch.manual_seed(seed)
    data, figures, curves = names(), {}, {}
    train, dev = windows(data.train, LENGTH), windows(data.dev, LENGTH)
    for name, model in (("flat", flat()), ("WaveNet", WaveNet())):
        curves[name] = fit(model, *train, size(quick, 150, 5_000), rate=4e-3)
        figures[f"{name}: parameters"] = sum(each.numel() for each in model.parameters())
        figures[f"{name}: loss on dev"] = mean_loss(model, *dev)
    figures["sliding, apart by"] = same_by_sliding(model, data.dev[:50])
    originals = {"flat: loss on dev": 2.027, "WaveNet: parameters": 76579, "WaveNet: loss on dev": 1.993}
    beside(dict.fromkeys(figures) | {"flat: parameters": 22097} | originals, figures)
    print(f"it invents: {', '.join(invent(model, LENGTH, 10))}")
    draw(curves, figures)
    return figures


def draw(curves: dict[str, list[float]], figures: dict[str, float]) -> None:
    """The tree among the joins that sliding makes, and the losses of both networks."""
    figure, (left, right) = panels(2, 16, 5.4, width_ratios=(1.5, 1))
    letters, grey, asked = "........gabriela", "#c9d6e6", {15}
    for level, reach in ((3, 4), (2, 2), (1, 1)):
        needed = asked | {place - reach for place in asked}
        for place in range(2 * reach - 1, len(letters)):
            for source in (place, place - reach):
                color = "C0" if place in asked else grey
                left.plot(
                    (source, place),
                    (level - 1, level),
                    "o-",
                    color=color,
                    markersize=13,
                    zorder=color == "C0",
                )
        asked = needed
    left.set_xticks(range(len(letters)), letters)
    left.set_yticks(range(4), ("letters", "pairs", "fours", "eights"))
    left.set(title="blue: the tree for one letter; grey: for all letters", xlabel="what was read")
    for (name, losses), color in zip(curves.items(), ("C0", "C1"), strict=True):
        curve(right, losses, f"{name}, learning", color)
        dev = figures[f"{name}: loss on dev"]
        right.axhline(dev, color=color, linestyle="--", label=f"{name}, dev")
    right.set(ylim=(1.85, 2.5))
    finish(right, title="eight letters", xlabel="share of the steps", ylabel="loss, nats a letter")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
