"""Lesson 9. From text completer to assistant: answer when asked, then answer right.

A language model completes text; asked a question, it goes on as its training text would. Supervised tuning
shows it a few hundred questions with answers, and the loss counts on the answers alone. It learns the manner
from them; what it knows it has from before. A reward step then draws answers, checks them, and makes the
right ones likelier.

The text that the model first learns from is arithmetic as one finds it in the world: a third of the sums are
wrong.

    python lessons/9_assistant.py       (50 seconds)

Tuning on demonstrations, then a reward: Ouyang et al. (2022). Policy gradient: Williams (1992); the mean of a
group of answers as the baseline: Shao et al. (2024).
"""

import random

import torch
from common import run, save
from matplotlib import pyplot
from torch import Tensor
from torch.nn import functional as F

from model import GPT, GPTConfig

CHARACTERS = "\n 0123456789+=Q?A:"
LENGTH, LARGEST, IGNORED = 24, 12, -100  # -100: a target that is left out of the loss


def encode(text: str) -> list[int]:
    """Characters to ids."""
    return [CHARACTERS.index(character) for character in text]


def worldly_line(dice: random.Random) -> str:
    """A sum as the world writes it, right two times out of three: '3+4=7'."""
    a, b = dice.randint(0, LARGEST), dice.randint(0, LARGEST)
    return f"{a}+{b}={a + b if dice.random() < 2 / 3 else dice.randint(0, 2 * LARGEST)}\n"


def stretches(text: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Stretches of a text, cut anywhere; every character is a target. Each (B, LENGTH)."""
    starts = torch.randint(len(text) - LENGTH, (size, 1))
    rows = text[starts + torch.arange(LENGTH + 1)]
    return rows[:, :-1], rows[:, 1:]


def question(a: int, b: int) -> str:
    """A question in a form that the model has never seen."""
    return f"Q: {a}+{b}?\nA: {a}+{b}="


def tuning_batch(pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Questions with right answers; targets within the question are IGNORED. Each (B, LENGTH)."""
    inputs, targets = (
        torch.zeros(len(pairs), LENGTH, dtype=torch.long),
        torch.full((len(pairs), LENGTH), IGNORED),
    )
    for row, (a, b) in enumerate(pairs):
        asked, whole = encode(question(a, b)), encode(question(a, b) + f"{a + b}\n")
        inputs[row, : len(whole) - 1] = torch.tensor(whole[:-1])
        targets[row, len(asked) - 1 : len(whole) - 1] = torch.tensor(whole[len(asked) :])
    return inputs, targets


def answer(model: GPT, pairs: list[tuple[int, int]], seed: int) -> list[str]:
    """An answer drawn (temperature 1) to each question, up to the line break."""
    prompts = [encode(question(a, b)) for a, b in pairs]
    width = max(map(len, prompts))
    starts = torch.tensor([width - len(prompt) for prompt in prompts])  # padded on the left
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    written = model.eval().generate(ids, 3, seed=seed, starts=starts)[:, width:].tolist()
    model.train()
    return ["".join(CHARACTERS[i] for i in row).split("\n")[0] for row in written]


def accuracy(model: GPT, pairs: list[tuple[int, int]], seed: int) -> float:
    """The share of right answers, one drawn for each question."""
    answers = answer(model, pairs, seed)
    return sum(text == str(a + b) for text, (a, b) in zip(answers, pairs, strict=True)) / len(pairs)


def learn(model: GPT, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def reward_loss(model: GPT, pairs: list[tuple[int, int]], seed: int, group: int = 8) -> tuple[Tensor, float]:
    """Policy gradient: -(reward - mean reward of the question's answers) · log-probability of the answer.

    The reward is 1 for a right answer, and no right answer is shown. Returns the loss, and the mean reward.
    """
    asked = [pair for pair in pairs for _ in range(group)]
    answers = answer(model, asked, seed)
    rewards = torch.tensor([float(text == str(a + b)) for text, (a, b) in zip(answers, asked, strict=True)])
    advantage = (rewards.view(-1, group) - rewards.view(-1, group).mean(dim=1, keepdim=True)).flatten()
    inputs, targets = (
        torch.zeros(len(asked), LENGTH, dtype=torch.long),
        torch.full((len(asked), LENGTH), IGNORED),
    )
    for row, ((a, b), text) in enumerate(zip(asked, answers, strict=True)):
        prompt, whole = encode(question(a, b)), (encode(question(a, b) + text + "\n"))[: LENGTH + 1]
        inputs[row, : len(whole) - 1] = torch.tensor(whole[:-1])
        targets[row, len(prompt) - 1 : len(whole) - 1] = torch.tensor(whole[len(prompt) :])
    log_probability = -F.cross_entropy(model(inputs)[0].transpose(1, 2), targets, reduction="none").sum(dim=1)
    return -(advantage * log_probability).mean(), rewards.mean().item()


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Pretrain, tune, reward; returns the accuracy on questions kept aside, after each."""
    torch.manual_seed(seed)
    dice = random.Random(seed)
    world = torch.tensor(encode("".join(worldly_line(dice) for _ in range(30_000))))
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)] * 4
    dice.shuffle(pairs)
    kept_aside = sorted(set(pairs))[::5]
    taught = [pair for pair in pairs if pair not in set(kept_aside)][:300]
    model = GPT(GPTConfig(len(CHARACTERS), LENGTH, n_layer=2, n_head=4, n_embd=64))
    model.init_weights(seed)
    model.use_attention_kernel("matmul")  # the faster one for texts this short

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400 if quick else 1500):
        learn(model, optimizer, model(*stretches(world, 64))[1])
    figures = {"completer": accuracy(model, kept_aside * 10, seed)}
    print(
        f"text completer: {figures['completer']:.1%} right; "
        f"to “3+4?” it says {answer(model, [(3, 4)], seed)[0]!r}"
    )

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for begin in range(0, len(taught), 30):  # once through
        learn(model, optimizer, model(*tuning_batch(taught[begin : begin + 30]))[1])
    figures["tuned"] = accuracy(model, kept_aside * 10, seed)
    print(f"after {len(taught)} questions with answers: {figures['tuned']:.1%} right")

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    rewards = []
    for step in range(30 if quick else 250):
        loss, reward = reward_loss(model, dice.sample(taught, 16), seed=step)
        learn(model, optimizer, loss)
        rewards.append(reward)
    figures["rewarded"] = accuracy(model, kept_aside * 10, seed)
    print(
        f"after {len(rewards)} reward steps: {figures['rewarded']:.1%} right "
        "(questions never taught or rewarded)"
    )
    draw(figures, rewards)
    return figures


def draw(figures: dict[str, float], rewards: list[float]) -> None:
    """Accuracy after each stage, and the reward as it rises."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    bars = left.bar(figures.keys(), [100 * value for value in figures.values()], color=("grey", "C0", "C2"))
    left.bar_label(bars, fmt="%.0f %%")
    left.set(ylim=(0, 110), ylabel="right answers to questions kept aside, %")
    right.plot(rewards)
    right.set(xlabel="reward step", ylabel="mean reward of the answers drawn", ylim=(0, 1.02))
    right.grid(alpha=0.3)
    save(figure, "9_assistant")
    pyplot.close(figure)


if __name__ == "__main__":
    run(main, __doc__)
