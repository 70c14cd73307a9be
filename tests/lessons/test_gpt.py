"""Part 3, from a table to GPT: what each lesson claims holds, with few steps, and with all where asked.

    LESSONS=full python -m pytest tests/lessons      every lesson whole, against its figures (minutes)

The quick tests learn from English text that every Python carries; the figures are those of tiny Shakespeare.
"""

import math
from pathlib import Path

import pytest
import torch
from support.commands import ROOT, TEXT
from support.lessons import hold, learn, lesson, only_in_full

from engine.preparation.recipes import TINY_SHAKESPEARE


def test_the_bigram_begins_at_ln_v_and_ends_at_the_counted_table(place: Path) -> None:
    figures = learn("3_gpt/1_bigram", place)
    assert figures["at_start"] == pytest.approx(math.log(len(set(TEXT))), abs=0.02)
    assert figures["counted"] <= figures["learned"] < figures["counted"] + 0.05
    assert figures["apart"] < 0.1


def test_three_ways_to_average_are_equal_and_see_no_future(place: Path) -> None:
    figures = learn("3_gpt/2_averaging", place)
    assert max(figures["matrix_error"], figures["softmax_error"]) < 1e-6
    assert figures["leak"] == 0


def test_scores_divided_by_the_root_keep_their_variance_and_the_weights_their_entropy(place: Path) -> None:
    figures = learn("3_gpt/3_one_head", place)
    assert figures["variance_scaled"] == pytest.approx(1, rel=0.1)
    assert figures["variance_without"] == pytest.approx(256, rel=0.1)
    assert figures["entropy_scaled"] > 2.8 and figures["entropy_without"] < 0.5
    assert figures["largest_ahead"] == 0 and figures["row_error"] < 1e-5
    assert figures["loss"] < 3.3


def test_heads_side_by_side_are_the_batched_form(place: Path) -> None:
    figures = learn("3_gpt/4_many_heads", place)
    assert figures["difference"] < 1e-14
    assert figures["loss"] < 3.3


def test_residuals_carry_the_gradient_and_layer_norm_knows_no_neighbours(place: Path) -> None:
    ladder = lesson("3_gpt/5_ladder")
    torch.manual_seed(1)
    assert ladder.gradient_by_depth(True)[0] > 0.5
    assert ladder.gradient_by_depth(False)[0] < 1e-4
    assert ladder.moved_by_neighbours("layer") < 1e-5
    assert ladder.moved_by_neighbours("batch") > 0.02


@pytest.mark.slow(reason="trains small models")
def test_every_rung_of_the_ladder_learns(place: Path) -> None:
    ladder = lesson("3_gpt/5_ladder")
    figures = learn("3_gpt/5_ladder", place)
    losses = [figures[rung.name] for rung in ladder.LADDER]
    assert max(losses) < math.log(len(set(TEXT))) - 1
    assert losses[5] < losses[1]  # blocks with residuals and norms learn faster than one head


def test_the_lessons_network_is_model_py(place: Path) -> None:
    figures = learn("3_gpt/6_the_real_thing", place)
    assert figures["float64"] < 1e-13 and figures["float32"] < 1e-4


def test_sampling_is_that_of_model_py_and_temperature_orders_the_entropies(place: Path) -> None:
    figures = learn("3_gpt/7_sampling", place)
    assert figures["difference"] < 1e-12
    assert figures["T = 0"] == 0
    assert figures["T = 0"] < figures["T = 0.5"] < figures["T = 1"] < figures["T = 2"]
    assert figures["kept"] == 5 and figures["T = 1, top-p 0.8"] < figures["T = 1"]


def test_cross_attention_shows_the_alignment(place: Path) -> None:
    figures = learn("3_gpt/8_two_sequences", place)
    assert figures["aligned"] > 0.9
    assert figures["right"] > 0.8


@pytest.mark.slow(reason="trains small models")
def test_tuning_and_then_reward_raise_the_share_of_right_answers(place: Path, monkeypatch) -> None:
    monkeypatch.setattr(lesson("3_gpt/9_assistant"), "LARGEST", 4)  # fewer sums are learned sooner
    figures = learn("3_gpt/9_assistant", place, seed=5)
    assert figures["completer"] < figures["tuned"]
    assert figures["completer"] + 0.1 < figures["rewarded"]


# Lowest and highest that a figure may have on tiny Shakespeare: three seeds, and some room.
FIGURES = {
    "1_bigram": {
        "at_start": (4.16, 4.19),
        "after": (2.47, 2.50),
        "learned": (2.45, 2.46),
        "apart": (0, 0.03),
    },
    "3_one_head": {"loss": (2.37, 2.43)},
    "4_many_heads": {"loss": (2.24, 2.34)},
    "5_ladder": {
        "bigram": (2.46, 2.50),
        "one head": (2.37, 2.43),
        "four heads": (2.24, 2.32),
        "+ MLP": (2.20, 2.31),
        "+ residuals, 3 blocks": (2.02, 2.10),
        "+ LayerNorm": (2.02, 2.09),
        "+ size and dropout": (1.75, 1.87),
    },
    "8_two_sequences": {"right": (0.98, 1), "aligned": (0.98, 1)},
    "9_assistant": {"completer": (0.1, 0.5), "tuned": (0.3, 0.85), "rewarded": (0.65, 1)},
}


@only_in_full
@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_of_the_guide(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ROOT / "data" / "shakespeare_char" / TINY_SHAKESPEARE.name
    if name in ("1_bigram", "3_one_head", "4_many_heads", "5_ladder") and not text.is_file():
        pytest.skip("the figures are tiny Shakespeare's; get it with: python prepare.py shakespeare_char")
    monkeypatch.chdir(ROOT)
    hold(lesson(f"3_gpt/{name}").main(), FIGURES[name])
