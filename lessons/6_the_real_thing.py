"""Lesson 6. It is the real thing: the lessons' model and model.py, with the same weights, give the same
logits.

Put the pieces of the lessons together and you have GPT-2's network. To show it, this file writes the whole of
it in 40 lines, in the lessons' plain way (one head after the other, a mask, a softmax), and hands it the
weights of model.py, which computes all heads at once with fused kernels. If one of the two had a mistake, the
logits would differ.

    python lessons/6_the_real_thing.py  (5 seconds)

The network is GPT-2's (Radford et al., 2019); the lecture "Let's build GPT" (Karpathy, 2023) ends at the same
place.
"""

import math

import torch
from common import run, save
from matplotlib import pyplot
from torch import Tensor, nn
from torch.nn import functional as F

from model import GPT, GPTConfig


def head(x: Tensor, query: nn.Linear, key: nn.Linear, value: nn.Linear) -> Tensor:
    """One head of causal self-attention, (B, T, C) to (B, T, D)."""
    T, D = x.shape[1], query.out_features
    scores = query(x) @ key(x).transpose(1, 2) / math.sqrt(D)  # (B, T, T)
    weights = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(dim=-1)
    return weights @ value(x)


class LessonBlock(nn.Module):
    """Attention, then an MLP, each after a LayerNorm and added to what was there."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width // heads) for _ in range(3)) for _ in range(heads)
        )
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        normed = self.norms[0](x)
        x = x + self.out(torch.cat([head(normed, *linears) for linears in self.heads], dim=-1))
        return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))


class LessonGPT(nn.Module):
    """Embeddings, blocks, a last norm; the token embedding, transposed, is the head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(LessonBlock(config.n_embd, config.n_head) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, T) to logits (B, T, V)."""
        x = self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x) @ self.token_embedding.weight.T


@torch.no_grad()
def copy_weights(real: GPT, lesson: LessonGPT) -> None:
    """Every weight of model.py to its place here; the rows of `qkv` are the queries, keys and values of all
    heads.
    """
    pairs = [
        (real.token_embedding, lesson.token_embedding),
        (real.position_embedding, lesson.position_embedding),
    ]
    pairs.append((real.final_norm, lesson.final_norm))
    for theirs, ours in zip(real.blocks, lesson.blocks, strict=True):
        pairs += [(theirs.attention_norm, ours.norms[0]), (theirs.mlp_norm, ours.norms[1])]
        pairs += [(theirs.attention.out, ours.out), (theirs.mlp.up, ours.up), (theirs.mlp.down, ours.down)]
        for part in range(3):
            weights = theirs.attention.qkv.weight.chunk(3)[part].chunk(len(ours.heads))
            biases = theirs.attention.qkv.bias.chunk(3)[part].chunk(len(ours.heads))
            for linears, weight, bias in zip(ours.heads, weights, biases, strict=True):
                linears[part].weight.copy_(weight)
                linears[part].bias.copy_(bias)
    for source, target in pairs:
        target.load_state_dict(source.state_dict())


def compare(dtype: torch.dtype, seed: int, quick: bool) -> tuple[Tensor, Tensor, int]:
    """Logits of both for the same random weights and ids, and the number of weights that were copied."""
    config = GPTConfig(vocab_size=65, block_size=32, n_layer=2 if quick else 4, n_head=4, n_embd=64)
    real, lesson = GPT(config).to(dtype), LessonGPT(config).to(dtype)
    for parameter in real.parameters():
        nn.init.normal_(parameter, std=0.2)  # large, biases and norms too, so that nothing hides in a zero
    copy_weights(real, lesson)
    ids = torch.randint(65, (8, 32), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return real(ids)[0], lesson(ids), sum(parameter.numel() for parameter in lesson.parameters())


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Compare in float32 and float64; returns the figures."""
    torch.manual_seed(seed)
    figures = {}
    for dtype in (torch.float32, torch.float64):
        real, lesson, count = compare(dtype, seed, quick)
        figures[str(dtype).removeprefix("torch.")] = ((real - lesson).abs().max() / real.abs().max()).item()
    print(f"{count:,} weights copied; {real.numel():,} logits up to {real.abs().max():.1f} in size")
    for name, difference in figures.items():
        print(f"{name}: largest difference {difference:.1e} of the largest logit")

    figure, axes = pyplot.subplots(figsize=(5.6, 5.2), layout="constrained")
    axes.plot(real.flatten().numpy(), lesson.flatten().numpy(), ".", markersize=1.5, alpha=0.5)
    axes.set(xlabel="logits of model.py", ylabel="logits of this lesson")
    axes.set_title(f"the same network (largest difference {figures['float64']:.0e})")
    axes.grid(alpha=0.3)
    save(figure, "6_the_real_thing")
    pyplot.close(figure)
    return figures | {"weights": count}


if __name__ == "__main__":
    run(main, __doc__)
