"""Lesson 3.9. From text completer to assistant: answer when asked, then answer right.

A language model completes text; asked a question, it goes on as its training text would. Supervised tuning
shows it a few hundred questions with answers, and the loss counts on the answers alone. It learns the manner
from them; what it knows it has from before. A reward step then draws answers, checks them, and makes the
right ones likelier. The text that it first learns from is the world's arithmetic: a third is wrong.

    python lessons/3_gpt/9_assistant.py

Tuning on demonstrations, then a reward: Ouyang et al. (2022). Policy gradient: Williams (1992); the mean of a
group of answers as the baseline: Shao et al. (2024).
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import descend, run, stretches
from drawing import finish, panels, save
from torch import Tensor
from torch.nn import functional as F

from engine import kernels
from engine.generation import stream
from model import GPT, GPTConfig

CHARACTERS = "\n 0123456789+=Q?A:"
LENGTH, LARGEST, IGNORED = 24, 12, -100  # -100: a target that is left out of the loss
Pairs = list[tuple[int, int]]  # what to add up


def encode(text: str) -> list[int]:
    """Characters to ids."""
    return [CHARACTERS.index(character) for character in text]


def question(a: int, b: int) -> str:
    """A question in a form that the model has never seen."""
    return f"Q: {a}+{b}?\nA: {a}+{b}="


def answered(pairs: Pairs, answers: list[str]) -> tuple[Tensor, Tensor]:
    """Questions with answers; targets within the question are IGNORED. Inputs and targets (B, LENGTH)."""
    inputs = torch.zeros(len(pairs), LENGTH, dtype=torch.long)
    targets = torch.full((len(pairs), LENGTH), IGNORED)
    for row, (pair, text) in enumerate(zip(pairs, answers, strict=True)):
        asked, whole = len(question(*pair)), torch.tensor(encode(question(*pair) + text + "\n"))
        inputs[row, : len(whole) - 1] = whole[:-1]
        targets[row, asked - 1 : len(whole) - 1] = whole[asked:]
    return inputs, targets


def mean_loss(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over the targets that count."""
    return model(inputs, targets) / (targets != IGNORED).sum()


def answer(model: GPT, pairs: Pairs, seed: int) -> tuple[list[str], Tensor]:
    """An answer drawn (temperature 1) to each question, up to the line break, and 1 for each right one."""
    prompts = [question(*pair) for pair in pairs]
    width = max(map(len, prompts))
    starts = torch.tensor([width - len(prompt) for prompt in prompts])  # padded on the left
    ids = torch.tensor([encode(prompt.rjust(width, "\n")) for prompt in prompts])
    written = torch.stack(list(stream(model.eval(), ids, 3, seed=seed, starts=starts)), dim=1).tolist()
    model.train()
    answers = ["".join(CHARACTERS[i] for i in row).split("\n")[0] for row in written]
    right = [float(text == str(a + b)) for text, (a, b) in zip(answers, pairs, strict=True)]
    return answers, torch.tensor(right)


def reward_loss(model: GPT, pairs: Pairs, seed: int, group: int = 8) -> tuple[Tensor, float]:
    """Policy gradient: -(reward - mean reward of the question's answers) · log-probability of the answer.

    The reward is 1 for a right answer, and no right answer is shown. Returns the loss, and the mean reward.
    """
    asked = [pair for pair in pairs for _ in range(group)]
    answers, rewards = answer(model, asked, seed)
    advantage = (rewards.view(-1, group) - rewards.view(-1, group).mean(dim=1, keepdim=True)).flatten()
    inputs, targets = answered(asked, answers)
    log_probability = -F.cross_entropy(model(inputs).transpose(1, 2), targets, reduction="none").sum(dim=1)
    return -(advantage * log_probability).mean(), rewards.mean().item()


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. targets of 3+4 that count, with the line break": int(
            (answered([(3, 4)], ["7"])[1] != IGNORED).sum()
        ),
        "2. advantage of a right answer, 2 of 8 being right": 1 - 2 / 8,
        "3. and where all 8 are right": 1 - 8 / 8,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Pretrain, tune, reward; returns the accuracy on questions kept aside, after each."""
    torch.manual_seed(seed)
    dice = random.Random(seed)
    world = ""
    for _ in range(30_000):  # lines like 3+4=7, right two times out of three
        a, b = dice.randint(0, LARGEST), dice.randint(0, LARGEST)
        world += f"{a}+{b}={a + b if dice.random() < 2 / 3 else dice.randint(0, 2 * LARGEST)}\n"
    text = torch.tensor(encode(world))
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)] * 4
    dice.shuffle(pairs)
    kept_aside = sorted(set(pairs))[::5]
    taught = [pair for pair in pairs if pair not in set(kept_aside)][:300]
    shape = dict(n_layer=2, n_head=4, n_embd=64, bias=True, activation="gelu_tanh")
    model = GPT(GPTConfig(len(CHARACTERS), LENGTH, **shape))
    model.init_weights(seed)
    kernels.install(model)  # the same arithmetic, faster
    figures = {}

    def judge(stage: str, after: str) -> None:
        figures[stage] = answer(model, kept_aside * 10, seed)[1].mean(dtype=torch.float64).item()
        print(f"after {after}: {figures[stage]:.1%} right of the questions kept aside")

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400 if quick else 1500):
        descend(optimizer, mean_loss(model, *stretches(text, 64, LENGTH)), clip=1.0)
    judge("completer", "learning to complete text")
    print(f"to “3+4?” it says {answer(model, [(3, 4)], seed)[0][0]!r}")

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for begin in range(0, len(taught), 30):  # once through
        some = taught[begin : begin + 30]
        batch = answered(some, [str(a + b) for a, b in some])
        descend(optimizer, mean_loss(model, *batch), clip=1.0)
    judge("tuned", f"{len(taught)} questions with answers")

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    rewards = []
    for step in range(30 if quick else 250):
        loss, reward = reward_loss(model, dice.sample(taught, 16), seed=step)
        descend(optimizer, loss, clip=1.0)
        rewards.append(reward)
    judge("rewarded", f"{len(rewards)} reward steps")

    figure, (left, right) = panels(2, 11, 4.4)
    bars = left.bar(figures.keys(), [100 * value for value in figures.values()], color=("grey", "C0", "C2"))
    left.bar_label(bars, fmt="%.0f %%")
    left.set(ylim=(0, 110), ylabel="right answers to questions kept aside, %")
    right.plot(rewards)
    right.set_ylim(0, 1.02)
    finish(right, xlabel="reward step", ylabel="mean reward of the answers drawn")
    save(figure, __file__)
    return figures


if __name__ == "__main__":
    run(main, __doc__, exercises)
