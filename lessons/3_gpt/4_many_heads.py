"""Lesson 3.4. Many heads: several small conversations at once, and how to compute them as one.

One head can look in one way at a time. H heads of width D = C / H cost no more than one of width C and can
look for H things: the last vowel, the start of the word, the speaker's name. Side by side they are easy to
read; GPUs like them better as one product with an extra dimension, and the two are the same numbers.

    python lessons/3_gpt/4_many_heads.py

After "Let's build GPT" (Karpathy, 2023) and "Attention is all you need" (Vaswani et al., 2017, 3.2.2).
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import Embeddings, run, shakespeare, train, validation_loss
from drawing import heat_map, panels, save
from torch import Tensor, nn

LENGTH, WIDTH, HEADS = 8, 32, 4


def causal_weights(query: Tensor, key: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √D) over the positions that are not ahead, (…, T, T), as in lesson 3."""
    T, D = query.shape[-2:]
    scores = query @ key.transpose(-2, -1) / math.sqrt(D)
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(dim=-1)


class SideBySide(nn.Module):
    """H heads one after the other, each with its query, key and value; their outputs joined."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Linear(WIDTH, WIDTH // HEADS, bias=False) for _ in range(3))
            for _ in range(HEADS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C); each head gives (B, T, D)."""
        return torch.cat([causal_weights(q(x), k(x)) @ v(x) for q, k, v in self.heads], dim=-1)


class Batched(nn.Module):
    """The same as one product for all heads; this is how model.py does it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)

    def forward(self, x: Tensor, show: bool = False) -> Tensor:
        """(B, T, C) to (B, T, C). `show` prints the shape at each step."""
        B, T, C = x.shape
        qkv = self.qkv(x)  # (B, T, 3C)
        apart = qkv.view(B, T, 3, HEADS, C // HEADS)  # (B, T, 3, H, D)
        query, key, value = apart.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        self.weights = causal_weights(query, key)  # (B, H, T, T), kept for the picture
        mixed = self.weights @ value  # (B, H, T, D)
        joined = mixed.transpose(1, 2).reshape(B, T, C)  # (B, T, C)
        if show:
            names = ("x", "qkv(x)", "view", "query", "weights", "weights @ value", "joined")
            for name, tensor in zip(names, (x, qkv, apart, query, self.weights, mixed, joined), strict=True):
                print(f"    {name:<16}{tuple(tensor.shape)}")
        return joined


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. width of a head, C = 768, H = 12": 768 // 12,
        "2. weights of 4 heads on 8 positions, the zeros too": 4 * 8 * 8,
        "3. parameters of qkv, C = 768": 3 * 768**2,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Show that the two forms are one, then train; returns the figures."""
    torch.manual_seed(seed)
    side_by_side, batched = SideBySide().double(), Batched().double()
    # The rows of `qkv` are the queries of all heads, then their keys, then their values.
    rows = torch.cat([head[part].weight for part in range(3) for head in side_by_side.heads])
    batched.load_state_dict({"qkv.weight": rows})
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    print(f"B = 2, T = {LENGTH}, C = {WIDTH}, H = {HEADS}, D = {WIDTH // HEADS}:")
    difference = (batched(x, show=True) - side_by_side(x)).abs().max().item()
    print(f"largest difference between the two forms: {difference:.1e} (float64)")

    text = shakespeare()
    V = text.vocab_size  # the model is that of lesson 3, with H heads in the place of one:
    model = nn.Sequential(Embeddings(V, LENGTH, WIDTH), Batched(), nn.Linear(WIDTH, V))
    steps = 600 if quick else 5000
    train(model, text, steps, length=LENGTH)
    loss = validation_loss(model, text, LENGTH)
    print(f"validation loss of {HEADS} heads after {steps} steps: {loss:.3f} (one head: about 2.4)")

    model(torch.tensor(text.tokenizer.encode("hear me "))[None])
    figure, drawings = panels(HEADS, 14, 4)
    for number, (axes, weights) in enumerate(zip(drawings, model[1].weights[0], strict=True), 1):
        heat_map(axes, weights, f"head {number}", "hear me ")
    save(figure, __file__)
    return {"difference": difference, "loss": loss}


if __name__ == "__main__":
    run(main, __doc__, exercises)
