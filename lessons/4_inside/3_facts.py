"""Lesson 4.3. Facts in an MLP: attention fetches the names, the MLP knows the answer, and can be rewritten.

A small GPT learns facts that were drawn by lot: where 200 people live, and what they do. A person is a first
name and a last one, and neither alone tells anything, so a fact has to be looked up by both. Where? Take the
output of a part away and see what is forgotten (ablate); put in what the part says of another person and see
whose answer comes (patch). Then the same for single neurons of the MLP; and with one added matrix of rank 1 a
fact is changed for good, and the others are left.

    python lessons/4_inside/3_facts.py

After Geva et al., "Transformer feed-forward layers are key-value memories" (2021), and Meng et al., "Locating
and editing factual associations in GPT" (2022).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import changed, fit, output_of, run, size
from drawing import finish, panels, save
from torch import Tensor
from torch.nn import functional as F

from model import GPT, GPTConfig

NAMES, ANSWERS = 20, 20  # first names, last names; places, and as many trades
PLACE, TRADE = 2 * NAMES, 2 * NAMES + 1  # "lives in", "works as"
VOCABULARY = TRADE + 1 + 2 * ANSWERS


@dataclass(frozen=True)
class Facts:
    """Questions (N, 3), a first name, a last name and a relation each; and their answers (N,)."""

    questions: Tensor
    answers: Tensor


def drawn_facts(people: int) -> Facts:
    """Two facts of each: no two people have the same two names, and the answers follow from nothing."""
    pairs = torch.cartesian_prod(torch.arange(NAMES), NAMES + torch.arange(NAMES))
    who = pairs[torch.randperm(len(pairs))[:people]].repeat(2, 1)  # (N, 2)
    relation = torch.tensor([PLACE, TRADE]).repeat_interleave(people)
    answers = TRADE + 1 + (relation - PLACE) * ANSWERS + torch.randint(ANSWERS, (2 * people,))
    return Facts(torch.cat((who, relation[:, None]), dim=1), answers)


def learned(facts: Facts, blocks: int, steps: int, seed: int) -> GPT:
    """A GPT that knows them by heart; the loss is that of the answer alone."""
    model = GPT(GPTConfig(VOCABULARY, block_size=3, n_layer=blocks, n_head=4, n_embd=64, bias=True))
    model.init_weights(seed)
    targets = torch.full_like(facts.questions, -100)
    targets[:, -1] = facts.answers
    fit(model, facts.questions, targets, steps, batch=128, rate=3e-3)
    return model.eval()


@torch.no_grad()
def says(model: GPT, facts: Facts) -> Tensor:
    """Its answers (N,)."""
    return model(facts.questions)[:, -1].argmax(dim=1)


def share(right: Tensor) -> float:
    """How many are."""
    return right.double().mean().item()


def ablate_and_patch(model: GPT, facts: Facts) -> dict[str, tuple[float, float]]:
    """For each part: the share of facts known without it; of those that patching turns into another's."""
    people = torch.randperm(len(facts.answers) // 2)
    other = torch.cat((people, people + len(people)))  # the same question about somebody else
    differ = facts.answers != facts.answers[other]
    found = {}
    for number, block in enumerate(model.blocks, 1):
        for name, part in ((f"attention {number}", block.attention), (f"MLP {number}", block.mlp)):
            usual = output_of(part, model, facts.questions)
            with changed(part, lambda output: output.mean(dim=0, keepdim=True).expand_as(output)):
                without = share(says(model, facts) == facts.answers)
            with changed(part, lambda output, usual=usual: usual[other]):
                patched = share((says(model, facts) == facts.answers[other])[differ])
            found[name] = (without, patched)
    return found


# The MLP's hidden neurons at the last position, where the answer is given.


def neurons(model: GPT, facts: Facts) -> Tensor:
    """What they say, (N, 3, 4C)."""
    mlp = model.blocks[0].mlp
    return mlp.activation(output_of(mlp.up, model, facts.questions))


@contextmanager
def saying(model: GPT, hidden: Tensor) -> Iterator[None]:
    """Within it, they say this instead."""
    hook = model.blocks[0].mlp.down.register_forward_pre_hook(lambda part, inputs: (hidden,))
    try:
        yield
    finally:
        hook.remove()


def worth(model: GPT, facts: Facts) -> Tensor:
    """What each neuron adds to the right logit (N, 4C): its value, less its mean, times the logit's slope."""
    hidden = neurons(model, facts).requires_grad_()
    with saying(model, hidden):
        right = model(facts.questions)[:, -1].gather(1, facts.answers[:, None]).sum()
    (slope,) = torch.autograd.grad(right, hidden)
    return ((hidden - hidden.mean(dim=0)) * slope)[:, -1].detach()


def known_without(model: GPT, facts: Facts, silent: Tensor) -> float:
    """The share of facts known when, for fact i, the neurons (N, k) in row i say what they say on average."""
    hidden = neurons(model, facts)
    mean = hidden[:, -1].mean(dim=0).expand(len(hidden), -1)
    hidden[:, -1] = hidden[:, -1].scatter(1, silent, mean.gather(1, silent))
    with saying(model, hidden):
        return share(says(model, facts) == facts.answers)


@torch.no_grad()
def rewrite(model: GPT, facts: Facts, which: int, new: int) -> tuple[bool, float]:
    """Change one fact by a matrix of rank 1 added to `down`; whether that worked, and the others kept.

    With the key k, the hidden neurons for this fact, and K those of all facts, the added d uᵀ / (uᵀ k), where
    u = (Kᵀ K / N)⁻¹ k, adds d to what the MLP says of k, and as little as possible to what it says of others.
    """
    down = model.blocks[0].mlp.down
    K = neurons(model, facts)[:, -1].double()
    before = down.weight.clone()
    spread = K.T @ K / len(K)
    u = torch.linalg.solve(spread + 1e-3 * spread.diagonal().mean() * torch.eye(len(spread)), K[which])
    towards = F.normalize(model.head.weight[new] - model.head.weight[facts.answers[which]], dim=0).double()
    for strength in (1, 2, 4, 8, 16, 32):
        down.weight.copy_(before + strength * torch.outer(towards, u) / (u @ K[which]))
        now = says(model, facts)
        if now[which] == new:
            break
    down.weight.copy_(before)
    others = torch.arange(len(now)) != which
    return bool(now[which] == new), share((now == facts.answers)[others])


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. bits that 400 facts of 20 possible answers hold": 400 * torch.tensor(20.0).log2().item(),
        "2. share right by guessing": 1 / ANSWERS,
        "3. numbers that say which matrix of rank 1 is added to `down`, 256 in, 64 out": 256 + 64,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Learn facts, ablate and patch parts, silence neurons, rewrite facts; returns the figures."""
    torch.manual_seed(seed)
    facts = drawn_facts(100 if quick else 200)
    models = {blocks: learned(facts, blocks, size(quick, 300, 1_000), seed) for blocks in (1, 2)}
    parts = {blocks: ablate_and_patch(model, facts) for blocks, model in models.items()}
    figures = {}
    for blocks, found in parts.items():
        figures[f"{blocks} blocks: facts known"] = share(says(models[blocks], facts) == facts.answers)
        for part, (without, patched) in found.items():
            figures[f"{blocks} blocks: without {part}"] = without
            figures[f"{blocks} blocks: {part} of another, the other's answer"] = patched

    model = models[1]
    ranked = worth(model, facts).argsort(dim=1, descending=True)
    strangers = ranked[torch.randperm(len(ranked))]
    chance = torch.rand_like(ranked, dtype=torch.double).argsort(dim=1)
    counts = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]
    kept = {
        name: [known_without(model, facts, rows[:, :count]) for count in counts]
        for name, rows in (("the fact's own", ranked), ("another fact's", strangers), ("any", chance))
    }
    figures |= {f"32 neurons of 256 silent, {name}": line[counts.index(32)] for name, line in kept.items()}

    tried = torch.randperm(len(facts.answers))[: size(quick, 10, 40)].tolist()
    first = TRADE + 1 + (facts.questions[:, -1] - PLACE) * ANSWERS
    new = first + (facts.answers - first + 1 + torch.randint(ANSWERS - 1, first.shape)) % ANSWERS
    edits = [rewrite(model, facts, which, int(new[which])) for which in tried]
    figures["facts rewritten, of those tried"] = sum(worked for worked, _ in edits) / len(edits)
    figures["other facts kept by it"] = sum(others for _, others in edits) / len(edits)
    for name, value in figures.items():
        print(f"{name:<60}{value:>8.1%}")
    draw(parts, counts, kept)
    return figures


def draw(parts: dict[int, dict], counts: list[int], kept: dict[str, list[float]]) -> None:
    """What ablating and patching each part does, with one block and two; and what silent neurons do."""
    figure, (one, two, right) = panels(3, 17, 5.2, width_ratios=(2, 3.4, 3.6))
    words = ("ablated: facts still known", "patched: the other's answer")
    for axes, (blocks, found) in zip((one, two), parts.items(), strict=True):
        for heights, offset, label in zip(zip(*found.values(), strict=True), (-0.2, 0.2), words, strict=True):
            places = [place + offset for place in range(len(found))]
            axes.bar_label(axes.bar(places, [100 * each for each in heights], 0.38, label=label), fmt="%.0f")
        axes.set_xticks(range(len(found)), [name.replace(" ", "\n") for name in found])
        axes.set(ylim=(0, 135 if blocks == 1 else 110))
        finish(axes, title=f"{blocks} block{'s' * (blocks > 1)}", ylabel="% of the facts")
    for name, line in kept.items():
        right.plot(counts, [100 * each for each in line], "o-", label=f"silent: {name}")
    right.set_xscale("symlog", base=2, linthresh=1)
    right.set_xticks(counts, [str(count) for count in counts])
    finish(right, title="one block: neurons", xlabel="silent, of 256", ylabel="% of the facts still known")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
