"""Lesson 4. Many heads: several small conversations at once, and how to compute them as one.

One head can look in one way at a time. H heads of width D = C / H cost no more than one of width C and can
look for H things: the last vowel, the start of the word, the speaker's name. Side by side they are easy to
read; GPUs like them better as one product with an extra dimension, and the two are the same numbers.

    python lessons/4_many_heads.py      (20 seconds)

After "Let's build GPT" (Karpathy, 2023) and "Attention is all you need" (Vaswani et al., 2017, section
3.2.2).
"""

import math

import torch
from common import heat_map, run, save, shakespeare, train, validation_loss
from matplotlib import pyplot
from torch import Tensor, nn

LENGTH, WIDTH, HEADS = 8, 32, 4


class Head(nn.Module):
    """One head, as in lesson 3."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, head_width, bias=False)
        self.key = nn.Linear(width, head_width, bias=False)
        self.value = nn.Linear(width, head_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, D)."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        return causal_weights(query, key) @ value


class SideBySide(nn.Module):
    """H heads one after the other, their outputs joined."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(width, width // heads) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return torch.cat([head(x) for head in self.heads], dim=-1)


class Batched(nn.Module):
    """The same as one product for all heads; this is how model.py does it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_head = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)

    def forward(self, x: Tensor, show: bool = False) -> Tensor:
        """(B, T, C) to (B, T, C). `show` prints the shape at each step."""
        B, T, C = x.shape
        qkv = self.qkv(x)  # (B, T, 3C)
        apart = qkv.view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, H, D)
        query, key, value = apart.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        weights = causal_weights(query, key)  # (B, H, T, T)
        mixed = weights @ value  # (B, H, T, D)
        joined = mixed.transpose(1, 2).reshape(B, T, C)  # (B, T, C)
        if show:
            shapes = {"x": x, "qkv(x)": qkv, "view": apart, "query": query, "weights": weights}
            shapes |= {"weights @ value": mixed, "joined": joined}
            for name, tensor in shapes.items():
                print(f"    {name:<16}{tuple(tensor.shape)}")
        return joined

    @torch.no_grad()
    def copy_from(self, other: SideBySide) -> "Batched":
        """Stack the queries of all heads, then the keys, then the values."""
        rows = [getattr(head, name).weight for name in ("query", "key", "value") for head in other.heads]
        self.qkv.weight.copy_(torch.cat(rows))
        return self


def causal_weights(query: Tensor, key: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √D) over the positions that are not ahead, (…, T, T)."""
    T, D = query.shape[-2:]
    scores = query @ key.transpose(-2, -1) / math.sqrt(D)
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(dim=-1)


class ManyHeadsModel(nn.Module):
    """The model of lesson 3 with H heads in the place of one."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, WIDTH)
        self.position_embedding = nn.Embedding(LENGTH, WIDTH)
        self.attention = Batched(WIDTH, HEADS)
        self.out = nn.Linear(WIDTH, vocab_size)

    def embed(self, ids: Tensor) -> Tensor:
        """Ids (B, T) to (B, T, C)."""
        return self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1]))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, T) to logits (B, T, V)."""
        return self.out(self.attention(self.embed(ids)))


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Show that the two forms are one, then train; returns the figures."""
    torch.manual_seed(seed)
    side_by_side = SideBySide(WIDTH, HEADS).double()
    batched = Batched(WIDTH, HEADS).double().copy_from(side_by_side)
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    print(f"B = 2, T = {LENGTH}, C = {WIDTH}, H = {HEADS}, D = {WIDTH // HEADS}:")
    difference = (batched(x, show=True) - side_by_side(x)).abs().max().item()
    print(f"largest difference between the two forms: {difference:.1e} (float64)")

    text = shakespeare()
    model = ManyHeadsModel(text.vocab_size)
    steps = 600 if quick else 5000
    train(model, text, steps, length=LENGTH)
    loss = validation_loss(model, text, LENGTH)
    print(f"validation loss of {HEADS} heads after {steps} steps: {loss:.3f} (one head: about 2.4)")
    draw(model, torch.tensor(text.tokenizer.encode("hear me "))[None], "hear me ")
    return {"difference": difference, "loss": loss}


@torch.no_grad()
def draw(model: ManyHeadsModel, ids: Tensor, characters: str) -> None:
    """What each trained head looks at."""
    width = WIDTH // HEADS
    query, key, _ = model.attention.qkv(model.embed(ids))[0].view(LENGTH, 3, HEADS, width).permute(1, 2, 0, 3)
    figure, panels = pyplot.subplots(1, HEADS, figsize=(14, 4), layout="constrained")
    for number, (axes, weights) in enumerate(zip(panels, causal_weights(query, key), strict=True)):
        heat_map(axes, weights, f"head {number + 1}", characters)
    save(figure, "4_many_heads")
    pyplot.close(figure)


if __name__ == "__main__":
    run(main, __doc__)
