"""Lesson 3.8. Attention between two sequences: an encoder, a decoder, and the bridge between them.

A GPT continues one text. To turn one text into another (a translation), two are needed: an encoder reads the
source with attention that has no mask, since all of it is known; a decoder writes the target with a mask and,
in each block, asks the encoder's positions as well: its queries, their keys and values. That is
cross-attention, and its weights show which source position each output was taken from. Here the task is to
write a string backwards.

    python lessons/3_gpt/8_two_sequences.py

"Attention is all you need" (Vaswani et al., 2017, section 3.2.3); alignment: Bahdanau et al. (2015).
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import descend, run
from drawing import heat_map, panels, save
from torch import Tensor, nn
from torch.nn import functional as F

LETTERS = "abcdefghijklmnop"
START = len(LETTERS)  # the decoder's first input
LENGTH, WIDTH, HEADS = 10, 64, 2


class Attention(nn.Module):
    """Queries from one sequence, keys and values from another (or the same): nothing else changes."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, source: Tensor, causal: bool = False) -> Tensor:
        """x (B, T, C) gathers from source (B, S, C); to (B, T, C)."""
        mapped = (self.query(x), self.key(source), self.value(source))
        # Each (B, H, …, D).
        query, key, value = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in mapped)
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS)  # (B, H, T, S)
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[2:]).triu(1).bool(), -math.inf)
        self.weights = scores.softmax(dim=-1)  # kept for the picture
        return self.out((self.weights @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, in the decoder cross-attention too, then an MLP; each after a norm and added."""

    def __init__(self, decoder: bool) -> None:
        super().__init__()
        self.itself = Attention()
        self.across = Attention() if decoder else None
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """(B, T, C) to (B, T, C); with the encoder's output as `source` this is a decoder's block."""
        normed = self.norms[0](x)
        x = x + self.itself(normed, normed, causal=source is not None)
        if source is not None:
            x = x + self.across(self.norms[1](x), source)
        return x + self.mlp(self.norms[2](x))


class EncoderDecoder(nn.Module):
    """One block each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS) + 1, WIDTH)
        self.positions = nn.ParameterList(nn.Parameter(0.5 * torch.randn(LENGTH, WIDTH)) for _ in range(2))
        self.encoder, self.decoder = Block(decoder=False), Block(decoder=True)
        self.encoder_norm, self.final_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(LETTERS))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Source ids (B, S) and the target so far (B, T) to logits (B, T, V) for its next letters."""
        memory = self.encoder_norm(self.encoder(self.embedding(source) + self.positions[0]))
        x = self.embedding(target) + self.positions[1][: target.shape[1]]
        return self.head(self.final_norm(self.decoder(x, memory)))


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. cross-attention's weights, source 10, target 7, one head": 10 * 7,
        "2. weights that are not masked in the decoder, 10 letters": 10 * 11 // 2,
        "3. the place that the third letter is copied from, from 0": LENGTH - 3,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Train on random strings, test on fresh ones, read the alignment off the weights; the figures."""
    torch.manual_seed(seed)
    model = EncoderDecoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    steps = 200 if quick else 600
    for step in range(steps):
        source = torch.randint(len(LETTERS), (64, LENGTH))
        target = source.flip(1)
        begun = F.pad(target[:, :-1], (1, 0), value=START)  # what has been written before each letter
        loss = F.cross_entropy(model(source, begun).flatten(0, 1), target.flatten())
        descend(optimizer, loss, clip=1.0)
        if step % (steps // 5) == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.4f} (guessing: {math.log(len(LETTERS)):.2f})")

    source = torch.randint(len(LETTERS), (500, LENGTH))
    written = torch.full((500, 1), START)
    with torch.no_grad():
        for _ in range(LENGTH):  # the most probable letter, one after the other
            written = torch.cat((written, model(source, written)[:, -1:].argmax(dim=-1)), dim=1)
    right = (written[:, 1:] == source.flip(1)).all(dim=1).float().mean().item()
    weights = model.decoder.across.weights.mean(dim=1)  # (B, T, S), the mean of the heads
    mirror = torch.arange(LENGTH - 1, -1, -1)
    aligned = (weights.argmax(dim=-1) == mirror).float().mean().item()
    read, wrote = ("".join((LETTERS + "^")[i] for i in ids[0]) for ids in (source, written))
    print(f"{read} backwards: {wrote[1:]}")
    print(f"fresh strings written backwards without a mistake: {right:.1%}")
    print(f"letters whose largest weight lies on the letter they copy: {aligned:.1%}")

    figure, (left, middle, bridge) = panels(3, 14, 4.9)
    heat_map(left, model.encoder.itself.weights[0].mean(dim=0), "encoder: no mask", read)
    heat_map(middle, model.decoder.itself.weights[0].mean(dim=0), "decoder: the past only", wrote[:-1])
    heat_map(bridge, weights[0], "cross-attention: the alignment", wrote[1:], read)
    bridge.set_ylabel("writes")
    save(figure, __file__)
    return {"right": right, "aligned": aligned}


if __name__ == "__main__":
    run(main, __doc__, exercises)
