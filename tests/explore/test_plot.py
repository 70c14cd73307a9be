"""plot.py: what the pictures say, and the command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.image import imread
from matplotlib.lines import Line2D
from support.explorers import NoAttention, make_explorer, save_run

import plot
from engine.explore.inspection import inspect

LINES = [
    {"kind": "eval", "step": 0, "tokens": 0, "seconds": 0.0, "train_loss": 4.0, "val_loss": 4.1},
    {"kind": "train", "step": 1, "tokens": 8, "seconds": 0.5, "loss": 3.5},
    {"kind": "train", "step": 2, "tokens": 16, "seconds": 1.0, "loss": None},  # it was not finite
    {"kind": "eval", "step": 2, "tokens": 16, "seconds": 1.0, "train_loss": 2.0, "val_loss": 2.5},
    {"kind": "train", "step": 3, "tokens": 24, "seconds": 1.5, "loss": 1.9},
    {"kind": "eval", "step": 4, "tokens": 32, "seconds": 2.0, "train_loss": 1.5, "val_loss": 2.75},
]


def write_run(folder: Path, lines: list[dict[str, Any]] = LINES) -> Path:
    """A run's folder with nothing but metrics."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def legend(axes: Axes) -> list[Line2D]:
    """The legend's lines, with the labels that stand beside them."""
    (found,) = axes.get_figure(root=True).legends
    lines = found.get_lines()
    assert [text.get_text() for text in found.get_texts()] == [line.get_label() for line in lines]
    return lines


def look(line: Line2D) -> tuple[float, str, float | None]:
    """What tells one kind of line from another."""
    return line.get_linewidth(), line.get_linestyle(), line.get_alpha()


@pytest.mark.parametrize(("x", "last"), [("step", 4), ("tokens", 32), ("seconds", 2.0)])
def test_the_legend_tells_validation_training_and_single_steps_apart(x: str, last: float) -> None:
    axes = plot.draw_losses({"mine": [LINES]}, x).axes[0]
    assert axes.get_title() == "Loss of mine" and axes.get_xlabel() == plot.AXES[x]
    run, *kinds = legend(axes)
    assert run.get_label() == "mine (best 2.500)" and {line.get_color() for line in kinds} == {"gray"}
    drawn = {look(line): line for line in axes.get_lines() if line.get_color() == run.get_color()}
    assert len(drawn) == 4
    assert {str(line.get_label()): [*drawn[look(line)].get_ydata()] for line in kinds} == {
        "validation": [4.1, 2.5, 2.75],
        "training": [4.0, 2.0, 1.5],
        "training, single steps": [3.5, 1.9],
        "best validation": [2.5, 2.5],
    }
    assert max(drawn[look(kinds[0])].get_xdata()) == last


def test_several_runs_have_a_colour_each_and_share_the_kinds_of_lines() -> None:
    better = [line | {"val_loss": 1.25} if line["kind"] == "eval" else line for line in LINES]
    silent = [line for line in LINES if line["kind"] == "train"]
    figure = plot.draw_losses({"one": [LINES], "two $\\x$": [better], "three": [silent]}, "step")
    figure.draw_without_rendering()  # nor is the name read as a formula
    axes = figure.axes[0]
    *runs, _, _, _, _ = legend(axes)
    assert axes.get_title() == "Loss of 3 runs"
    assert [run.get_label() for run in runs] == ["one (best 2.500)", "two $\\x$ (best 1.250)", "three"]
    colours = [line.get_color() for line in axes.get_lines()]
    assert [colours.count(run.get_color()) for run in runs] == [4, 4, 1]


def test_runs_that_differ_in_their_seed_alone_are_one_curve_with_a_band(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sweep's folder, whose runs are found by themselves."""
    monkeypatch.chdir(tmp_path)
    for rate in (0.1, 0.2):
        for seed in (1, 2, 3):
            lines = [line | {"val_loss": rate + seed} if "val_loss" in line else line for line in LINES]
            lines = lines if seed < 3 else [line for line in lines if line["step"] < 4]  # still under way
            run = write_run(Path(f"sweep/rate={rate},seed={seed}"), lines)
            settings = {"learning_rate": rate, "seed": seed, "out_dir": str(run)}
            (run / "config.json").write_text(json.dumps({"settings": settings}))
    other = write_run(Path("other"))  # what it was made with is unknown
    curves = plot.read_curves([Path("sweep"), other])
    assert [len(runs) for runs in curves.values()] == [3, 3, 1]
    again = shutil.copytree("sweep/rate=0.2,seed=3", Path("again"))  # made by other code, perhaps
    assert [len(runs) for runs in plot.read_curves([Path("sweep"), again]).values()] == [3, 3, 1]
    axes = plot.draw_losses(curves, "step").axes[0]
    first, _, _, *kinds = legend(axes)
    assert axes.get_title() == "Loss of 7 runs"
    assert first.get_label() == "sweep: rate=0.1, 3 seeds (best 2.100)"
    validation = next(line for line in axes.get_lines() if look(line) == look(kinds[0]))
    assert [*validation.get_xdata()] == [0, 2] and [*validation.get_ydata()] == pytest.approx([2.1, 2.1])
    figure = axes.get_figure(root=True)
    figure.draw_without_rendering()
    assert axes.get_window_extent().width > 0.8 * figure.bbox.width  # long names leave room for the curves
    bands = [band.get_datalim(axes.transData) for band in axes.collections]
    assert len(bands) == 4 and (bands[0].y0, bands[0].y1) == pytest.approx((1.1, 3.1))


def test_attention_is_drawn_with_its_tokens_and_a_title() -> None:
    explorer = make_explorer()
    text = "To be,\nnot"
    ids = torch.from_numpy(explorer.tokenizer.encode(text))
    attention = inspect(explorer.model, ids).attention
    figure = plot.draw_attention([*text], attention, "mine reads it")
    assert figure.get_suptitle() == "mine reads it"
    assert (figure.get_supylabel(), figure.get_supxlabel()) == ("token that looks", "token that is looked at")
    assert [axes.get_title() for axes in figure.axes] == [
        f"layer {layer}, head {head}" for layer in (1, 2) for head in (1, 2)
    ]
    axes = figure.axes[2]
    assert [label.get_text() for label in axes.get_yticklabels()] == [*"To·be,↵not"]
    shown = torch.from_numpy(axes.get_images()[0].get_array().data)
    torch.testing.assert_close(shown.square(), attention[1, 0])


def test_a_long_text_gets_numbers_in_place_of_tokens() -> None:
    figure = plot.draw_attention(["x"] * 30, torch.eye(30).expand(1, 1, 30, 30), "long")
    figure.draw_without_rendering()
    assert "20" in [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_the_command_draws_the_newest_run_and_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (write_run(Path("out/first")) / "checkpoints/step-00000004").mkdir(parents=True)
    plot.main([])
    assert imread("out/first/loss.png")[..., :3].std() > 0.05
    run = save_run(make_explorer(), write_run(Path("out/a model")))
    plot.main([str(run), "--attention", "To be, or <b>not</b>"])
    assert min(imread("out/a model/attention.png").shape[:2]) > 300
    plot.main(["out/first", "out/a model", "--output", "both.pdf", "--x", "tokens"])
    assert Path("both.pdf").read_bytes().startswith(b"%PDF")
    assert "drew out/first, out/a model to both.pdf" in capsys.readouterr().out


def test_wrong_commands_get_one_line(
    tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    explorer = make_explorer()
    run = str(save_run(explorer, write_run(Path("run"))))
    write_run(Path("empty"), [])
    assert "empty/metrics.jsonl has no figures yet" in fails(plot.main, "empty")
    assert "no/such.png cannot be written: No such file" in fails(plot.main, run, "--output", "no/such.png")
    assert "loss.xyz cannot be written: Format 'xyz'" in fails(plot.main, run, "--output", "loss.xyz")
    assert "--attention needs a text" in fails(plot.main, run, "--attention", "")
    assert "--attention draws one model" in fails(plot.main, run, run, "--attention", "To be")
    assert "is not among the" in fails(plot.main, run, "--attention", "漢")


def test_a_model_without_attention_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from engine.errors import UserError
    from engine.weights.pretrained import Pretrained

    run = save_run(make_explorer(), tmp_path / "run")
    model = make_explorer().model
    for block in model.blocks:
        block.attention = NoAttention()
    monkeypatch.setattr(Pretrained, "model", lambda *given, **options: model)
    with pytest.raises(UserError, match="run has no attention to draw"):
        plot.read_attention(run, "To be")
