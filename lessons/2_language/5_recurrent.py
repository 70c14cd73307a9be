"""Lesson 2.5. A recurrent network: one state is carried from letter to letter, and the whole name is in it.

The MLP forgets all but three letters. A recurrent network reads one letter at a time and mixes it into a
state of 64 numbers, the same way each time; so there is no limit to how far it looks back. The price: it must
read in order, one step after the other, and the gradient comes back through every step and shrinks in each.
The GRU's gates decide what of the state stays, and what stays passes the gradient on.

    python lessons/2_language/5_recurrent.py

RNN: Elman (1990), Mikolov et al. (2010); the gradient: Bengio, Simard and Frasconi (1994); GRU: Cho et al.
(2014); both are in Karpathy's makemore.
"""

import sys
import timeit
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import LETTERS, beside, fit, mean_loss, names, run, size, windows
from drawing import curve, finish, panels, save
from torch import Tensor, nn
from torch.nn import functional as F

V, T, HIDDEN = len(LETTERS), 16, 64  # the longest names have 15 letters


class Recurrent(nn.Module):
    """Ids (B, T) to logits (B, T, V) by way of a state (B, H) that goes along; `gates`: GRU, without: RNN."""

    def __init__(self, gates: bool) -> None:
        super().__init__()
        self.gates, parts = gates, 3 if gates else 1
        self.points = nn.Embedding(V, HIDDEN)
        self.of_letter, self.of_state = (nn.Linear(HIDDEN, parts * HIDDEN) for _ in range(2))
        self.head = nn.Linear(HIDDEN, V)

    def step(self, letter: Tensor, state: Tensor) -> Tensor:
        """The next state, (B, H), from what the letter brings (B, H or 3H) and the state so far."""
        if not self.gates:
            return (letter + self.of_state(state)).tanh()
        reset, keep, new = letter.chunk(3, dim=-1)
        old_reset, old_keep, old_new = self.of_state(state).chunk(3, dim=-1)
        reset, keep = (reset + old_reset).sigmoid(), (keep + old_keep).sigmoid()
        candidate = (new + reset * old_new).tanh()
        return keep * state + (1 - keep) * candidate

    def states(self, points: Tensor) -> Tensor:
        """The state after each letter, (B, T, H). The loop cannot be avoided: each needs the one before."""
        state, seen = torch.zeros_like(points[:, 0]), []
        for letter in self.of_letter(points).unbind(dim=1):
            state = self.step(letter, state)
            seen.append(state)
        return torch.stack(seen, dim=1)

    def forward(self, ids: Tensor) -> Tensor:
        """What may follow each letter."""
        return self.head(self.states(self.points(ids)))


def whole_names(words: list[str]) -> tuple[Tensor, Tensor]:
    """Each name as a row: what is read (N, T), and what follows (N, T), -100 after the end."""
    targets = torch.full((len(words), T), -100)
    for row, word in enumerate(words):
        targets[row, : len(word) + 1] = torch.tensor([LETTERS.index(letter) for letter in f"{word}."])
    inputs = F.pad(targets, (1, -1)).clamp(min=0)  # one place later, begun with the dot's 0
    return inputs, targets


def mlp() -> nn.Sequential:
    """Lesson 2's, calmly begun: three letters (B, 3) to logits (B, V)."""
    return nn.Sequential(nn.Embedding(V, 10), nn.Flatten(), nn.Linear(30, 200), nn.Tanh(), nn.Linear(200, V))


@torch.no_grad()
def influence(model: nn.Module, ids: Tensor) -> list[float]:
    """How much of the probability of the ninth letter moves when the letter 1, 2, … 8 back is another."""
    seen, moved = slice(0, 9) if isinstance(model, Recurrent) else slice(6, 9), []
    before = model(ids[:, seen]).view(len(ids), -1, V)[:, -1].softmax(dim=-1)
    for back in range(1, 9):
        other = ids.clone()
        other[:, 9 - back] = torch.randint(1, V, (len(ids),))
        after = model(other[:, seen]).view(len(ids), -1, V)[:, -1].softmax(dim=-1)
        moved.append((after - before).abs().sum(dim=1).mean().item() / 2)
    return moved


def gradient_back(model: Recurrent, ids: Tensor) -> Tensor:
    """How much of the gradient of the last state arrives at the letter 0, 1, … T - 1 steps before, (T,)."""
    points = model.points(ids).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.states(points)[:, -1].square().sum(), points)
    sizes = gradient.norm(dim=(0, 2)).flip(0)
    return sizes / sizes[0]


@torch.no_grad()
def price_of_order(model: Recurrent, ids: Tensor) -> float:
    """How many times longer the steps take one after the other than all at once, the same products."""
    points = model.points(ids)
    fresh = torch.zeros_like(points)
    in_order = min(timeit.repeat(lambda: model.states(points), number=5))
    at_once = min(timeit.repeat(lambda: model.step(model.of_letter(points), fresh), number=5))
    return in_order / at_once


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. parameters of the RNN's step, biases included": 2 * (HIDDEN * HIDDEN + HIDDEN),
        "2. what is left of a gradient after 5 steps that each halve it": 0.5**5,
        "3. steps one after the other for a name of 7 letters and its end": 8,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Three networks on the same names; how far they see, how the gradient fares; returns the figures."""
    torch.manual_seed(seed)
    data, figures, curves, sees = names(), {}, {}, {}
    long = whole_names([word for word in data.dev if len(word) >= 8])[0][:300]
    back = {name: gradient_back(Recurrent(gates), long) for name, gates in (("RNN", False), ("GRU", True))}
    for name, model, count, batch in (
        ("MLP", mlp(), size(quick, 200, 6_000), 256),
        ("RNN", Recurrent(gates=False), size(quick, 60, 1_500), 128),
        ("GRU", Recurrent(gates=True), size(quick, 60, 1_500), 128),
    ):
        train, dev = ((windows(w, 3) if name == "MLP" else whole_names(w)) for w in (data.train, data.dev))
        curves[name] = fit(model, *train, count, batch=batch)
        figures[f"{name}: parameters"] = sum(each.numel() for each in model.parameters())
        figures[f"{name}: loss on dev"] = mean_loss(model, *dev)
        sees[name] = influence(model, long)
        figures[f"{name}: moved by the letter 5 back"] = sees[name][4]
    figures |= {f"{name}: gradient left after 10 steps": each[10].item() for name, each in back.items()}
    figures["a name in order, times as long as at once"] = price_of_order(Recurrent(gates=False), long[:1])
    beside(dict.fromkeys(figures), figures)
    draw(curves, sees, back)
    return figures


def draw(curves: dict[str, list[float]], sees: dict[str, list[float]], back: dict[str, Tensor]) -> None:
    """The losses, how far each looks back, and what is left of the gradient."""
    figure, (left, middle, right) = panels(3, 17, 5)
    for name, losses in curves.items():
        curve(left, losses, name)
    left.set(ylim=(1.8, 2.8))
    finish(left, title="learning", xlabel="share of the steps", ylabel="loss, nats a letter")
    for name, moved in sees.items():
        middle.plot(range(1, 9), moved, "o-", label=name)
    finish(middle, title="what is carried along", xlabel="letters back", ylabel="probability moved")
    for name, sizes in back.items():
        right.semilogy(sizes, "o-", color={"RNN": "C1", "GRU": "C2"}[name], label=name)
    finish(right, title="the gradient, before learning", xlabel="steps back", ylabel="share that is left")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
