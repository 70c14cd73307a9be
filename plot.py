"""Draw the loss curves of one or several runs, or a model's attention, to a PNG.

    python plot.py                                        the newest run, to out/NAME/loss.png
    python plot.py out/shakespeare_char out/shakespeare_char-2 --output compare.png --x seconds
    python plot.py out/sweep-tiny                         all runs of a sweep
    python plot.py out/shakespeare_char --attention "ROMEO:"    where each head looks: attention.png

Thick, with points: validation loss. Dashed: training loss, evaluated in the same way. Thin: training loss of
single steps. Dotted: the best validation loss. Runs that differ in their seed alone are one curve, their
mean, with a band from the lowest to the highest of them.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from textwrap import fill, shorten
from typing import Any

from engine.command_line import Parser, read_early, run_script
from engine.errors import UserError

Lines = list[dict[str, Any]]  # of a metrics.jsonl
OF_ONE_RUN = ("seed", "out_dir", "init_from", "checkpoint", "wandb_run_name", "device")
AXES = {"step": "step", "tokens": "tokens", "seconds": "training time in seconds"}
# The curves of a run: how the legend calls them, kind and key in metrics.jsonl, and how they are drawn.
CURVES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("validation", "eval", "val_loss", {"linewidth": 2.5, "marker": "o", "markersize": 4, "zorder": 3}),
    ("training", "eval", "train_loss", {"linewidth": 1.5, "linestyle": "--", "zorder": 3}),
    ("training, single steps", "train", "loss", {"linewidth": 0.8, "alpha": 0.5}),
)
BEST: dict[str, Any] = {"linewidth": 1, "linestyle": ":"}
MAX_TOKENS = 256  # of a text whose attention is drawn
LEGIBLE = 24  # tokens that can be written along an axis; longer texts get numbers


def read_options(arguments: Sequence[str]) -> Namespace:
    """The command line, checked. Raises UserError."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("runs", nargs="*", type=Path, help="folders of runs or sweeps (default: the newest run in out/)")
    written = "the PNG to write (default: loss.png or attention.png in the first run's folder)"
    add("--output", type=Path, metavar="FILE", help=written)
    add("--x", choices=tuple(AXES), default="step", help="the horizontal axis (default: step)")
    add("--attention", metavar="TEXT", help="draw where each head looks while the model reads TEXT")
    options = parser.parse_args(arguments)
    if options.attention is not None and len(options.runs) > 1:
        raise UserError("--attention draws one model; name one run")
    if options.attention == "":
        raise UserError("--attention needs a text for the model to read")
    return options


# Above the slow imports, so that --help and mistakes are answered at once.
OPTIONS = read_early(read_options) if __name__ == "__main__" else None

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from engine.runs import newest_run, similar_run
from engine.training.metrics import read_metrics


def main(arguments: Sequence[str]) -> None:
    """Draw as a command line says."""
    plot(read_options(arguments))


def plot(options: Namespace) -> None:
    """Read runs or a model, and draw them."""
    runs = options.runs or [newest_run("to draw")]
    if options.attention is None:
        output = options.output or runs[0] / "loss.png"
        save(draw_losses(read_curves(runs), options.x), output)
        print(f"drew {', '.join(map(str, runs))} to {output}")
    else:
        output = options.output or (runs[0] if runs[0].is_dir() else Path()) / "attention.png"
        tokens, attention = read_attention(runs[0], options.attention)
        title = f"{runs[0]} reads “{shorten(options.attention, 40, placeholder=' …')}”"
        save(draw_attention(tokens, attention, title), output)
        print(f"drew the attention of {runs[0]} to {output}")


def read_curves(folders: Sequence[Path]) -> dict[str, list[Lines]]:
    """The metrics of runs by curve: those that differ in their seed alone. Raises UserError."""
    groups: dict[str, dict[Any, Path]] = {}
    names: dict[Path, str] = {}
    for folder in folders:
        swept = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
        names |= {run: name_in_sweep(run, swept) for run in swept} or {folder: str(folder)}
    for run in names:
        shared, seed = split_settings(run)
        if seed in groups.get(shared, {}):  # other code, perhaps: a curve of its own
            shared = str(run)
        groups.setdefault(shared, {})[seed] = run
    curves = {}
    for group in groups.values():
        first, *more = group.values()
        name = f"{names[first]}, {len(group)} seeds" if more else names[first]
        curves[str(first) if name in curves else name] = [read_run(run) for run in (first, *more)]
    return curves


def name_in_sweep(run: Path, swept: Sequence[Path]) -> str:
    """The sweep's folder, and the settings in the run's name that others do not share."""
    shared = set.intersection(*(set(other.name.split(",")) for other in swept))
    own = [part for part in run.name.split(",") if part not in shared and not part.startswith("seed=")]
    return f"{run.parent}: {', '.join(own)}" if own else str(run.parent)


def split_settings(run: Path) -> tuple[str, Any]:
    """The settings that runs with other seeds share, as text (if unknown, the run's name); the seed."""
    try:
        settings = json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]
        shared = [(name, value) for name, value in settings.items() if name not in OF_ONE_RUN]
        return str(shared), settings["seed"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return str(run), None


def read_run(run: Path) -> Lines:
    """The lines of a run's metrics.jsonl. Raises UserError where it holds none."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run} holds no run: there is no {path}{similar_run(str(run))}")
    lines = read_metrics(path)
    if not lines:
        raise UserError(f"{path} has no figures yet")
    return lines


def draw_losses(curves: dict[str, list[Lines]], x: str) -> Figure:
    """The losses over `x`, a key of AXES; a curve is one run or several seeds of it."""
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots()
    handles = []  # the legend's lines: a colour for each run, then what the kinds of lines mean
    for number, (name, runs) in enumerate(curves.items()):
        best = draw_curve(axes, runs, x, f"C{number}")
        label = name if best is None else f"{name} (best {best:.3f})"
        handles.append(Line2D([], [], color=f"C{number}", linewidth=5, label=fill(label, 60)))
    for label, style in [(curve[0], curve[3]) for curve in CURVES] + [("best validation", BEST)]:
        handles.append(Line2D([], [], color="gray", label=label, **style))
    for text in figure.legend(handles=handles, loc="outside lower center", ncols=2).get_texts():
        text.set_parse_math(False)  # a $ in a run's name is a $
    number = sum(len(runs) for runs in curves.values())
    title = f"Loss of {number} runs" if len(curves) > 1 else f"Loss of {next(iter(curves))}"
    axes.set_title(fill(title, 80), parse_math=False)
    axes.set_xlabel(AXES[x])
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    return figure


def draw_curve(axes: Axes, runs: list[Lines], x: str, color: str) -> float | None:
    """Draw the losses of a run, or of seeds of it; returns the best validation loss."""
    best = None
    for _, kind, key, style in CURVES:
        at, losses = points(runs, kind, x, key)
        if at:
            means = [fmean(seeds) for seeds in losses]
            axes.plot(at, means, color=color, **style)
            if len(runs) > 1 and kind == "eval":
                lowest, highest = [min(seeds) for seeds in losses], [max(seeds) for seeds in losses]
                axes.fill_between(at, lowest, highest, color=color, alpha=0.2, linewidth=0)
            if key == "val_loss":
                best = min(means)
                axes.axhline(best, color=color, **BEST)
    return best


def points(runs: list[Lines], kind: str, x: str, y: str) -> tuple[list[float], list[list[float]]]:
    """The points that all runs have: positions on the x-axis, and the values of each run there."""
    found: dict[int, list[tuple[Any, Any]]] = {}
    for line in (line for lines in runs for line in lines if line.get("kind") == kind):
        pair = line.get(x), line.get(y)
        if all(isinstance(number, int | float) for number in pair):
            found.setdefault(line["step"], []).append(pair)
    shared = [pairs for _, pairs in sorted(found.items()) if len(pairs) == len(runs)]
    at = [fmean(first for first, _ in pairs) for pairs in shared]
    return at, [[second for _, second in pairs] for pairs in shared]


def read_attention(source: Path, text: str) -> tuple[list[str], Any]:
    """The first tokens of a text, and the weights (L, H, T, T). Raises UserError."""
    # These bring torch, which loss curves do without.
    import torch

    from engine.explore.inspection import inspect
    from engine.text.tokenizer import encode_prompt
    from engine.weights.pretrained import read_pretrained

    found = read_pretrained(str(source))
    model, tokenizer = found.model(dtype=torch.float32), found.known_tokenizer()
    ids = encode_prompt(tokenizer, text)[: min(model.config.block_size, MAX_TOKENS)]
    attention = inspect(model, torch.from_numpy(ids)).attention
    if not len(attention):
        raise UserError(f"{source} has no attention to draw")
    return [tokenizer.decode([index]) for index in ids], attention


def draw_attention(tokens: Sequence[str], attention: Any, title: str) -> Figure:
    """A heat map for each layer and head: rows are positions that look, columns what they see."""
    layers, heads, T, _ = attention.shape
    size = 2.4 if T > LEGIBLE else 0.8 + 0.12 * T  # inches of one map
    figure = Figure(figsize=(max(4, size * heads + 0.4), size * layers + 0.7), layout="constrained")
    panels = figure.subplots(layers, heads, squeeze=False)
    signs = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥"})
    for layer, row in enumerate(panels):
        for head, axes in enumerate(row):
            # The root of a weight is shown, so that small ones are seen.
            axes.imshow(attention[layer, head].sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
            axes.tick_params(labelsize=7)
            if T <= LEGIBLE:
                labels = [token.translate(signs) for token in tokens]
                axes.set_xticks(range(T), labels, parse_math=False)
                axes.set_yticks(range(T), labels, parse_math=False)
    figure.suptitle(title, parse_math=False)
    figure.supxlabel("token that is looked at", fontsize=9)
    figure.supylabel("token that looks", fontsize=9)
    return figure


def save(figure: Figure, output: Path) -> None:
    """Write the picture. Raises UserError where it cannot be written."""
    try:
        figure.savefig(output, dpi=150)
    except (OSError, ValueError) as error:  # matplotlib does not know every ending
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{output} cannot be written: {reason}") from error


if __name__ == "__main__":
    run_script(plot, OPTIONS)
