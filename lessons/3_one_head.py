"""Lesson 3. One head of self-attention: query, key, value, and why the scores are divided by √D.

Each position asks a question (its query), offers a label (its key) and a content (its value), all three by
matrices that are learned. Where a query and a key point the same way, their product is large, and the softmax
gives that position's value a large weight. The product of two random vectors of D numbers has variance D, so
without the division by √D the softmax of a wide head starts out nearly one-hot, and hardly any gradient flows
through it.

    python lessons/3_one_head.py        (25 seconds)

After "Let's build GPT" (Karpathy, 2023) and "Attention is all you need" (Vaswani et al., 2017, section
3.2.1).
"""

import math

import torch
from common import heat_map, run, save, shakespeare, train, validation_loss
from matplotlib import pyplot
from torch import Tensor, nn

LENGTH, WIDTH = 8, 32  # T and C, the lecture's


class Head(nn.Module):
    """softmax(Q Kᵀ / √D) V, with the future masked."""

    def __init__(self, width: int, head_width: int, scaled: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(width, head_width, bias=False)
        self.key = nn.Linear(width, head_width, bias=False)
        self.value = nn.Linear(width, head_width, bias=False)
        self.scale = head_width**-0.5 if scaled else 1.0

    def weights(self, x: Tensor) -> Tensor:
        """How much each position takes from each, (B, T, T); rows sum to 1, nothing above the diagonal."""
        T = x.shape[1]
        scores = self.query(x) @ self.key(x).transpose(1, 2) * self.scale  # (B, T, T)
        future = torch.triu(torch.ones(T, T), diagonal=1).bool()
        return scores.masked_fill(future, -math.inf).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, D)."""
        return self.weights(x) @ self.value(x)


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


def score_statistics(D: int, scaled: bool) -> tuple[float, float]:
    """Variance of the scores, and mean entropy in nats of the weights, for random unit-variance queries and
    keys.
    """
    query, key = torch.randn(64, 32, D), torch.randn(64, 32, D)
    scores = query @ key.transpose(1, 2) * (D**-0.5 if scaled else 1.0)
    log_weights = scores.log_softmax(dim=-1)
    return scores.var().item(), -(log_weights.exp() * log_weights).sum(dim=-1).mean().item()


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Measure what √D does, then train one head; returns the figures."""
    torch.manual_seed(seed)
    widths = [1, 4, 16, 64, 256]
    with_scale = [score_statistics(D, True) for D in widths]
    without = [score_statistics(D, False) for D in widths]
    print(f"32 positions; weights that are all equal have an entropy of ln 32 = {math.log(32):.2f}")
    print(f"{'D':>5}{'variance, / √D':>18}{'without':>10}{'entropy, / √D':>18}{'without':>10}")
    for D, (v1, e1), (v2, e2) in zip(widths, with_scale, without, strict=True):
        print(f"{D:>5}{v1:>18.2f}{v2:>10.1f}{e1:>18.2f}{e2:>10.2f}")

    text = shakespeare()
    model = OneHeadModel(text.vocab_size)
    steps = 600 if quick else 5000
    train(model, text, steps, length=LENGTH)
    loss = validation_loss(model, text, LENGTH)
    print(f"validation loss of one head after {steps} steps: {loss:.3f} (bigram: about 2.5)")

    ids = torch.tensor(text.tokenizer.encode("hear me "))[None]
    x = model.token_embedding(ids) + model.position_embedding(torch.arange(LENGTH))
    weights = model.attention.weights(x)[0].detach()
    draw(widths, with_scale, without, weights, "hear me ")
    return {
        "loss": loss,
        "variance_scaled": with_scale[-1][0],
        "variance_without": without[-1][0],
        "entropy_scaled": with_scale[-1][1],
        "entropy_without": without[-1][1],
        "largest_ahead": weights.triu(1).max().item(),
        "row_error": (weights.sum(dim=1) - 1).abs().max().item(),
    }


def draw(widths: list[int], with_scale: list, without: list, weights: Tensor, characters: str) -> None:
    """Variance and entropy by head width, and the weights of the trained head on a few characters."""
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    for axes, which, title in (
        (left, 0, "variance of the scores"),
        (middle, 1, "entropy of the weights, nats"),
    ):
        axes.plot(widths, [pair[which] for pair in without], "C3o-", label="Q Kᵀ")
        axes.plot(widths, [pair[which] for pair in with_scale], "C0o-", label="Q Kᵀ / √D")
        axes.set_xscale("log", base=2)
        axes.set(title=title, xlabel="width of the head D")
        axes.grid(alpha=0.3)
        axes.legend()
    left.set_yscale("log", base=2)
    middle.axhline(math.log(32), color="grey", linestyle=":")
    heat_map(right, weights, "the trained head", characters)
    save(figure, "3_one_head")
    pyplot.close(figure)


if __name__ == "__main__":
    run(main, __doc__)
