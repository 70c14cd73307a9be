"""Lesson 3.3. One head of self-attention: query, key, value, and why the scores are divided by √D.

Each position asks a question (its query), offers a label (its key) and a content (its value), all three by
matrices that are learned. Where a query and a key point the same way, their product is large, and the softmax
gives that position's value a large weight. The product of two random vectors of D numbers has variance D, so
without the division by √D the softmax of a wide head starts out nearly one-hot, and little gradient flows.

    python lessons/3_gpt/3_one_head.py

After "Let's build GPT" (Karpathy, 2023) and "Attention is all you need" (Vaswani et al., 2017, 3.2.1).
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import run, shakespeare, train, validation_loss
from drawing import finish, heat_map, panels, save
from torch import Tensor, nn

LENGTH, WIDTH = 8, 32  # T and C, the lecture's


class Head(nn.Module):
    """softmax(Q Kᵀ / √D) V, with the future masked."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, head_width, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, D)."""
        query, key, value = self.query(x), self.key(x), self.value(x)  # each (B, T, D)
        T, D = query.shape[1:]
        scores = query @ key.transpose(1, 2) / math.sqrt(D)  # (B, T, T)
        future = torch.triu(torch.ones(T, T), diagonal=1).bool()
        self.weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)  # kept for the picture
        return self.weights @ value


class OneHeadModel(nn.Module):
    """What a character is, plus where it stands, through one head, to scores for the next character."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, WIDTH)
        self.position_embedding = nn.Embedding(LENGTH, WIDTH)
        self.attention = Head(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, T) to logits (B, T, V)."""
        x = self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1]))
        return self.out(self.attention(x))


def score_statistics(D: int, divisor: float) -> tuple[float, float]:
    """Variance of the scores of random queries and keys, and mean entropy in nats of the weights."""
    query, key = torch.randn(64, 32, D), torch.randn(64, 32, D)
    scores = query @ key.transpose(1, 2) / divisor
    log_weights = scores.log_softmax(dim=-1)
    return scores.var().item(), -(log_weights.exp() * log_weights).sum(dim=-1).mean().item()


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. parameters of a head, C = 32, D = 16": sum(each.numel() for each in Head(32, 16).parameters()),
        "2. variance of the undivided scores, D = 64": 64,
        "3. the larger of two weights, scores 2 and 0": torch.tensor([2.0, 0.0]).softmax(dim=0)[0].item(),
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Measure what √D does, then train one head; returns the figures."""
    torch.manual_seed(seed)
    widths = [1, 4, 16, 64, 256]
    scaled = [score_statistics(D, math.sqrt(D)) for D in widths]
    unscaled = [score_statistics(D, 1.0) for D in widths]
    print(f"32 positions; weights that are all equal have an entropy of ln 32 = {math.log(32):.2f}")
    print(f"{'D':>5}{'variance, / √D':>18}{'without':>10}{'entropy, / √D':>18}{'without':>10}")
    for D, (v1, e1), (v2, e2) in zip(widths, scaled, unscaled, strict=True):
        print(f"{D:>5}{v1:>18.2f}{v2:>10.1f}{e1:>18.2f}{e2:>10.2f}")

    text = shakespeare()
    model = OneHeadModel(text.vocab_size)
    steps = 600 if quick else 5000
    train(model, text, steps, length=LENGTH)
    loss = validation_loss(model, text, LENGTH)
    print(f"validation loss of one head after {steps} steps: {loss:.3f} (bigram: about 2.5)")

    model(torch.tensor(text.tokenizer.encode("hear me "))[None])
    weights = model.attention.weights[0].detach()
    figure, (left, middle, right) = panels(3, 14)
    for axes, which, title in (
        (left, 0, "variance of the scores"),
        (middle, 1, "entropy of the weights, nats"),
    ):
        axes.plot(widths, [pair[which] for pair in unscaled], "C3o-", label="Q Kᵀ")
        axes.plot(widths, [pair[which] for pair in scaled], "C0o-", label="Q Kᵀ / √D")
        axes.set_xscale("log", base=2)
        finish(axes, title=title, xlabel="width of the head D")
    left.set_yscale("log", base=2)
    middle.axhline(math.log(32), color="grey", linestyle=":")
    heat_map(right, weights, "the trained head", "hear me ")
    save(figure, __file__)
    figures = {"loss": loss, "variance_scaled": scaled[-1][0], "variance_without": unscaled[-1][0]}
    figures |= {"entropy_scaled": scaled[-1][1], "entropy_without": unscaled[-1][1]}
    row_error = (weights.sum(dim=1) - 1).abs().max().item()
    return figures | {"largest_ahead": weights.triu(1).max().item(), "row_error": row_error}


if __name__ == "__main__":
    run(main, __doc__, exercises)
