"""Lesson 3.5. The ladder to a GPT: add one idea at a time and see what each is worth.

Attention moves information between positions; an MLP then works on it at each position. Adding to the input
instead of replacing it (residuals) gives the gradient a straight way through all layers, and normalising each
position (LayerNorm) keeps the numbers in a range where that works. Then come size and dropout.

    python lessons/3_gpt/5_ladder.py              (two minutes)
    python lessons/3_gpt/5_ladder.py --seeds 3    (the table of the reading guide)

After "Let's build GPT" (Karpathy, 2023), whose figures stand beside ours. Residuals: He et al. (2016);
LayerNorm: Ba et al. (2016), Xiong et al. (2020); BatchNorm: Ioffe and Szegedy (2015); dropout:
Srivastava et al. (2014).
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import Embeddings, run, shakespeare, train, validation_loss
from drawing import finish, panels, save
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: what is there, and the lecture's validation loss."""

    name: str
    lecture: float
    heads: int = 4
    mlp: bool = True
    residual: bool = True
    norm: str | None = "layer"
    layers: int = 3
    width: int = 32
    length: int = 8
    dropout: float = 0.0
    steps: int = 5000
    batch: int = 32
    rate: float = 1e-3


LARGE = dict(layers=4, width=64, length=64, dropout=0.05, steps=1500, batch=16, rate=4e-3)
LADDER = (
    Rung("bigram", 2.5, heads=0, rate=1e-1),
    Rung("one head", 2.4, heads=1, mlp=False, residual=False, norm=None, layers=1),
    Rung("four heads", 2.28, mlp=False, residual=False, norm=None, layers=1),
    Rung("+ MLP", 2.24, residual=False, norm=None, layers=1),
    Rung("+ residuals, 3 blocks", 2.08, norm=None),
    Rung("+ LayerNorm", 2.06),
    Rung("+ size and dropout", 1.48, **LARGE),
)


class BatchNorm(nn.BatchNorm1d):
    """Each channel by its mean and deviation over the whole batch; LayerNorm: each position by its own."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


NORMS = {None: nn.Identity, "layer": nn.LayerNorm, "batch": BatchNorm}


class Block(nn.Module):
    """Heads, then perhaps an MLP, each perhaps with a norm before it and a residual around it."""

    def __init__(self, rung: Rung) -> None:
        super().__init__()
        C, self.rung = rung.width, rung
        inner = 4 * C if rung.residual else C
        self.norms = nn.ModuleList(NORMS[rung.norm](C) for _ in range(2))
        self.qkv = nn.Linear(C, 3 * C, bias=False)
        self.out = nn.Linear(C, C) if rung.residual else nn.Identity()
        self.up = nn.Linear(C, inner)
        self.down = nn.Linear(inner, C) if rung.residual else nn.Identity()
        self.dropout = nn.Dropout(rung.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        kept = 1.0 if self.rung.residual else 0.0
        qkv = self.qkv(self.norms[0](x)).view(B, T, 3, self.rung.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv, is_causal=True)  # all heads, (B, H, T, D)
        x = kept * x + self.dropout(self.out(mixed.transpose(1, 2).reshape(B, T, C)))
        return kept * x + self.dropout(self.down(self.up(self.norms[1](x)).relu())) if self.rung.mlp else x


def build(rung: Rung, V: int = 65) -> nn.Module:
    """Ids (B, T) to logits (B, T, V): embeddings, blocks, a head; without heads it is the bigram table."""
    if rung.heads == 0:
        return nn.Embedding(V, V)
    embeddings = Embeddings(V, rung.length, rung.width)
    blocks = [Block(rung) for _ in range(rung.layers)]
    return nn.Sequential(embeddings, *blocks, NORMS[rung.norm](rung.width), nn.Linear(rung.width, V))


def gradient_by_depth(residual: bool) -> list[float]:
    """Norm of the loss's gradient at the output of each of 12 fresh blocks, relative to the last one's."""
    model = build(Rung("", 0.0, residual=residual, norm=None, layers=12))
    outputs = []
    for block in model[1:13]:
        block.register_forward_hook(lambda block, arguments, output: outputs.append(output))
    ids = torch.randint(65, (16, 8))
    loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    norms = [gradient.norm().item() for gradient in torch.autograd.grad(loss, outputs)]
    return [norm / norms[-1] for norm in norms]


@torch.no_grad()
def moved_by_neighbours(kind: str) -> float:
    """How far the logits of one sequence move when the other sequences of its batch are exchanged."""
    model = build(Rung("", 0.0, norm=kind))
    batch = torch.randint(65, (8, 8))
    other = torch.cat((batch[:1], torch.randint(65, (7, 8))))
    return (model(batch)[0] - model(other)[0]).abs().max().item()


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. parameters of a LayerNorm of width 32": 2 * 32,
        "2. parameters of a block of the rung + LayerNorm": sum(
            each.numel() for each in Block(LADDER[5]).parameters()
        ),
        "3. blocks until a gradient that each halves is below a millionth": math.ceil(math.log2(1e6)),
    }


def main(quick: bool = False, seed: int = 1, seeds: int = 1) -> dict[str, float]:
    """Climb the ladder with one or more seeds, then look at gradients and norms; returns the figures."""
    print(f"{'':<24}{'lecture':>8}{'ours':>8}   lowest … highest of the seeds")
    text, losses = shakespeare(), {}
    for rung in LADDER:
        each = []
        for number in range(seeds):
            torch.manual_seed(seed + number)
            model, steps = build(rung, text.vocab_size), rung.steps // 20 if quick else rung.steps
            train(model, text, steps, length=rung.length, batch=rung.batch, rate=rung.rate)
            each.append(validation_loss(model, text, rung.length))
        losses[rung.name] = mean(each)
        row = f"{rung.name:<24}{rung.lecture:>8.2f}{losses[rung.name]:>8.3f}"
        print(f"{row}   {min(each):.3f} … {max(each):.3f}", flush=True)
    print("(the lecture's last figure: 10 million parameters on a GPU, as in configs/shakespeare_char.py)")

    torch.manual_seed(seed)
    residual, plain = gradient_by_depth(True), gradient_by_depth(False)
    print(
        f"gradient at block 0 of 12, relative to block 11: residuals {residual[0]:.1e}, none {plain[0]:.1e}"
    )
    layer, batch = moved_by_neighbours("layer"), moved_by_neighbours("batch")
    print(f"a sequence's logits move with its batch: LayerNorm {layer:.1e}, BatchNorm {batch:.2f}")

    figure, (left, middle, right) = panels(3, 15, 4.8, width_ratios=(5, 3, 1.6))
    left.plot([rung.lecture for rung in LADDER], "o--", color="grey", label="the lecture")
    left.plot(losses.values(), "o-", color="C0", linewidth=2, label="ours")
    for place, loss in enumerate(losses.values()):
        left.text(place, loss - 0.03, f"{loss:.2f}", ha="center", va="top", color="C0")
    left.set_xticks(range(len(LADDER)), [rung.name.replace(", ", ",\n") for rung in LADDER], rotation=20)
    finish(left, ylabel="validation loss, nats per character", title="one idea at a time")
    middle.semilogy(residual, "o-", color="C0", label="with residuals")
    middle.semilogy(plain, "o-", color="C3", label="without")
    finish(middle, xlabel="block", title="size of the gradient by depth,\nrelative to the last block")
    right.bar(("LayerNorm", "BatchNorm"), (layer, batch), color=("C0", "C3"))
    right.set(title="how far a sequence's\nlogits move with its batch")
    save(figure, __file__)
    return losses


if __name__ == "__main__":
    run(main, __doc__, exercises, seeds=1)
