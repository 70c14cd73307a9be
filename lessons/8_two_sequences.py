"""Lesson 8. Attention between two sequences: an encoder, a decoder, and the bridge between them.

A GPT continues one text. To turn one text into another (a translation), two are needed: an encoder reads the
source with attention that has no mask, since all of it is known; a decoder writes the target with a mask and,
in each block, asks the encoder's positions as well: its queries, their keys and values. That is
cross-attention, and its weights show which source position each output was taken from. Here the task is to
write a string backwards.

    python lessons/8_two_sequences.py   (30 seconds)

"Attention is all you need" (Vaswani et al., 2017, section 3.2.3); the alignment picture: Bahdanau et al.
(2015).
"""

import math

import torch
from common import heat_map, run, save
from matplotlib import pyplot
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
        self.weights = torch.empty(0)  # of the last call, (B, H, T, S), for the picture

    def forward(self, x: Tensor, source: Tensor, causal: bool = False) -> Tensor:
        """x (B, T, C) gathers from source (B, S, C); to (B, T, C)."""
        query, key, value = (
            linear(tensor).unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (B, H, T or S, D)
            for linear, tensor in ((self.query, x), (self.key, source), (self.value, source))
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS)  # (B, H, T, S)
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[2:]).triu(1).bool(), -math.inf)
        self.weights = scores.softmax(dim=-1)
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
        memory = self.encoder_norm(
            self.encoder(self.embedding(source) + self.positions[0][: source.shape[1]])
        )
        x = self.embedding(target) + self.positions[1][: target.shape[1]]
        return self.head(self.final_norm(self.decoder(x, memory)))

    @torch.no_grad()
    def translate(self, source: Tensor) -> Tensor:
        """The most probable target, one letter after the other, (B, LENGTH)."""
        target = torch.full((len(source), 1), START)
        for _ in range(LENGTH):
            target = torch.cat((target, self(source, target)[:, -1:].argmax(dim=-1)), dim=1)
        return target[:, 1:]


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Train on random strings, test on fresh ones, and read the alignment off the weights; returns the
    figures.
    """
    torch.manual_seed(seed)
    model = EncoderDecoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    steps = 200 if quick else 600
    for step in range(steps):
        source = torch.randint(len(LETTERS), (64, LENGTH))
        target = source.flip(1)
        begun = F.pad(target[:, :-1], (1, 0), value=START)  # what has been written before each letter
        loss = F.cross_entropy(model(source, begun).flatten(0, 1), target.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % (steps // 5) == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.4f} (guessing: {math.log(len(LETTERS)):.2f})")

    source = torch.randint(len(LETTERS), (500, LENGTH))
    written = model.translate(source)
    right = (written == source.flip(1)).all(dim=1).float().mean().item()
    weights = model.decoder.across.weights.mean(dim=1)  # (B, T, S), the mean of the heads
    mirror = weights.argmax(dim=-1) == torch.arange(LENGTH - 1, -1, -1)
    aligned = mirror.float().mean().item()
    print(f"{words(source[0])} backwards: {words(written[0])}")
    print(f"fresh strings written backwards without a mistake: {right:.1%}")
    print(f"letters whose largest weight lies on the letter they copy: {aligned:.1%}")
    draw(model, source, written)
    return {"right": right, "aligned": aligned}


def words(ids: Tensor) -> str:
    """Ids to letters."""
    return "".join(LETTERS[i] for i in ids)


def draw(model: EncoderDecoder, source: Tensor, written: Tensor) -> None:
    """The three patterns for one string: all of the source, the past of the target, and the bridge."""
    read, wrote = words(source[0]), words(written[0])
    before = "^" + wrote[:-1]
    encoder, decoder = model.encoder, model.decoder
    figure, panels = pyplot.subplots(1, 3, figsize=(14, 4.9), layout="constrained")
    for axes, attention, rows, columns, title in (
        (panels[0], encoder.itself, read, read, "encoder: no mask"),
        (panels[1], decoder.itself, before, before, "decoder: the past only"),
        (panels[2], decoder.across, wrote, read, "cross-attention: the alignment"),
    ):
        heat_map(axes, attention.weights[0].mean(dim=0), title, rows, columns)
    panels[2].set_ylabel("writes")
    save(figure, "8_two_sequences")
    pyplot.close(figure)


if __name__ == "__main__":
    run(main, __doc__)
