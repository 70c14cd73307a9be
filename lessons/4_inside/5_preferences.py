"""Lesson 4.5. Preferences: a reward learned from rankings, and a policy that pleases it too long.

What people want can seldom be written down, but of two answers they can say which is better. A reward model
learns from such rankings; then the language model is trained to please the reward model. For a while that
pleases people too. Later it finds what the reward model, which never saw such things, thinks wonderful, and
people do not: its reward rises and theirs falls. A price for going far from where one began holds it back.
Here the answers are names, and the person is a formula, so that it can be asked at every step.

    python lessons/4_inside/5_preferences.py

Rankings: Bradley and Terry (1952). A reward, then a policy with a price for the divergence: Christiano et al.
(2017), Stiennon et al. (2020), Ouyang et al. (2022). Too long: Gao et al., "Scaling laws for reward model
overoptimization" (2022). The assistant's real stages: docs/assistant.md.
"""

import copy
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import LETTERS, beside, descend, fit, fresh_gpt, names, run, size
from drawing import finish, panels, save, written_out
from torch import Tensor, nn
from torch.nn import functional as F

from model import GPT

LENGTH = 14  # of the longest name and its end
VOWELS = "aeiouy"
PRICE = 0.2  # of a nat of divergence, in deviations of the reward


def rows(words: list[str]) -> Tensor:
    """Ids (N, LENGTH + 1): "." begins a name and ends it, and fills the rest."""
    filled = [f".{word[: LENGTH - 1]}".ljust(LENGTH + 1, ".") for word in words]
    return torch.tensor([[LETTERS.index(letter) for letter in word] for word in filled])


def words(ids: Tensor) -> list[str]:
    """The names of rows."""
    return ["".join(LETTERS[i] for i in row).strip(".") for row in ids.tolist()]


def targets(ids: Tensor) -> Tensor:
    """What is to be said at each position (N, LENGTH): a name's letters and its end; the rest is left out."""
    after = ids[:, 1:]
    return after.masked_fill((after == 0).cumsum(dim=1) > 1, -100)


def log_probability(model: GPT, ids: Tensor) -> Tensor:
    """Of each name (N,), in nats."""
    logits = model(ids[:, :-1]).transpose(1, 2)
    return -F.cross_entropy(logits, targets(ids), reduction="none").sum(dim=1)


@torch.no_grad()
def drawn(model: GPT, count: int) -> Tensor:
    """Names drawn from the model, as rows; one that does not end is cut."""
    ids = torch.zeros(count, 1, dtype=torch.long)
    for _ in range(LENGTH - 1):
        following = model(ids)[:, -1].softmax(dim=-1).multinomial(1)
        ended = (ids[:, 1:] == 0).any(dim=1, keepdim=True)
        ids = torch.cat((ids, following.masked_fill(ended, 0)), dim=1)
    return F.pad(ids, (0, 1))


# 1. What the person likes, and can say only by comparing: eight letters, half of them vowels, few twice.


def liking(ids: Tensor) -> Tensor:
    """How much the person likes each name (N,). The reward model never sees this."""
    likes = []
    for word in words(ids):
        vowels = sum(letter in VOWELS for letter in word) / max(1, len(word))
        twice = len(word) - len(set(word))
        likes.append(-0.5 * abs(len(word) - 8) - 8 * abs(vowels - 0.5) - 0.5 * twice)
    return torch.tensor(likes)


def ranked(model: GPT, count: int) -> tuple[Tensor, Tensor]:
    """Pairs of names: those that the person preferred, and the others. People err (Bradley and Terry)."""
    one, other = drawn(model, count), drawn(model, count)
    prefers = torch.rand(count) < torch.sigmoid(liking(one) - liking(other))
    return torch.where(prefers[:, None], one, other), torch.where(prefers[:, None], other, one)


# 2. The reward model: the language model's own body, and one number at the end of a name.


class RewardModel(nn.Module):
    """Names, as rows, to a number each, how good they are."""

    def __init__(self, base: GPT) -> None:
        super().__init__()
        self.body, self.out = copy.deepcopy(base), nn.Linear(base.config.n_embd, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, LENGTH + 1) to (N,)."""
        last = (ids != 0).sum(dim=1)  # a name's last letter
        return self.out(self.body.features(ids[:, :-1]))[torch.arange(len(ids)), last, 0]


def learn_reward(base: GPT, better: Tensor, worse: Tensor, steps: int) -> RewardModel:
    """The loss is -log σ(reward of the better - reward of the worse)."""
    model = RewardModel(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        some = torch.randint(len(better), (64,))
        descend(optimizer, -F.logsigmoid(model(better[some]) - model(worse[some])).mean())
    return model.requires_grad_(False)


# 3. The policy: draw names, have them judged, make those likelier that are better than the mean.


def please(reward: RewardModel, base: GPT, price: float, steps: int) -> dict[str, list]:
    """Policy gradient on the reward, less the price for each nat of divergence from the base.

    What was seen at each step: the reward, in the base's deviations above its mean; the person's liking; the
    divergence, in nats a name; and three names.
    """
    policy, seen = copy.deepcopy(base), {"reward": [], "liking": [], "divergence": [], "names": []}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=6e-4)
    usual = reward(drawn(base, 2000))
    for _ in range(steps):
        ids = drawn(policy, 128)
        score, likely = (reward(ids) - usual.mean()) / usual.std(), log_probability(policy, ids)
        with torch.no_grad():
            divergence = likely - log_probability(base, ids)
        worth = score - price * divergence
        descend(optimizer, -((worth - worth.mean()) * likely).mean(), clip=1.0)
        for name, value in (("reward", score), ("liking", liking(ids)), ("divergence", divergence)):
            seen[name].append(value.mean().item())
        seen["names"].append(words(ids[:3]))
    return seen


def smooth(values: list[float], length: int = 10) -> Tensor:
    """The means of as many steps."""
    return torch.tensor(values).unfold(0, length, 1).mean(dim=1)


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. how often the better wins, their rewards 2 apart": torch.tensor(2.0).sigmoid().item(),
        "2. the loss of a reward model that knows nothing": math.log(2),
        "3. by what a reward 1 higher multiplies a name's odds, price 0.5": math.exp(1 / 0.5),
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Learn names, learn a reward, please it with and without a price; returns the figures."""
    torch.manual_seed(seed)
    known = rows(names().train)
    base = fresh_gpt(seed, len(LETTERS), LENGTH, n_layer=2, n_head=2, n_embd=32, bias=True)
    fit(base, known[:, :-1], targets(known), size(quick, 150, 500), batch=128)
    reward = learn_reward(base, *ranked(base, 3000), size(quick, 60, 200))
    one, other = drawn(base, size(quick, 500, 2000)), drawn(base, size(quick, 500, 2000))
    agrees = (reward(one) > reward(other)) == (liking(one) > liking(other))
    steps = size(quick, 30, 220)
    far, held = please(reward, base, 0.0, steps), please(reward, base, PRICE, steps)

    likes = smooth(far["liking"])
    best = int(likes.argmax())
    figures = {"pairs ranked as the person would": agrees.double().mean().item()}
    figures |= {"liking at first": liking(one).mean().item(), "liking at best": likes[best].item()}
    for what in ("liking", "reward", "divergence"):
        figures[f"{what} in the end"] = smooth(far[what])[-1].item()
        figures[f"{what} in the end, with a price"] = smooth(held[what])[-1].item()
    beside(dict.fromkeys(figures), figures)
    told = {"at first": far["names"][0], "at best": far["names"][best], "too long": far["names"][-1]}
    told["with a price"] = held["names"][-1]
    for name, some in told.items():
        print(f"    {name:<14}{', '.join(some)}")
    draw(far, held, figures, told)
    return figures


def draw(far: dict, held: dict, figures: dict[str, float], told: dict[str, list[str]]) -> None:
    """Both judges over the steps, and the person's liking over the divergence."""
    figure, (left, middle, right) = panels(3, 18, 5.6, width_ratios=(1, 1, 0.8))
    left.plot(smooth(far["reward"]), "C1", label="the reward model's")
    left.plot(smooth(far["liking"]) - figures["liking at first"], "C0", label="the person's, nobody asks it")
    left.axhline(0, color="grey", linestyle=":")
    finish(left, title="two judges", xlabel="step", ylabel="better than at first by")
    for course, color, label in ((far, "C0", "without a price"), (held, "C2", f"{PRICE} for a nat")):
        distance, likes = smooth(course["divergence"]).clamp(min=0).sqrt(), smooth(course["liking"])
        middle.plot(distance, likes, color, label=label)
        middle.plot(distance[-1], likes[-1], "o", color=color, markersize=9)
    finish(middle, title="too far", xlabel="√ divergence from the base", ylabel="the person's liking")
    lines = []
    for name, some in told.items():
        lines += [f"{name:<14}{some[0]}", *(f"{'':<14}{another}" for another in some[1:]), ""]
    written_out(right, "what it calls a name", lines)
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
