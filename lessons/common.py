"""What every lesson needs and none is about: text, batches, training, losses, pictures, the command line."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python lessons/1_bigram.py` finds model.py and engine/

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import torch  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from engine.command_line import run_script  # noqa: E402
from engine.data.dataset import open_dataset  # noqa: E402
from engine.text.tokenizer import Tokenizer  # noqa: E402

PICTURES = ROOT / "lessons" / "pictures"


@dataclass(frozen=True)
class Text:
    """A text as character ids: the part to learn from, the part to be judged on."""

    tokenizer: Tokenizer
    train: Tensor
    val: Tensor

    @property
    def vocab_size(self) -> int:
        """V, the number of different characters."""
        return self.tokenizer.vocab_size


def shakespeare() -> Text:
    """data/shakespeare_char, as `prepare.py shakespeare_char` writes it; UserError where it is missing."""
    data = open_dataset("shakespeare_char", block_size=64)
    train, val = (torch.from_numpy(split.read(0, split.tokens)) for split in (data.train, data.val))
    return Text(data.tokenizer, train, val)


class Embeddings(nn.Module):
    """What a character is, plus where it stands: ids (B, T) to (B, T, C)."""

    def __init__(self, vocab_size: int, length: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(length, width)

    def forward(self, ids: Tensor) -> Tensor:
        """The sum of both."""
        return self.token(ids) + self.position(torch.arange(ids.shape[1]))


class Counts:
    """A model without training: how often each character follows the last three, two, one and none."""

    def __init__(self, text: Text) -> None:
        self.V, self.tables = text.vocab_size, []
        for order in range(4):
            length = len(text.train) - order
            index = sum(text.train[i : i + length] * self.V ** (order - i) for i in range(order + 1))
            self.tables.append(torch.bincount(index, minlength=self.V ** (order + 1)).view(-1, self.V))

    def logits(self, ids: list[int]) -> Tensor:
        """Log-probabilities (V,) of what follows. A context seen n times counts n / (n + 3) of the whole."""
        blend = torch.full((self.V,), 1 / self.V, dtype=torch.float64)
        for order, table in enumerate(self.tables):
            row = table[sum(ids[i - order] * self.V ** (order - 1 - i) for i in range(order))]
            blend = (row + 3 * blend) / (row.sum() + 3)
        return blend.log()


def stretches(ids: Tensor, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Random stretches of a text: inputs and targets, each (B, T), the targets one character on."""
    starts = torch.randint(len(ids) - length, (batch, 1))
    rows = ids[starts + torch.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:]


def descend(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float | None = None
) -> None:
    """One step down the gradient of the loss; a gradient longer than `clip` is shortened to it."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def train(
    model: nn.Module, text: Text, steps: int, *, length: int, batch: int = 32, rate: float = 1e-3
) -> list[float]:
    """AdamW on random batches, the rate falling to nothing over the last third; the loss of every step.

    The model turns ids (B, T) into logits (B, T, V).
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 3 * (steps - step) / steps)
        ids, targets = stretches(text.train, batch, length)
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        descend(model, optimizer, loss)
        losses.append(loss.item())
    return losses


@torch.no_grad()
def validation_loss(model: nn.Module, text: Text, length: int) -> float:
    """Mean loss in nats over the validation part, cut into windows of `length`."""
    windows = (len(text.val) - 1) // length
    ids = text.val[: windows * length].view(windows, length)
    targets = text.val[1 : windows * length + 1].view(windows, length)
    model.eval()
    total = 0.0
    for some_ids, some_targets in zip(ids.split(2048), targets.split(2048), strict=True):
        logits = model(some_ids).flatten(0, 1)
        total += F.cross_entropy(logits, some_targets.flatten(), reduction="sum").item()
    model.train()
    return total / ids.numel()


@torch.no_grad()
def write(model: nn.Module, text: Text, count: int, length: int) -> str:
    """`count` characters drawn from the model one after the other, beginning after a line break."""
    ids = torch.tensor(text.tokenizer.encode("\n"))[None]
    model.eval()
    for _ in range(count):
        probabilities = model(ids[:, -length:])[:, -1].softmax(dim=-1)
        ids = torch.cat((ids, torch.multinomial(probabilities, 1)), dim=1)
    model.train()
    return text.tokenizer.decode(ids[0, 1:].tolist())


def panels(count: int, width: float, height: float = 4.6, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure (inches) with `count` drawings side by side; options are those of pyplot.subplots."""
    figure, axes = pyplot.subplots(
        1, count, figsize=(width, height), layout="constrained", squeeze=False, **options
    )
    return figure, list(axes[0])


def finish(axes: Axes, **words: str) -> None:
    """A title and axis labels, a grid, and a legend where something has a label."""
    axes.set(**words)
    axes.grid(alpha=0.3, which="both")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def heat_map(axes: Axes, weights: Tensor, title: str, rows: str, columns: str | None = None) -> None:
    """Weights (T, S), 0 white and 1 blue, for the characters of `rows` and `columns` (None: the same)."""
    columns = rows if columns is None else columns
    axes.imshow(weights.detach().numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), columns.replace(" ", "␣"))
    axes.set_yticks(range(len(rows)), rows.replace(" ", "␣"))
    axes.set(title=title, xlabel="looks at", ylabel="position")


def save(figure: Figure, name: str) -> None:
    """Write lessons/pictures/NAME.png, say so, and close the figure."""
    PICTURES.mkdir(exist_ok=True)
    path = PICTURES / f"{name}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"picture: {path.relative_to(ROOT)}")


def run(main: Callable[..., dict[str, float]], description: str, **numbers: int) -> None:
    """Run a lesson as a command: --quick, --seed N, and further options that take a number."""

    def command(arguments: list[str]) -> None:
        """Read the options and hand them to the lesson."""
        parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
        for name, default in ({"seed": 1} | numbers).items():
            parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
        main(**vars(parser.parse_args(arguments)))

    run_script(command)
