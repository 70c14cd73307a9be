"""Lesson 3.1. The bigram table: guess the next character from the last one alone.

A language model gives a probability to every character that may come next. The smallest one is a table with a
row for each character and, in that row, a score for each character that may follow. Nothing else will change
from here to GPT: better scores, the same softmax, the same loss, the same way to learn and to write.

    python lessons/3_gpt/1_bigram.py

After Andrej Karpathy's lecture "Let's build GPT: from scratch, in code, spelled out" (2023).
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import Text, run, shakespeare, train, validation_loss
from drawing import finish, heat_map, panels, save
from torch import Tensor, nn


class Bigram(nn.Module):
    """One row of scores (logits) for each character."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.normal_(self.table.weight, std=0.02)  # nearly equal scores: it begins by knowing nothing

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, T) to logits (B, T, V): every position looks up its own row and no other."""
        return self.table(ids)


@torch.no_grad()
def written(model: Bigram, text: Text, count: int) -> str:
    """So many characters, each drawn by the row of the one before it, the first as after a line break."""
    ids = text.tokenizer.encode("\n").tolist()
    for _ in range(count):
        ids.append(int(torch.multinomial(model(torch.tensor(ids[-1])).softmax(dim=0), 1)))
    return text.tokenizer.decode(ids[1:])


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. scores in the table for 65 characters": 65**2,
        "2. loss where the right character always has probability 1/4": math.log(4),
        "3. loss on a row whose counts are 6, 3 and 1": -sum(p * math.log(p) for p in (0.6, 0.3, 0.1)),
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Train the table, count the same table, compare; returns the figures."""
    torch.manual_seed(seed)
    text = shakespeare()
    V = text.vocab_size
    model = Bigram(V)

    # 1. Before it has learned anything, every character is equally likely, and the loss is -ln(1/V) = ln V.
    at_start = validation_loss(model, text, 8)
    print(f"loss at the start {at_start:.3f}; ln {V} = {math.log(V):.3f}")
    print(f"it writes: {written(model, text, 60)!r}")

    # 2. Gradient descent moves the scores. One character of context brings the loss to about 2.5 nats.
    steps = 300 if quick else 4000
    losses = train(model, text, steps, length=32, batch=64, rate=0.1)
    after = validation_loss(model, text, 8)
    print(f"validation loss after {steps} steps {after:.3f}")
    print(f"it writes: {written(model, text, 200)!r}")

    # 3. The same table can be had by counting how often b follows a: for this loss the shares are best.
    pairs = torch.bincount(text.train[:-1] * V + text.train[1:], minlength=V * V).view(V, V)
    counted = pairs / pairs.sum(dim=1, keepdim=True).clamp(min=1)
    learned = model.table.weight.detach().softmax(dim=1)
    best = -(pairs * counted.clamp(min=1e-12).log()).sum().item() / pairs.sum().item()
    reached = -(pairs * learned.log()).sum().item() / pairs.sum().item()
    share = pairs.sum(dim=1) / pairs.sum()
    apart = (0.5 * (counted - learned).abs().sum(dim=1) * share).sum().item()
    print(f"training loss: counted table {best:.4f}, learned table {reached:.4f}")
    print(f"the two tables disagree on {apart:.2%} of the probability (mean over the text)")

    draw(losses, counted, learned, text.tokenizer.decode(range(V)), best)
    return {"at_start": at_start, "after": after, "counted": best, "learned": reached, "apart": apart}


def draw(losses: list[float], counted: Tensor, learned: Tensor, characters: str, best: float) -> None:
    """The loss curve, and both tables for the small letters."""
    figure, (left, *tables) = panels(3, 15, 5.2)
    at_start = math.log(len(characters))
    left.plot(losses, linewidth=0.5, alpha=0.7)
    left.axhline(best, color="C3", linestyle="--", label=f"counted: {best:.3f}")
    left.axhline(at_start, color="grey", linestyle=":", label=f"ln V = {at_start:.2f}")
    finish(left, xlabel="step", ylabel="loss, nats per character", title="gradient descent arrives …")
    shown = [i for i, character in enumerate(characters) if character.islower() or character in " ,."]
    names = "".join(characters[i] for i in shown)
    titles = ("… at the table that one can count", "learned")
    for axes, table, title in zip(tables, (counted, learned), titles, strict=True):
        heat_map(axes, table[shown][:, shown].sqrt(), title, names)
        axes.tick_params(labelsize=8)
        axes.set(xlabel="next character", ylabel="this character")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
