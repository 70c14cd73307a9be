"""Lesson 2.4. Backpropagation through all of it: 24 gradients by hand, each beside autograd's.

The network of lesson 3, taken apart into steps so small that the derivative of each is school mathematics:
a sum, a product, a power, a mean. Backward, each line of the way there has its line. Then whole stretches are
done on paper first: softmax and cross-entropy come to one line, BatchNorm to another. With these the network
learns without autograd.

    python lessons/2_language/4_backpropagation.py

After Andrej Karpathy's lecture "Building makemore part 4: becoming a backprop ninja" (2022).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import LETTERS, beside, names, run, size, windows
from drawing import curve, finish, panels, save
from torch import Tensor
from torch.nn import functional as F

V, LENGTH, WIDTH, HIDDEN = len(LETTERS), 3, 10, 200
Tensors = dict[str, Tensor]


def parameters() -> Tensors:
    """Fresh ones, none of them 0, so that no mistake can hide behind a 0."""
    shapes = {"C": (V, WIDTH), "W1": (LENGTH * WIDTH, HIDDEN), "b1": (HIDDEN,), "scale": (1, HIDDEN)}
    shapes |= {"shift": (1, HIDDEN), "W2": (HIDDEN, V), "b2": (V,)}
    fresh = {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}
    return fresh | {"C": 10 * fresh["C"], "W1": 3 * fresh["W1"], "scale": 1 + fresh["scale"]}


def forward(p: Tensors, x: Tensor, y: Tensor) -> Tensors:
    """Every step from the letters (B, 3) and what follows (B,) to the loss, by name."""
    v: Tensors = {"points": p["C"][x]}  # (B, 3, 10)
    v["joined"] = v["points"].flatten(1)  # (B, 30)
    v["sums"] = v["joined"] @ p["W1"] + p["b1"]  # (B, H)
    v["mean"] = v["sums"].mean(dim=0, keepdim=True)  # (1, H)
    v["centred"] = v["sums"] - v["mean"]
    v["squares"] = v["centred"] ** 2
    v["variance"] = v["squares"].sum(dim=0, keepdim=True) / (len(x) - 1)  # (1, H)
    v["inverse"] = (v["variance"] + 1e-5) ** -0.5
    v["normal"] = v["centred"] * v["inverse"]
    v["scaled"] = p["scale"] * v["normal"] + p["shift"]
    v["hidden"] = v["scaled"].tanh()
    v["logits"] = v["hidden"] @ p["W2"] + p["b2"]  # (B, V)
    v["powers"] = v["logits"].exp()
    v["total"] = v["powers"].sum(dim=1, keepdim=True)  # (B, 1)
    v["share"] = v["total"] ** -1
    v["probabilities"] = v["powers"] * v["share"]
    v["logs"] = v["probabilities"].log()
    v["loss"] = -v["logs"][range(len(y)), y].mean()
    return v


def backward(p: Tensors, v: Tensors, x: Tensor, y: Tensor) -> Tensors:
    """The gradient of the loss in every step and every parameter, from the last to the first."""
    B, rows, d = len(x), range(len(y)), {}
    d["logs"] = torch.zeros_like(v["logs"])
    d["logs"][rows, y] = -1 / B
    d["probabilities"] = d["logs"] / v["probabilities"]
    d["share"] = (d["probabilities"] * v["powers"]).sum(dim=1, keepdim=True)  # was broadcast, so is summed
    d["total"] = -(v["total"] ** -2) * d["share"]
    d["powers"] = d["probabilities"] * v["share"] + d["total"]  # used twice, so added; summed, so broadcast
    d["logits"] = d["powers"] * v["powers"]
    d["W2"], d["b2"] = v["hidden"].T @ d["logits"], d["logits"].sum(dim=0)
    d["hidden"] = d["logits"] @ p["W2"].T
    d["scaled"] = (1 - v["hidden"] ** 2) * d["hidden"]
    d["scale"] = (d["scaled"] * v["normal"]).sum(dim=0, keepdim=True)
    d["shift"] = d["scaled"].sum(dim=0, keepdim=True)
    d["normal"] = d["scaled"] * p["scale"]
    d["inverse"] = (d["normal"] * v["centred"]).sum(dim=0, keepdim=True)
    d["variance"] = -0.5 * (v["variance"] + 1e-5) ** -1.5 * d["inverse"]
    d["squares"] = d["variance"].expand(B, HIDDEN) / (B - 1)
    d["centred"] = d["normal"] * v["inverse"] + 2 * v["centred"] * d["squares"]
    d["mean"] = -d["centred"].sum(dim=0, keepdim=True)
    d["sums"] = d["centred"] + d["mean"] / B
    return d | before_batch_norm(p, v, x, d["sums"])


def before_batch_norm(p: Tensors, v: Tensors, x: Tensor, dsums: Tensor) -> Tensors:
    """The gradients of what comes before BatchNorm: a matrix product, and a table that is looked up."""
    d = {"W1": v["joined"].T @ dsums, "b1": dsums.sum(dim=0), "joined": dsums @ p["W1"].T}
    d["points"] = d["joined"].view(v["points"].shape)
    d["C"] = torch.zeros_like(p["C"]).index_add(0, x.flatten(), d["points"].flatten(0, 1))  # each use adds
    return d


def backward_in_short(p: Tensors, v: Tensors, x: Tensor, y: Tensor) -> Tensors:
    """The same, with what softmax and BatchNorm come to on paper: parameters, logits and sums."""
    B = len(x)
    d = {"logits": (v["probabilities"] - F.one_hot(y, V)) / B}
    d["W2"], d["b2"] = v["hidden"].T @ d["logits"], d["logits"].sum(dim=0)
    dscaled = (1 - v["hidden"] ** 2) * (d["logits"] @ p["W2"].T)
    d["scale"] = (dscaled * v["normal"]).sum(dim=0, keepdim=True)
    d["shift"] = dscaled.sum(dim=0, keepdim=True)
    d["sums"] = dscaled - d["shift"] / B - v["normal"] * d["scale"] / (B - 1)
    d["sums"] = d["sums"] * p["scale"] * v["inverse"]
    return d | before_batch_norm(p, v, x, d["sums"])


def autograds(p: Tensors, v: Tensors) -> Tensors:
    """The gradient of the loss in every parameter and every step, from PyTorch."""
    tensors = p | {name: each for name, each in v.items() if name != "loss"}
    return dict(zip(tensors, torch.autograd.grad(v["loss"], list(tensors.values())), strict=True))


def apart(mine: Tensors, theirs: Tensors) -> dict[str, float]:
    """The largest difference of each gradient, as a share of the largest gradient of all in it."""
    return {
        name: ((each - theirs[name]).abs().max() / theirs[name].abs().max()).item()
        for name, each in mine.items()
    }


@torch.no_grad()
def learn(x: Tensor, y: Tensor, steps: int) -> tuple[Tensors, list[float]]:
    """AdamW with gradients by hand; the parameters, and the loss of each step."""
    p, losses = parameters(), []
    optimizer = torch.optim.AdamW(p.values(), betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1.0, 2 * (steps - step) / steps)
        some = torch.randint(len(x), (256,))
        v = forward(p, x[some], y[some])
        for name, gradient in backward_in_short(p, v, x[some], y[some]).items():
            if name in p:
                p[name].grad = gradient
        optimizer.step()
        losses.append(v["loss"].item())
    return p, losses


def loss_with_statistics_of(train: Tensor, p: Tensors, x: Tensor, y: Tensor) -> float:
    """The loss on names never seen, BatchNorm with the mean and the variance of the training names."""
    v = forward(p, train, torch.zeros(len(train), dtype=torch.long))
    normal = (p["C"][x].flatten(1) @ p["W1"] + p["b1"] - v["mean"]) * v["inverse"]
    return F.cross_entropy((p["scale"] * normal + p["shift"]).tanh() @ p["W2"] + p["b2"], y).item()


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. the gradient in the logit of the right letter, probability 0.2, one example": 0.2 - 1,
        "2. the sum of the gradients in the 27 logits of an example": 0,
        "3. the gradient in b1, BatchNorm behind it": 0,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Every gradient against autograd's, the two short forms, learning by hand; returns the figures."""
    torch.manual_seed(seed)
    data = names()
    (x, y), dev = windows(data.train, LENGTH), windows(data.dev, LENGTH)
    p = {name: each.requires_grad_() for name, each in parameters().items()}
    some = torch.randint(len(x), (32,))
    v = forward(p, x[some], y[some])
    theirs = autograds(p, v)
    differences = apart(backward(p, v, x[some], y[some]), theirs)
    short = apart(backward_in_short(p, v, x[some], y[some]), theirs)
    for name, difference in differences.items():
        print(f"    {name:<15}{'exactly' if difference == 0 else f'but for {difference:.0e} of the largest'}")
    print("b1's is 0 but for rounding: BatchNorm takes away whatever b1 adds.")
    learned, losses = learn(x, y, size(quick, 300, 8_000))
    figures = {
        "gradients by hand": len(differences),
        "exactly autograd's": sum(each == 0 for each in differences.values()),
        "logits in short, apart by": short["logits"],
        "BatchNorm in short, apart by": short["sums"],
        "parameters": sum(each.numel() for each in p.values()),
        "learned by hand, loss on dev": loss_with_statistics_of(x, learned, *dev),
    }
    beside(dict.fromkeys(figures) | {"parameters": 12297, "learned by hand, loss on dev": 2.1162}, figures)
    draw(differences, v, some, y, losses)
    return figures


def draw(differences: dict[str, float], v: Tensors, some: Tensor, y: Tensor, losses: list[float]) -> None:
    """How near each gradient is, the gradient in the logits, the loss by hand."""
    figure, (left, middle, right) = panels(3, 19, 6.4)
    left.barh(list(differences), [max(each, 1e-9) for each in differences.values()])
    left.set(xscale="log", xlim=(1e-9, 1e-4))
    left.tick_params(axis="y", labelsize=9)
    finish(left, title="how far from autograd", xlabel="relative difference; b1 is 0 but for rounding")
    gradient = (v["probabilities"] - F.one_hot(y[some], V)).detach()
    middle.imshow(gradient.numpy(), cmap="RdBu", vmin=-1, vmax=1)
    middle.set_xticks(range(V), LETTERS)
    middle.set(title="in the logits: p, less 1 where it is right", xlabel="letter", ylabel="example")
    curve(right, losses, "gradients by hand")
    finish(right, title="learned by hand", xlabel="share of the steps", ylabel="loss, nats a letter")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
