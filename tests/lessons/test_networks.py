"""Part 1, networks: what each lesson claims holds, with few steps, and with all where asked (LESSONS=full).

Where chance plays a part, SEEDS are used, by which nothing in a lesson was chosen.
"""

from pathlib import Path

import pytest
from support.lessons import hold, learn, lesson

SEEDS = (101, 102, 103)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_neuron_learns_every_gate_that_a_line_divides_and_never_xor(place: Path, seed: int) -> None:
    figures = learn("1_networks/1_perceptron", place, seed=seed)
    hold(figures, {"passes": (2, 15), "XOR's mistakes": (1, 4)})
    assert figures["sums"] == 256  # all that NANDs add, of two numbers of 4 bits
    assert figures["two layers"] == 4  # of XOR's four rows
    assert (figures["of 2 bits"], figures["of 3 bits"]) == (14, 104)


def test_of_the_functions_of_four_bits_1882_can_be_one_neuron() -> None:
    assert len(lesson("1_networks/1_perceptron").learnable(4)) == 1882


def test_answers_about_perceptrons() -> None:
    assert list(lesson("1_networks/1_perceptron").exercises().values()) == [-1, 72, 6]


@pytest.mark.parametrize("seed", SEEDS)
def test_each_way_down_shrinks_as_its_formula_says(place: Path, seed: int) -> None:
    figures = learn("1_networks/2_downhill", place, seed=seed)
    assert figures["distance, gradient descent"] == pytest.approx(0.99 / 1.01, rel=1e-9)
    assert figures["distance, with momentum"] == pytest.approx(0.9 / 1.1, rel=2e-3)
    assert figures["f, gradient descent"] == pytest.approx(0.96, abs=0.005)  # Strang's
    assert figures["f, with momentum"] == pytest.approx(0.67, abs=0.005)
    steps = [figures[f"steps, {way}"] for way in ("gradient descent", "with momentum", "Newton")]
    assert steps == [691, 93, 1]
    floor = lesson("1_networks/2_downhill").floor
    for rate in (0.4, 0.1):  # 1,500 steps that depend on each other
        assert figures[f"f stays at, rate {rate}"] == pytest.approx(floor(1 / 100, rate), rel=0.3)
    assert figures["f stays at, falling"] < 0.7 * figures["f stays at, rate 0.1"]


def test_gradient_descent_climbs_above_twice_the_inverse_of_the_curvature() -> None:
    downhill = lesson("1_networks/2_downhill")
    below, above = (abs(downhill.descend(1 / 100, 1000, rate)[-1, 0]) for rate in (1.99, 2.01))
    assert below < 1e-3 and above > 1e3


def test_answers_about_ways_downhill() -> None:
    assert list(lesson("1_networks/2_downhill").exercises().values()) == pytest.approx([2, 1 / 3, -0.125])
