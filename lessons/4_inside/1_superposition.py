"""Lesson 4.1. Superposition: more directions than dimensions, and a network that finds them again.

In d dimensions d vectors can be perpendicular. If nearly perpendicular is enough, more fit, and how many more
is often told wrongly: a popular experiment puts 10,000 vectors into 100 dimensions, sees nearly all angles
between 89° and 91°, and does not see the rest, which are nearly 0°. Networks use the room that there is: a
feature that is seldom on may share dimensions with others, since they will seldom be on together. A sparse
autoencoder, which explains each state by a few of many directions, finds them again.

    python lessons/4_inside/1_superposition.py        (LESSONS=full: 10,000 vectors in 100 dimensions)

Nearly perpendicular vectors: Johnson and Lindenstrauss (1984), Welch (1974); the experiment: 3Blue1Brown,
"How might LLMs store facts" (2024); its correction: Yoder, "Beyond orthogonality" (2025). Toy models: Elhage
et al. (2022). Sparse autoencoders: Bricken et al., Cunningham et al. (2023).
"""

import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import (
    Text,
    beside,
    changed,
    minimise,
    output_of,
    run,
    shakespeare,
    size,
    small_gpt,
    stretches,
    validation_loss,
)
from drawing import finish, save, written_out
from matplotlib import pyplot
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH = 32

# 1. How many nearly perpendicular vectors fit?


def popular(vectors: Tensor, progress: float) -> Tensor:
    """The experiment's: the sum of all dot products. It has no slope where two vectors are parallel."""
    off = vectors @ vectors.T - torch.eye(len(vectors))
    return (off.abs() - 0.01).relu().sum() + len(vectors) * off.diagonal().square().sum()


def worst_pair(vectors: Tensor, progress: float) -> Tensor:
    """A smooth maximum of the cosines, sharper from step to step: what counts is the worst pair."""
    unit = F.normalize(vectors, dim=1)
    cosines = (unit @ unit.T).abs().fill_diagonal_(0.0)
    sharpness = 10 * 10**progress / cosines.max().item()
    return torch.logsumexp(sharpness * cosines.flatten(), dim=0)


def angles_of(vectors: Tensor) -> Tensor:
    """The angles in degrees of all pairs, from 0 to 180."""
    unit = F.normalize(vectors.detach(), dim=1)
    cosines = (unit @ unit.T)[~torch.eye(len(unit)).bool()]
    return cosines.clamp(-1, 1).acos().rad2deg()


def welch(n: int, d: int) -> float:
    """The angle in degrees that the worst pair of n vectors in d dimensions cannot exceed (Welch's bound)."""
    return math.degrees(math.acos(math.sqrt((n - d) / (d * (n - 1)))))


def crowd(n: int, d: int, steps: dict[str, int]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """n vectors in d dimensions at random, by the popular loss, by the worst pair's: figures and angles."""
    figures, seen = {}, {}
    for name, loss in (("random", None), ("popular", popular), ("worst pair", worst_pair)):
        vectors = F.normalize(torch.randn(n, d), dim=1).requires_grad_()
        if loss is not None:
            minimise(lambda progress, v=vectors, of=loss: of(v, progress), [vectors], steps[name], rate=0.01)
        angles = seen[name] = angles_of(vectors)
        near = ((angles - 90).abs() < 1).double().mean().item()
        figures[f"{name}: share of the angles within 89° to 91°"] = near
        figures[f"{name}: angle of the worst pair"] = torch.minimum(angles, 180 - angles).min().item()
    return figures | {"the worst pair's angle is at most": welch(n, d)}, seen


# 2. A toy model: n features go through m dimensions and come out again.


def features(count: int, n: int, density: float) -> Tensor:
    """Examples (count, n): each feature is on with this probability, as strongly as chance will have it."""
    return torch.rand(count, n) * (torch.rand(count, n) < density)


def toy(n: int, m: int, density: float, fading: float, steps: int) -> Tensor:
    """The directions (n, m) that a model relu(x W Wᵀ + b) learns for n features, the best of 8 starts.

    Each feature is needed `fading` times as much as the one before it.
    """
    W, b = nn.Parameter(torch.randn(8, n, m) / math.sqrt(m)), nn.Parameter(torch.zeros(8, 1, n))
    needed = fading ** torch.arange(n)

    def losses(count: int) -> Tensor:
        x = features(count, n, density)
        again = torch.relu(x @ W @ W.transpose(1, 2) + b)  # (8, count, n)
        return (needed * (again - x).square()).sum(dim=2).mean(dim=1)

    minimise(lambda progress: losses(512).sum(), [W, b], steps, rate=0.01)
    return W[losses(5000).argmin()].detach()


# 3. A sparse autoencoder: many directions, of which each state is explained by few.


class SparseAutoencoder(nn.Module):
    """States (N, m) to codes (N, K), most of them 0, and back."""

    def __init__(self, m: int, K: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(F.normalize(torch.randn(K, m), dim=1))
        self.encode = nn.Linear(m, K)
        self.encode.weight.data.copy_(self.directions)
        nn.init.zeros_(self.encode.bias)
        self.bias = nn.Parameter(torch.zeros(m))

    def codes(self, states: Tensor) -> Tensor:
        """How much of each direction there is; none is negative."""
        return torch.relu(self.encode(states - self.bias))

    def decode(self, codes: Tensor) -> Tensor:
        """The sum of the directions, each of length 1, times the codes."""
        return codes @ F.normalize(self.directions, dim=1) + self.bias


def explain(states: Callable[[], Tensor], K: int, price: float, steps: int) -> SparseAutoencoder:
    """Learn K directions for states that are drawn anew each step; a code costs `price` times its size."""
    model = SparseAutoencoder(states().shape[1], K)

    def loss(progress: float) -> Tensor:
        x = states()
        codes = model.codes(x)
        return (model.decode(codes) - x).square().sum(dim=1).mean() + price * codes.sum(dim=1).mean()

    minimise(loss, model.parameters(), steps, rate=3e-3)
    return model


def found(true: Tensor, directions: Tensor) -> float:
    """The mean cosine of each true direction and the one nearest to it."""
    cosines = F.normalize(true, dim=1) @ F.normalize(directions, dim=1).T
    return cosines.amax(dim=1).mean().item()


# 4. The same for a GPT of one's own: the residual stream between its two blocks.


def agreement(values: Tensor, read: str, letters: int) -> float:
    """Values (N, K) of K units: of the 50 highest of a unit, the share after the same letters; the mean."""
    shares = []
    for places in values.topk(50, dim=0).indices.T.tolist():
        last = Counter(read[place + 1 - letters : place + 1] for place in places)
        shares.append(last.most_common(1)[0][1] / len(places))
    return sum(shares) / len(shares)


def own_gpt(text: Text, seed: int, quick: bool) -> tuple[dict[str, float], list[list[str]]]:
    """A GPT, its stream explained, channels beside directions; figures, and where some are highest."""
    model = small_gpt(text, size(quick, 60, 1_000, 3_000), seed, length=LENGTH)
    ids = stretches(text.train, size(quick, 300, 3_000), LENGTH)[0]
    states = output_of(model.blocks[0], model, ids).flatten(0, 1)  # (B · T, C)
    middle = states.mean(dim=0)
    scale = (states - middle).norm(dim=1).mean()
    states = (states - middle) / scale
    steps = size(quick, 100, 1_200, 4_000)
    sae = explain(lambda: states[torch.randint(len(states), (1024,))], 256, 0.1, steps)
    figures = {"GPT: validation loss": validation_loss(model, text, LENGTH)}
    with changed(model.blocks[0], lambda x: sae.decode(sae.codes((x - middle) / scale)) * scale + middle):
        figures["GPT: the same through the autoencoder"] = validation_loss(model, text, LENGTH)
    with torch.no_grad():
        codes = sae.codes(states)
    figures["GPT: codes that are not 0, of 256"] = (codes > 0).double().sum(dim=1).mean().item()
    read = text.tokenizer.decode(ids.flatten().tolist())
    begun = torch.arange(len(states)) % LENGTH < 4  # too few letters before these
    for name, values in (("channels", torch.cat((states, -states), dim=1)), ("directions", codes)):
        values[begun] = -1.0
        for letters in (1, 2):
            same = "last letter" if letters == 1 else "last two letters"
            figures[f"GPT, {name}: same {same}"] = agreement(values, read, letters)
    highest = codes[:, codes.amax(dim=0).topk(200).indices[::20]].topk(6, dim=0).indices.T.tolist()
    return figures, [[read[place - 4 : place + 1] for place in places] for places in highest]


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. degrees that the worst pair of 10,000 vectors in 100 dimensions cannot exceed": welch(
            10_000, 100
        ),
        "2. degrees between any two of three vectors in a plane, at best": welch(3, 2),
        "3. dimensions, at 4 ln(n) / cos², for a million random vectors within 5° of 90°": 4
        * math.log(1e6)
        / math.cos(math.radians(85)) ** 2,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Crowd vectors, store features, find them again, in a toy model and in a GPT; returns the figures."""
    torch.manual_seed(seed)
    n, d = size(quick, 200, 1_000, 10_000), size(quick, 20, 50, 100)
    print(f"{n:,} vectors in {d} dimensions")
    steps = {"popular": size(quick, 150, 250), "worst pair": size(quick, 150, 250, 100)}
    figures, angles = crowd(n, d, steps)

    plane = {density: toy(5, 2, density, 0.9, size(quick, 400, 1_500)) for density in (1.0, 0.1)}
    for density, W in plane.items():
        figures[f"features of 5 that a plane stores, {density:.0%} on"] = (W.norm(dim=1) > 0.5).sum().item()
    W = toy(40, 16, 0.03, 1.0, size(quick, 500, 3_000))
    sae = explain(lambda: features(512, 40, 0.03) @ W, 80, 0.2, size(quick, 600, 2_000))
    axes_of_most = torch.linalg.svd(features(5000, 40, 0.03) @ W, full_matrices=False).Vh
    figures["40 features in 16 dimensions, cosine: principal axes"] = found(
        W, torch.cat((axes_of_most, -axes_of_most))
    )
    figures["40 features in 16 dimensions, cosine: autoencoder"] = found(W, sae.directions.detach())

    own, highest = own_gpt(shakespeare(), seed, quick)
    figures |= own
    originals = {"worst pair: angle of the worst pair": 76.5}  # that others reached
    beside(dict.fromkeys(figures) | (originals if n == 10_000 else {}), figures)
    for places in highest:
        print("    a direction is highest after", *map(repr, places))
    draw(angles, figures, plane, W, sae.directions.detach(), highest)
    return figures


def draw(
    angles: dict[str, Tensor],
    figures: dict[str, float],
    plane: dict[float, Tensor],
    W: Tensor,
    directions: Tensor,
    highest: list[list[str]],
) -> None:
    """The angles, five features in a plane, the directions that were found, and some of the GPT's."""
    figure, axes = pyplot.subplot_mosaic("AABC;DDEE", figsize=(17, 11), layout="constrained")
    for name, seen in angles.items():
        label = f"{name}: worst {figures[f'{name}: angle of the worst pair']:.0f}°"
        counts = torch.histc(seen, 180, 0, 180) / len(seen)
        axes["A"].step(torch.arange(180) + 0.5, counts, where="mid", label=label)
    limit = figures["the worst pair's angle is at most"]
    axes["A"].axvline(limit, color="grey", linestyle=":", label=f"no worst pair is above {limit:.0f}°")
    axes["A"].set(yscale="log", ylim=(2e-6, 20), xlim=(0, 180))
    finish(
        axes["A"], title="nearly all at 90°, and the rest at 0°", xlabel="angle", ylabel="share of the pairs"
    )
    for letter, (density, W2) in zip("BC", plane.items(), strict=True):
        for x, y in W2.tolist():
            axes[letter].annotate(
                "", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "C0", "lw": 2}
            )
        axes[letter].set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
        finish(axes[letter], title=f"5 features, {density:.0%} on")
    cosines = F.normalize(W, dim=1) @ F.normalize(directions, dim=1).T
    best = cosines.argmax(dim=1)
    image = axes["D"].imshow(cosines[:, best].numpy(), cmap="RdBu", vmin=-1, vmax=1)
    axes["D"].set(title="40 features, and what was found of them", xlabel="direction found", ylabel="feature")
    figure.colorbar(image, ax=axes["D"], label="cosine", shrink=0.8)
    lines = ["   ".join(places) for places in highest]
    written_out(axes["E"], "own GPT: where a direction is highest, a line each", lines)
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
