"""Draw the loss curves of one or several runs, or a model's attention, to a PNG.

    python plot.py                                        the newest run, to out/NAME/loss.png
    python plot.py out/shakespeare_char out/shakespeare_char-2 --output compare.png --x seconds
    python plot.py out/shakespeare_char --attention "ROMEO:"    where each head looks: attention.png

Thin lines: training loss of single steps. Thick lines with points: evaluations (dashed: training split).
"""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.command_line import Parser, run_script
from engine.errors import UserError

AXES = {"step": "step", "tokens": "tokens", "seconds": "training time in seconds"}


def main(arguments: Sequence[str]) -> None:
    """Read the runs' metrics and draw them."""
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs; none: the newest in out/")
    parser.add_argument(
        "--output", type=Path, help="the PNG to write (default: loss.png in the first run's folder)"
    )
    parser.add_argument(
        "--x", choices=tuple(AXES), default="step", help="the horizontal axis (default: step)"
    )
    parser.add_argument(
        "--attention", metavar="TEXT", help="draw where each head looks while the model reads TEXT"
    )
    options = parser.parse_args(arguments)
    if options.attention is not None:
        runs = options.runs or newest_run()
        output = options.output or (runs[0] if runs[0].is_dir() else Path()) / "attention.png"
        draw_attention(runs[0], options.attention, output)
        print(f"drew the attention of {runs[0]} to {output}")
        return

    from engine.training.metrics import read_metrics

    runs = options.runs or newest_run()
    curves = {}
    for run in runs:
        path = run / "metrics.jsonl"
        if not path.is_file():
            raise UserError(f"{run} holds no run: there is no {path}")
        curves[str(run)] = read_metrics(path)
        if not curves[str(run)]:
            raise UserError(f"{path} has no figures yet")
    output = options.output or runs[0] / "loss.png"
    draw(curves, options.x, output)
    print(f"drew {', '.join(curves)} to {output}")


def newest_run() -> list[Path]:
    """The run in out/ whose metrics were written last."""
    found = sorted(Path("out").glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(
            "there is no run in out/ to draw; train one: python train.py configs/shakespeare_char.py"
        )
    return [found[-1].parent]


def draw(curves: dict[str, list[dict[str, Any]]], axis: str, output: Path) -> None:
    """Write the picture: one colour a run, no display needed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    for number, (name, lines) in enumerate(curves.items()):
        color = f"C{number}"
        for kind, key, style in (
            ("train", "loss", {"alpha": 0.35, "linewidth": 1}),
            ("eval", "train_loss", {"linestyle": "--", "linewidth": 1.5}),
            ("eval", "val_loss", {"marker": "o", "markersize": 3, "linewidth": 2, "label": name}),
        ):
            points = [
                (line[axis], line[key])
                for line in lines
                if line.get("kind") == kind and line.get(key) is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, **style)
        best = min((line["val_loss"] for line in lines if line.get("val_loss") is not None), default=None)
        if best is not None:
            axes.axhline(best, color=color, linestyle=":", linewidth=1)
            axes.annotate(
                f"{best:.3f}", (1, best), xycoords=("axes fraction", "data"), color=color, va="center"
            )
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, output)


def draw_attention(run: Path, text: str, output: Path) -> None:
    """Write one heat map for each layer and head: rows look, columns are looked at."""
    import matplotlib
    import torch

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from engine.explore.inspection import inspect
    from engine.text.tokenizer import encode_prompt
    from engine.weights.pretrained import read_pretrained

    if not text:
        raise UserError("--attention needs a text for the model to read")
    found = read_pretrained(str(run))
    model, tokenizer = found.model(dtype=torch.float32), found.known_tokenizer()
    config = model.config
    ids = encode_prompt(tokenizer, text)[: min(config.block_size, 256)]
    attention = inspect(model, torch.from_numpy(ids)).attention  # (L, H, T, T)
    names = [
        tokenizer.decode([index]).replace(" ", "·").replace("\n", "↵").replace("$", r"\$") for index in ids
    ]
    size = 2.4 if len(ids) > 24 else 0.8 + 0.12 * len(ids)
    figure, panels = pyplot.subplots(
        config.n_layer,
        config.n_head,
        figsize=(size * config.n_head, size * config.n_layer + 0.3),
        layout="constrained",
        squeeze=False,
    )
    for layer, row in enumerate(panels):
        for head, axes in enumerate(row):
            axes.imshow(attention[layer, head].sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
            legible = names if len(ids) <= 24 else []
            axes.set_xticks(range(len(legible)), legible, fontsize=7)
            axes.set_yticks(range(len(legible)), legible, fontsize=7)
    save_figure(figure, output)


def save_figure(figure: Any, output: Path) -> None:
    """Write the PNG and let the figure go. Raises UserError where it cannot be written."""
    from matplotlib import pyplot

    try:
        figure.savefig(output, dpi=150)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}") from error
    finally:
        pyplot.close(figure)


if __name__ == "__main__":
    run_script(main)
