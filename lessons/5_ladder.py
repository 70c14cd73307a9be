"""Lesson 5. The ladder to a GPT: add one idea at a time and see what each is worth.

Attention moves information between positions; an MLP then works on it at each position. Adding to the input
instead of replacing it (residuals) gives the gradient a straight way through all layers, and normalising each
position (LayerNorm) keeps the numbers in a range where that works. Then only size, context and dropout are
left.

    python lessons/5_ladder.py              (two minutes)
    python lessons/5_ladder.py --seeds 3    (the table of the reading guide)

After "Let's build GPT" (Karpathy, 2023), whose figures stand beside ours. Residuals: He et al. (2016);
LayerNorm: Ba et al. (2016), before the layer: Xiong et al. (2020); BatchNorm: Ioffe and Szegedy (2015);
dropout: Srivastava et al. (2014).
"""

import statistics
from dataclasses import dataclass

import torch
from common import run, save, shakespeare, train, validation_loss
from matplotlib import pyplot
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: what is there, and the lecture's validation loss."""

    name: str
    lecture: float
    heads: int = 0
    mlp: bool = False
    residual: bool = False
    norm: str | None = None
    layers: int = 1
    width: int = 32
    length: int = 8
    dropout: float = 0.0
    steps: int = 5000
    batch: int = 32


LADDER = (
    Rung("bigram", 2.5, heads=0),
    Rung("one head", 2.4, heads=1),
    Rung("four heads", 2.28, heads=4),
    Rung("+ MLP", 2.24, heads=4, mlp=True),
    Rung("+ residuals, 3 blocks", 2.08, heads=4, mlp=True, residual=True, layers=3),
    Rung("+ LayerNorm", 2.06, heads=4, mlp=True, residual=True, layers=3, norm="layer"),
    Rung(
        "+ size and dropout", 1.48, heads=4, mlp=True, residual=True, norm="layer",
        layers=4, width=64, length=64, dropout=0.05, steps=1500, batch=16,
    ),
)  # fmt: skip


class PositionNorm(nn.Module):
    """LayerNorm: each position by its own mean and deviation. BatchNorm: each channel by those of the whole
    batch.
    """

    def __init__(self, kind: str | None, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.norm = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d, None: nn.Identity}[kind](width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.norm(x.transpose(1, 2)).transpose(1, 2) if self.kind == "batch" else self.norm(x)


class Block(nn.Module):
    """Heads, then perhaps an MLP, each perhaps with a norm before it and a residual around it."""

    def __init__(self, rung: Rung) -> None:
        super().__init__()
        C = rung.width
        self.rung = rung
        self.norms = nn.ModuleList(PositionNorm(rung.norm, C) for _ in range(2))
        self.qkv = nn.Linear(C, 3 * C, bias=False)
        self.out = nn.Linear(C, C) if rung.residual else nn.Identity()
        inner = 4 * C if rung.residual else C
        self.mlp = nn.Sequential(
            nn.Linear(C, inner), nn.ReLU(), nn.Linear(inner, C) if rung.residual else nn.Identity()
        )
        self.dropout = nn.Dropout(rung.dropout)

    def attend(self, x: Tensor) -> Tensor:
        """Causal attention with all heads, (B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        query, key, value = self.qkv(x).view(B, T, 3, self.rung.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.dropout(self.out(mixed.transpose(1, 2).reshape(B, T, C)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        kept = 1.0 if self.rung.residual else 0.0
        x = kept * x + self.attend(self.norms[0](x))
        return kept * x + self.dropout(self.mlp(self.norms[1](x))) if self.rung.mlp else x


class LadderModel(nn.Module):
    """Embeddings, blocks, a head; without heads it is the bigram table."""

    def __init__(self, rung: Rung, vocab_size: int) -> None:
        super().__init__()
        self.rung = rung
        if rung.heads == 0:
            self.table = nn.Embedding(vocab_size, vocab_size)
            return
        self.token_embedding = nn.Embedding(vocab_size, rung.width)
        self.position_embedding = nn.Embedding(rung.length, rung.width)
        self.blocks = nn.Sequential(*(Block(rung) for _ in range(rung.layers)))
        self.final_norm = PositionNorm(rung.norm, rung.width)
        self.head = nn.Linear(rung.width, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, T) to logits (B, T, V)."""
        if self.rung.heads == 0:
            return self.table(ids)
        x = self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1]))
        return self.head(self.final_norm(self.blocks(x)))


def climb(rung: Rung, seed: int, quick: bool) -> float:
    """Train one rung; its validation loss. The table and the large one bear higher learning rates."""
    torch.manual_seed(seed)
    text = shakespeare()
    model = LadderModel(rung, text.vocab_size)
    rate = 1e-1 if rung.heads == 0 else 1e-3 if rung.length == 8 else 4e-3
    steps = rung.steps // 20 if quick else rung.steps
    train(model, text, steps, length=rung.length, batch=rung.batch, rate=rate)
    return validation_loss(model, text, rung.length)


def gradient_by_depth(residual: bool, depth: int = 12) -> list[float]:
    """Norm of the loss's gradient at the output of each of `depth` fresh blocks, over the last one's."""
    rung = Rung("", 0.0, heads=4, mlp=True, residual=residual, layers=depth)
    model = LadderModel(rung, 65)
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, arguments, output: outputs.append(output))
    ids = torch.randint(65, (16, rung.length))
    loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    norms = [gradient.norm().item() for gradient in torch.autograd.grad(loss, outputs)]
    return [norm / norms[-1] for norm in norms]


def moved_by_neighbours(kind: str) -> float:
    """How far the logits of one sequence move when the other sequences of its batch are exchanged."""
    rung = Rung("", 0.0, heads=4, mlp=True, residual=True, norm=kind, layers=3)
    model = LadderModel(rung, 65)
    batch = torch.randint(65, (8, rung.length))
    other = torch.cat((batch[:1], torch.randint(65, (7, rung.length))))
    with torch.no_grad():
        return (model(batch)[0] - model(other)[0]).abs().max().item()


def main(quick: bool = False, seed: int = 1, seeds: int = 1) -> dict[str, float]:
    """Climb the ladder with one or more seeds, then look at gradients and norms; returns the figures."""
    print(f"{'':<24}{'lecture':>8}{'ours':>8}" + ("   lowest … highest of the seeds" if seeds > 1 else ""))
    losses: dict[str, list[float]] = {}
    for rung in LADDER:
        losses[rung.name] = [climb(rung, seed + number, quick) for number in range(seeds)]
        spread = f"   {min(losses[rung.name]):.3f} … {max(losses[rung.name]):.3f}" if seeds > 1 else ""
        print(
            f"{rung.name:<24}{rung.lecture:>8.2f}{statistics.mean(losses[rung.name]):>8.3f}{spread}",
            flush=True,
        )
    print("(the lecture's last figure: 10 million parameters on a GPU, as in configs/shakespeare_char.py)")

    torch.manual_seed(seed)
    gradients = {"residuals": gradient_by_depth(True), "none": gradient_by_depth(False)}
    print(
        "gradient at block 0 of 12, relative to block 11: "
        + ", ".join(f"{k} {v[0]:.1e}" for k, v in gradients.items())
    )
    moved = {kind: moved_by_neighbours(kind) for kind in ("layer", "batch")}
    print(
        f"a sequence's logits move with its batch: LayerNorm {moved['layer']:.1e}, "
        f"BatchNorm {moved['batch']:.2f}"
    )
    draw(losses, gradients, moved)
    return {name: statistics.mean(values) for name, values in losses.items()} | {
        "gradient_with": gradients["residuals"][0],
        "gradient_without": gradients["none"][0],
        "moved_layer": moved["layer"],
        "moved_batch": moved["batch"],
    }


def draw(losses: dict[str, list[float]], gradients: dict[str, list[float]], moved: dict[str, float]) -> None:
    """The ladder beside the lecture's, the gradients by depth, and the two norms."""
    figure, (left, middle, right) = pyplot.subplots(
        1, 3, figsize=(15, 4.8), layout="constrained", width_ratios=(5, 3, 1.6)
    )
    places = range(len(LADDER))
    means = [statistics.mean(losses[rung.name]) for rung in LADDER]
    left.plot(places, [rung.lecture for rung in LADDER], "o--", color="grey", label="the lecture")
    left.plot(places, means, "o-", color="C0", linewidth=2, label="ours")
    for place, mean in zip(places, means, strict=True):
        left.annotate(
            f"{mean:.2f}",
            (place, mean),
            xytext=(-4, -17),
            textcoords="offset points",
            ha="center",
            color="C0",
        )
    left.set_xticks(places, [rung.name.replace(", ", ",\n") for rung in LADDER], rotation=20)
    left.set(ylabel="validation loss, nats per character", title="one idea at a time")
    left.legend()
    for (name, values), color in zip(gradients.items(), ("C0", "C3"), strict=True):
        middle.semilogy(
            values, "o-", color=color, label="with residuals" if name == "residuals" else "without"
        )
    middle.set(xlabel="block", title="size of the gradient by depth,\nrelative to the last block")
    middle.grid(alpha=0.3)
    middle.legend()
    right.bar(("LayerNorm", "BatchNorm"), (moved["layer"], moved["batch"]), color=("C0", "C3"))
    right.set(title="how far a sequence's\nlogits move with its batch")
    save(figure, "5_ladder")
    pyplot.close(figure)


if __name__ == "__main__":
    run(main, __doc__, seeds=1)
