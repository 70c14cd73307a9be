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
from common import beside, changed, minimise, output_of, run, shakespeare, size, small_gpt, validation_loss
from drawing import arrows, finish, save, written_out
from matplotlib import pyplot
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

LENGTH = 32

# 1. How many nearly perpendicular vectors fit? A step looks at some of them, beside all.


def cosines(vectors: Tensor, some: Tensor) -> Tensor:
    """Of some vectors (M,) with all, (M, n), without their sign; 0 for each with itself."""
    unit = F.normalize(vectors, dim=1)
    return (unit[some] @ unit.T).abs().scatter(1, some[:, None], 0.0)


def popular(near: Tensor, progress: float) -> Tensor:
    """The experiment's: the sum of all. It has no slope where two vectors are parallel."""
    return (near - 0.01).relu().sum()


def worst_pair(near: Tensor, progress: float) -> Tensor:
    """A smooth maximum for each vector, sharper from step to step: what counts is the nearest other."""
    return torch.logsumexp(30 * 10**progress * near, dim=1).mean()


def spread(vectors: Tensor, loss: Callable, steps: int, rate: float) -> Tensor:
    """Vectors (n, d) after so many steps down a loss of the cosines of 500 of them, other ones each time."""
    vectors = vectors.clone().requires_grad_()

    def of_some(progress: float) -> Tensor:
        return loss(cosines(vectors, torch.randperm(len(vectors))[:500]), progress)

    minimise(of_some, Adam([vectors], lr=rate), steps)
    return vectors.detach()


def angles(vectors: Tensor) -> tuple[Tensor, float]:
    """Of all pairs the share at 0 to 1, 1 to 2 … 89 to 90 degrees, (90,), and the smallest angle."""
    counts, smallest = torch.zeros(90, dtype=torch.double), 90.0
    for some in torch.arange(len(vectors)).split(1000):
        seen = cosines(vectors, some).clamp(max=1).acos().rad2deg()
        counts += torch.histc(seen, 90, 0, 90)
        smallest = min(smallest, seen.min().item())
    counts[-1] -= len(vectors)  # each with itself
    return counts / counts.sum(), smallest


def welch(n: int, d: int) -> float:
    """The angle in degrees that the worst pair of n vectors in d dimensions cannot exceed (Welch's bound)."""
    return math.degrees(math.acos(math.sqrt((n - d) / (d * (n - 1)))))


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

    minimise(lambda progress: losses(512).sum(), Adam([W, b], lr=0.01), steps)
    return W[losses(5000).argmin()].detach()


# 3. A sparse autoencoder: many directions, of which each state is explained by few.


class SparseAutoencoder(nn.Module):
    """States (N, m) to codes (N, K), none negative, most of them 0; and back, as a sum of directions."""

    def __init__(self, m: int, K: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(F.normalize(torch.randn(K, m), dim=1))
        self.middle, self.encode = nn.Parameter(torch.zeros(m)), nn.Linear(m, K)
        self.encode.weight.data.copy_(self.directions)
        nn.init.zeros_(self.encode.bias)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The codes, and the states that they stand for."""
        codes = torch.relu(self.encode(states - self.middle))
        return codes, codes @ F.normalize(self.directions, dim=1) + self.middle


def explain(states: Callable[[], Tensor], K: int, price: float, steps: int) -> SparseAutoencoder:
    """Learn K directions for states that are drawn anew each step; a code costs `price` times its size."""
    model = SparseAutoencoder(states().shape[1], K)

    def loss(progress: float) -> Tensor:
        x = states()
        codes, again = model(x)
        return (again - x).square().sum(dim=1).mean() + price * codes.sum(dim=1).mean()

    minimise(loss, Adam(model.parameters(), lr=3e-3), steps)
    return model.requires_grad_(False)


def found(true: Tensor, directions: Tensor) -> Tensor:
    """Of each true direction (n, m) the cosine (n,) with the one of (K, m) that is nearest to it."""
    return (F.normalize(true, dim=1) @ F.normalize(directions, dim=1).T).amax(dim=1)


# 4. The same for a GPT of one's own: the residual stream between its two blocks.


def agreement(values: Tensor, read: str) -> float:
    """Values (N, K) of K units: of the 50 highest of a unit, the share after the same letter; the mean."""
    best = [Counter(read[place] for place in row) for row in values.topk(50, dim=0).indices.T.tolist()]
    return sum(letters.most_common(1)[0][1] for letters in best) / 50 / len(best)


def own_gpt(seed: int, quick: bool) -> tuple[dict[str, float], list[list[str]]]:
    """A GPT, its stream explained, channels beside directions; figures, and where some are highest."""
    text, count = shakespeare(), size(quick, 300, 3_000)
    model = small_gpt(text, size(quick, 60, 1_000, 3_000), seed, length=LENGTH)
    read = text.train[: count * LENGTH]
    states = output_of(model.blocks[0], model, read.view(count, LENGTH)).flatten(0, 1)
    middle = states.mean(dim=0)
    scale = (states - middle).norm(dim=1).mean()
    states = (states - middle) / scale  # (count · LENGTH, C)
    steps = size(quick, 100, 1_200, 4_000)
    sae = explain(lambda: states[torch.randint(len(states), (1024,))], 256, 0.1, steps)
    figures = {"GPT: validation loss": validation_loss(model, text, LENGTH)}
    with changed(model.blocks[0], lambda x: sae((x - middle) / scale)[1] * scale + middle):
        figures["GPT: the same through the autoencoder"] = validation_loss(model, text, LENGTH)
    codes = sae(states)[0]
    figures["GPT: codes that are not 0, of 256"] = (codes > 0).double().sum(dim=1).mean().item()
    read = text.tokenizer.decode(read.tolist())
    begun = torch.arange(len(states)) % LENGTH < 4  # too few letters before these
    for name, values in (("channels", torch.cat((states, -states), dim=1)), ("directions", codes)):
        values[begun] = -1.0
        figures[f"GPT, {name}: same last letter"] = agreement(values, read)
    highest = codes[:, codes.amax(dim=0).topk(200).indices[::20]].topk(6, dim=0).indices.T.tolist()
    return figures, [[read[place - 4 : place + 1] for place in places] for places in highest]


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    cosine = math.cos(math.radians(85))
    return {
        "1. degrees that the worst pair of 10,000 in 100 dimensions cannot exceed": welch(10_000, 100),
        "2. degrees between any two of three vectors in a plane, at best": welch(3, 2),
        "3. dimensions for a million random vectors within 5° of 90°": 4 * math.log(1e6) / cosine**2,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Crowd vectors, store features, find them again, in a toy model and in a GPT; returns the figures."""
    torch.manual_seed(seed)
    n, d = size(quick, 200, 1_000, 10_000), size(quick, 20, 50, 100)
    random = F.normalize(torch.randn(n, d), dim=1)
    apart = {
        "random": angles(random),
        "popular": angles(spread(random, popular, size(quick, 100, 250, 400), rate=0.03)),
        "worst pair": angles(spread(random, worst_pair, size(quick, 150, 400, 1_200), rate=0.01)),
    }
    figures = {
        f"{name}: share of the angles within 89° to 91°": s[-1].item() for name, (s, _) in apart.items()
    }
    figures |= {f"{name}: angle of the worst pair": worst for name, (_, worst) in apart.items()}
    figures["the worst pair's angle is at most"] = welch(n, d)

    plane = {density: toy(5, 2, density, 0.9, size(quick, 400, 1_500)) for density in (1.0, 0.1)}
    for density, W in plane.items():
        figures[f"features of 5 that a plane stores, {density:.0%} on"] = (W.norm(dim=1) > 0.5).sum().item()
    W = toy(40, 16, 0.03, 1.0, size(quick, 500, 3_000))
    sae = explain(lambda: features(512, 40, 0.03) @ W, 80, 0.2, size(quick, 600, 2_000))
    axes = torch.linalg.svd(features(5000, 40, 0.03) @ W, full_matrices=False).Vh
    tried = {"principal axes": torch.cat((axes, -axes)), "autoencoder": sae.directions}
    again = {name: found(W, directions) for name, directions in tried.items()}
    for name, each in again.items():
        figures[f"40 features in 16 dimensions, cosine: {name}"] = each.mean().item()

    own, highest = own_gpt(seed, quick)
    figures |= own
    print(f"{n:,} vectors in {d} dimensions")
    originals = {"worst pair: angle of the worst pair": 76.5} if n == 10_000 else {}  # what Yoder reached
    beside(dict.fromkeys(figures) | originals, figures)
    draw(apart, welch(n, d), plane, again, highest)
    return figures


def draw(apart: dict, limit: float, plane: dict, again: dict, highest: list[list[str]]) -> None:
    """The angles, five features in a plane, how well 40 were found, and some directions of the GPT."""
    figure, axes = pyplot.subplot_mosaic("AABC;DDEE", figsize=(17, 11), layout="constrained")
    for name, (shares, worst) in apart.items():
        axes["A"].step(torch.arange(90) + 0.5, shares, where="mid", label=f"{name}: worst {worst:.0f}°")
    axes["A"].axvline(limit, color="grey", linestyle=":", label=f"no worst pair is above {limit:.0f}°")
    axes["A"].set(yscale="log", ylim=(2e-6, 20), xlim=(0, 90))
    finish(axes["A"], title="nearly all at 90°, the rest at 0°", xlabel="angle", ylabel="share of the pairs")
    for letter, (density, W) in zip("BC", plane.items(), strict=True):
        arrows(axes[letter], W, f"5 features, {density:.0%} on")
    for name, cosine in again.items():
        axes["D"].plot(cosine.sort(descending=True).values, "o-", label=name)
    axes["D"].set_ylim(0, 1.05)
    finish(axes["D"], title="40 features in 16 dimensions, found again", xlabel="feature", ylabel="cosine")
    lines = ["   ".join(places) for places in highest]
    written_out(axes["E"], "own GPT: where a direction is highest, a line each", lines)
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
