"""Lesson 3.6. It is the real thing: the lessons' model and model.py, given the same weights, agree.

Put the pieces of the lessons together and you have GPT-2's network. To show it, this file writes the whole
of it in 40 lines, in the lessons' plain way (one head after the other, a mask, a softmax), and hands it
the weights of model.py, which computes all heads at once with fused kernels. If one of the two had a
mistake, the logits would differ.

    python lessons/3_gpt/6_the_real_thing.py

The network is GPT-2's (Radford et al., 2019); the lecture "Let's build GPT" (Karpathy, 2023) ends there too.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import run
from drawing import finish, panels, save
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

    def __init__(self, C: int, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Linear(C, C // heads) for _ in range(3)) for _ in range(heads)
        )
        self.out, self.up, self.down = nn.Linear(C, C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in range(2))

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
        self.blocks = nn.Sequential(
            *(LessonBlock(config.n_embd, config.n_head) for _ in range(config.n_layer))
        )
        self.final_norm = nn.LayerNorm(config.n_embd)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, T) to logits (B, T, V)."""
        x = self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1]))
        return self.final_norm(self.blocks(x)) @ self.token_embedding.weight.T


@torch.no_grad()
def copy_weights(real: GPT, lesson: LessonGPT) -> None:
    """Every weight of model.py to its place here; `qkv` holds the queries, keys and values of all heads."""
    for name in ("token_embedding", "position_embedding", "final_norm"):
        getattr(lesson, name).load_state_dict(getattr(real, name).state_dict())
    for theirs, ours in zip(real.blocks, lesson.blocks, strict=True):
        sources = (
            theirs.attention_norm,
            theirs.mlp_norm,
            theirs.attention.out,
            theirs.mlp.up,
            theirs.mlp.down,
        )
        for source, target in zip(sources, (*ours.norms, ours.out, ours.up, ours.down), strict=True):
            target.load_state_dict(source.state_dict())
        targets = [linears[part] for part in range(3) for linears in ours.heads]
        for name, rows in theirs.attention.qkv.state_dict().items():  # weight, then bias
            for linear, some in zip(targets, rows.chunk(len(targets)), strict=True):
                getattr(linear, name).copy_(some)


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    with torch.device("meta"):  # shapes without numbers
        gpt2 = sum(parameter.numel() for parameter in GPT(GPTConfig(bias=True)).parameters())
    return {
        "1. parameters that the tied head saves here": 65 * 64,
        "2. parameters of a block's MLP, C = 64": (64 * 256 + 256) + (256 * 64 + 64),
        "3. parameters of GPT-2": gpt2,
    }


@torch.no_grad()
def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Logits of both for the same random weights and ids, in float32 and float64; returns the figures."""
    torch.manual_seed(seed)
    shape = dict(vocab_size=65, block_size=32, n_layer=2 if quick else 4, n_head=4, n_embd=64)
    config = GPTConfig(**shape, bias=True, activation="gelu_tanh")  # as GPT-2 is
    ids = torch.randint(65, (8, 32), generator=torch.Generator().manual_seed(seed))
    figures = {}
    for dtype in (torch.float32, torch.float64):
        network, copy = GPT(config).to(dtype), LessonGPT(config).to(dtype)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)  # large, biases and norms too: nothing hides in a zero
        copy_weights(network, copy)
        real, lesson = network(ids), copy(ids)
        name = str(dtype).removeprefix("torch.")
        figures[name] = ((real - lesson).abs().max() / real.abs().max()).item()
        print(f"{name}: largest difference {figures[name]:.1e} of the largest logit")
    count = sum(parameter.numel() for parameter in copy.parameters())
    print(f"{count:,} weights copied; {real.numel():,} logits up to {real.abs().max():.1f} in size")

    figure, (axes,) = panels(1, 5.6, 5.2)
    axes.plot(real.flatten().numpy(), lesson.flatten().numpy(), ".", markersize=1.5, alpha=0.5)
    title = f"the same network (largest difference {figures['float64']:.0e})"
    finish(axes, title=title, xlabel="logits of model.py", ylabel="logits of this lesson")
    save(figure, __file__)
    return figures | {"weights": count}


if __name__ == "__main__":
    run(main, __doc__, exercises)
