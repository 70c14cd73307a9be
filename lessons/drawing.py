"""The pictures of all lessons: one style, and what several of them draw."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

PICTURES = Path(__file__).parent / "pictures"

# One style for all pictures, large enough to be read from the back of a room.
pyplot.rcParams.update(
    {
        "axes.prop_cycle": pyplot.cycler(
            color=["#2f6db3", "#e08a1e", "#2a9d6f", "#cf3f4f", "#7d5ba6", "#6b7280"]
        ),
        "axes.edgecolor": "#8a8f98",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 13,
        "axes.titleweight": "bold",
        "font.size": 12,
        "legend.frameon": False,
        "lines.linewidth": 2,
        "savefig.dpi": 120,
    }
)


def panels(count: int, width: float, height: float = 4.6, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure (inches) with `count` drawings side by side; options are those of pyplot.subplots."""
    figure, axes = pyplot.subplots(
        1, count, figsize=(width, height), layout="constrained", squeeze=False, **options
    )
    return figure, list(axes[0])


def finish(axes: Axes, **words: str) -> None:
    """A title and axis labels, a grid, and a legend where something has a label."""
    axes.set(**words)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def heat_map(axes: Axes, weights: Tensor, title: str, rows: str, columns: str | None = None) -> None:
    """Weights (T, S), 0 white and 1 blue, for the characters of `rows` and `columns` (None: the same)."""
    columns = rows if columns is None else columns
    axes.imshow(weights.detach().numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), columns.replace(" ", "␣"))
    axes.set_yticks(range(len(rows)), rows.replace(" ", "␣"))
    axes.set(title=title, xlabel="looks at", ylabel="position")


def arrows(axes: Axes, vectors: Tensor, title: str) -> None:
    """Vectors (N, 2) from one point, the longest of about 1."""
    for x, y in vectors.tolist():
        axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "C0", "lw": 2})
    axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
    finish(axes, title=title)


def signed(axes: Axes, pictures: Tensor, rows: int, title: str) -> None:
    """Pictures (N, H, W) in so many rows, red below 0 and blue above, with a white line around each."""
    limit = 3 * pictures.std()
    framed = F.pad(pictures, (1, 1, 1, 1), value=math.nan)
    H, W = framed.shape[1:]
    one = framed.view(rows, -1, H, W).transpose(1, 2).reshape(rows * H, -1)
    axes.imshow(one.numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set_title(title)
    axes.axis("off")


def in_squares(axes: Axes, numbers: np.ndarray, title: str, frames: tuple) -> None:
    """Numbers (rows, columns), the larger the bluer, and frames: first row and column, rows, columns."""
    axes.imshow(numbers, cmap="Blues", vmin=-numbers.max() / 4, vmax=1.75 * numbers.max())
    for (row, column), number in np.ndenumerate(numbers):
        axes.text(column, row, number, ha="center", va="center")
    for (row, column, rows, columns), color in zip(frames, ("C1", "C3"), strict=True):
        place = (column - 0.46, row - 0.46)
        frame = dict(fill=False, linewidth=3, edgecolor=color)
        axes.add_patch(pyplot.Rectangle(place, columns - 0.08, rows - 0.08, **frame))
    axes.set_title(title)
    axes.axis("off")


def written_out(axes: Axes, title: str, lines: list[str], fontsize: float = 14) -> None:
    """Lines of text in the place of a drawing, all characters of the same width; line breaks show as ↵."""
    shown = "\n".join(line.replace("\n", "↵") for line in lines)
    axes.text(0, 0.97, shown, family="monospace", va="top", fontsize=fontsize, linespacing=1.7)
    axes.set_title(title)
    axes.axis("off")


def draw_graph(axes: Axes, order: list[Any], names: dict[Any, str]) -> None:
    """Values, each before what it was made from, as boxes from right to left, with number and gradient.

    A value has `inputs` (pairs of a value and a slope), `data`, `grad` and `sign`; the given ones have names.
    """
    column, row = {order[0]: 0}, {}
    for each in order:
        for other, _ in each.inputs:
            column[other] = max(column.get(other, 0), column[each] + 1)
    for each in reversed(order):  # those that were given one below the other, the others between their inputs
        places = [row[other] for other, _ in each.inputs]
        row[each] = sum(places) / len(places) if places else -sum(not other.inputs for other in row)
    for each in order:
        place = (-column[each], row[each])
        for other, _ in each.inputs:
            arrow = dict(arrowstyle="-|>", color="#8a8f98", shrinkA=34, shrinkB=34)
            axes.annotate("", place, (-column[other], row[other]), arrowprops=arrow)
        color = "#dbe7f5" if each.inputs else "#fbe9cf"
        text = f"{each.sign or names[each]}\n{each.data:.3f}\ngradient {each.grad:.2f}"
        box = dict(boxstyle="round", fc=color, ec="#8a8f98")
        axes.text(*place, text, ha="center", va="center", fontsize=10, bbox=box)
    axes.set(xlim=(-max(column.values()) - 0.5, 0.5), ylim=(min(row.values()) - 0.5, 0.5))
    axes.axis("off")


def two_sides(axes: Axes, says: Callable[[Tensor, Tensor], Tensor], examples: list) -> None:
    """Where a network says more than 0 and where less; and examples, a place and a label 1 or -1 each."""
    x, y = torch.meshgrid(torch.linspace(-1.6, 2.6, 120), torch.linspace(-1.2, 1.7, 120), indexing="xy")
    sides = says(x, y).detach()
    axes.contourf(x, y, sides, levels=(-1e9, 0, 1e9), colors=("#dbe7f5", "#fbe9cf"))
    for label, color in ((-1, "C0"), (1, "C1")):
        axes.plot(*zip(*(place for place, side in examples if side == label), strict=True), "o", color=color)
    axes.set(xticks=(), yticks=())


def curve(axes: Axes, losses: list[float], label: str, color: str | None = None) -> None:
    """The losses of a training over the share of its steps, as the means of 30 stretches."""
    length = max(1, len(losses) // 30)
    means = torch.tensor(losses).unfold(0, length, length).mean(dim=1)
    axes.plot(torch.linspace(0, 1, len(means)), means, color=color, label=label)


def save(figure: Figure, lesson: str) -> None:
    """Write lessons/pictures/PART/LESSON.png for a lesson's __file__, say so, and close the figure."""
    source = Path(lesson)
    path = PICTURES / source.parent.name / f"{source.stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
    print(f"picture: {os.path.relpath(path)}")
