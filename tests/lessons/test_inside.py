"""Part 4, what is inside: what each lesson claims holds, with few steps, and in full where asked.

SEEDS are such as nothing in a lesson was chosen by.
"""

import math
from pathlib import Path

import pytest
import torch
from support.commands import ROOT
from support.lessons import hold, learn, lesson, only_in_full
from torch.nn import functional as F

from engine.preparation.recipes import TINY_SHAKESPEARE

SEEDS = (101, 102, 103)


@pytest.mark.slow(reason="trains small models")
def test_nearly_all_angles_are_right_and_the_rest_are_not_and_features_are_found_again(place: Path) -> None:
    figures = learn("4_inside/1_superposition", place, seed=SEEDS[0])
    hold(
        figures,
        {
            "popular: share of the angles within 89° to 91°": (0.9, 0.97),
            "popular: angle of the worst pair": (0, 5),
            "random: angle of the worst pair": (20, 50),
            "features of 5 that a plane stores, 100% on": (2, 3),
            "features of 5 that a plane stores, 10% on": (4, 5),
            "40 features in 16 dimensions, cosine: autoencoder": (0.75, 1),
            "40 features in 16 dimensions, cosine: principal axes": (0.4, 0.7),
            "GPT: codes that are not 0, of 256": (1, 60),
        },
    )
    limit = figures["the worst pair's angle is at most"]
    assert limit - 8 < figures["worst pair: angle of the worst pair"] < limit
    through = figures["GPT: the same through the autoencoder"] - figures["GPT: validation loss"]
    assert 0 < through < 0.2


def test_no_three_vectors_in_a_plane_are_farther_apart_than_welchs_bound() -> None:
    superposition = lesson("4_inside/1_superposition")
    turns = torch.tensor([0.0, 60.0, 120.0]).deg2rad()  # lines, 60° apart: the bound is reached
    shares, smallest = superposition.angles(torch.stack((turns.cos(), turns.sin()), dim=1))
    assert smallest == pytest.approx(superposition.welch(3, 2), abs=1e-3)
    assert shares[59:61].sum() == pytest.approx(1)
    torch.manual_seed(SEEDS[0])
    for n, d in ((40, 10), (200, 20)):
        vectors = torch.randn(n, d)
        shares, smallest = superposition.angles(vectors)
        unit = F.normalize(vectors, dim=1)
        pairs = (unit @ unit.T)[*torch.triu_indices(n, n, 1)].abs().acos().rad2deg()
        assert shares.tolist() == pytest.approx(
            (torch.histc(pairs, 90, 0, 90) / len(pairs)).tolist(), abs=2e-4
        )
        assert smallest == pytest.approx(pairs.min().item(), abs=1e-3) and smallest < superposition.welch(
            n, d
        )


def test_answers_about_superposition() -> None:
    answers = lesson("4_inside/1_superposition").exercises().values()
    assert list(answers) == pytest.approx([84.29, 60, 7275], rel=1e-3)


@pytest.mark.slow(reason="trains small models")
def test_more_text_lowers_the_loss_along_a_line(place: Path) -> None:
    figures = learn("4_inside/2_scale", place, seed=SEEDS[0])
    assert figures["tokens: exponent"] > 0.02
    assert abs(figures["tokens: off by"]) < 0.2


@pytest.mark.parametrize("exponent", [0.076, 0.5])
def test_a_line_through_points_of_a_power_law_is_that_law(exponent: float) -> None:
    amounts = [10.0, 100.0, 3000.0]
    scale, found = lesson("4_inside/2_scale").line(amounts, [7 * amount**-exponent for amount in amounts])
    assert (scale, found) == pytest.approx((7, exponent), rel=1e-6)


def test_answers_about_scale() -> None:
    answers = lesson("4_inside/2_scale").exercises().values()
    assert list(answers) == pytest.approx([196_608, 0.94868, 9139.47], rel=1e-4)


@pytest.mark.slow(reason="trains small models")
@pytest.mark.parametrize("seed", SEEDS)
def test_facts_are_learned_lie_behind_attention_and_in_the_mlp_and_are_rewritten(
    place: Path, seed: int
) -> None:
    figures = learn("4_inside/3_facts", place, seed=seed)
    hold(
        figures,
        {
            "1 blocks: facts known": (0.98, 1),
            "1 blocks: without attention 1": (0, 0.2),
            "1 blocks: attention 1 of another, the other's answer": (0.95, 1),
            "1 blocks: MLP 1 of another, the other's answer": (0.5, 1),
            "32 neurons of 256 silent, any": (0.98, 1),
            "facts rewritten, of those tried": (0.8, 1),
            "other facts kept by it": (0.97, 1),
        },
    )
    own, others = (
        figures[f"32 neurons of 256 silent, {whose}"] for whose in ("the fact's own", "another fact's")
    )
    assert own < others


def test_a_rewritten_fact_is_put_back_and_no_two_people_have_the_same_names() -> None:
    facts_lesson = lesson("4_inside/3_facts")
    torch.manual_seed(SEEDS[0])
    facts = facts_lesson.drawn_facts(30)
    assert len(facts.questions.unique(dim=0)) == len(facts.answers) == 60
    model = facts_lesson.learned(facts, 1, 60, SEEDS[0])
    before = model.blocks[0].mlp.down.weight.clone()
    facts_lesson.rewrite(model, facts, 0, int(facts.answers[0]) + 1)
    assert torch.equal(model.blocks[0].mlp.down.weight, before)


def test_answers_about_facts() -> None:
    answers = lesson("4_inside/3_facts").exercises().values()
    assert list(answers) == pytest.approx([1728.77, 0.05, 320], rel=1e-4)


@pytest.mark.slow(reason="trains small models")
def test_directions_can_be_read_and_added(place: Path) -> None:
    figures = learn("4_inside/4_directions", place, seed=SEEDS[0])
    assert figures["capitals: told by a dot product"] > 0.8
    assert figures["vowels: told by a dot product"] > 0.6
    for name in ("capitals", "vowels"):
        less, none, more = (
            figures[f"{name}: share with {how} of the direction"] for how in ("-1", "+0", "+1")
        )
        assert less < none < more


def test_a_letter_finds_its_capital_by_the_step_of_the_others_alone() -> None:
    directions = lesson("4_inside/4_directions")
    torch.manual_seed(SEEDS[0])
    small, step = torch.randn(26, 64), 3 * torch.randn(64)
    assert directions.right_capitals(small, small + step, step=True) == 26
    assert directions.right_capitals(small, torch.randn(26, 64), step=True) < 10
    vowel = torch.tensor([letter in "aeiou" for letter in directions.SMALL])
    assert directions.right_vowels(small + 20 * vowel[:, None] * F.normalize(step, dim=0)) == 26


def test_told_apart_is_the_share_of_pairs_in_the_right_order() -> None:
    values, is_so = torch.tensor([0.1, 0.9, 0.4, 0.3]), torch.tensor([False, True, True, False])
    told_apart = lesson("4_inside/4_directions").told_apart
    assert told_apart(values, is_so) == 1
    assert told_apart(-values, is_so) == 0
    assert told_apart(torch.tensor([3.0, 2.0, 4.0, 1.0]), is_so) == pytest.approx(3 / 4)


def test_answers_about_directions() -> None:
    answers = lesson("4_inside/4_directions").exercises().values()
    assert list(answers) == pytest.approx([0.5, math.e**2, 26 / 51], rel=1e-4)


@pytest.mark.slow(reason="trains small models")
def test_a_policy_pleases_its_reward_model_and_a_price_keeps_it_near(place: Path, named: None) -> None:
    figures = learn("4_inside/5_preferences", place, seed=SEEDS[0])
    assert figures["pairs ranked as the person would"] > 0.53
    assert figures["reward in the end"] > 0.5
    assert 0 < figures["divergence in the end, with a price"] < figures["divergence in the end"]


def test_a_names_probability_ends_with_the_name_and_drawn_names_end() -> None:
    preferences = lesson("4_inside/5_preferences")
    ids = preferences.rows(["emma", "o"])
    assert preferences.words(ids) == ["emma", "o"]
    assert (preferences.targets(ids) >= 0).sum(dim=1).tolist() == [5, 2]  # the letters and the end
    model = preferences.fresh_gpt(SEEDS[0], 27, preferences.LENGTH, n_layer=1, n_head=1, n_embd=8)
    with torch.no_grad():
        table = model(ids[1:, :-1])[0].log_softmax(dim=-1)
        by_hand = table[0, ids[1, 1]] + table[1, 0]
        assert preferences.log_probability(model, ids)[1].item() == pytest.approx(by_hand.item(), rel=1e-5)
    torch.manual_seed(SEEDS[0])
    drawn = preferences.drawn(model, 50)
    assert drawn.shape == (50, preferences.LENGTH + 1)
    assert (drawn[:, 0] == 0).all() and (drawn[:, -1] == 0).all()
    assert all("." not in word for word in preferences.words(drawn))  # nothing follows an end


def test_rankings_follow_bradley_and_terry(monkeypatch: pytest.MonkeyPatch) -> None:
    preferences = lesson("4_inside/5_preferences")
    torch.manual_seed(SEEDS[0])
    good, bad = preferences.rows(["a"] * 4000), preferences.rows(["b"] * 4000)
    sides = iter((good, bad))
    monkeypatch.setattr(preferences, "drawn", lambda model, count: next(sides))
    monkeypatch.setattr(preferences, "liking", lambda ids: (ids[:, 1] == 1).float())  # "a" is liked by 1 more
    better, _ = preferences.ranked(None, 4000)
    won = (better[:, 1] == 1).double().mean().item()
    assert won == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)


def test_answers_about_preferences() -> None:
    answers = lesson("4_inside/5_preferences").exercises().values()
    assert list(answers) == pytest.approx([0.880797, math.log(2), math.e**2], rel=1e-4)


# Lowest and highest that a figure may have, on tiny Shakespeare and the 29,910 names: seeds, and some room.
FIGURES = {
    "3_facts": {
        "1 blocks: facts known": (0.99, 1),
        "1 blocks: without attention 1": (0, 0.15),
        "1 blocks: without MLP 1": (0.2, 0.6),
        "1 blocks: MLP 1 of another, the other's answer": (0.5, 0.9),
        "32 neurons of 256 silent, the fact's own": (0.05, 0.5),
        "32 neurons of 256 silent, another fact's": (0.97, 1),
        "facts rewritten, of those tried": (0.95, 1),
        "other facts kept by it": (0.99, 1),
    },
    "4_directions": {
        "small letters whose step leads to their capital, of 26": (12, 26),
        "the same without a step": (0, 6),
        "letters on the right side of vowels and consonants, of 26": (24, 26),
        "digits along their first axis, correlation with size": (0.9, 1),
        "capitals: told by a dot product": (0.9, 1),
        "vowels: told by a dot product": (0.7, 0.9),
        "capitals: share with -1 of the direction": (0, 0.03),
        "capitals: share with +0.5 of the direction": (0.8, 1),
    },
    "1_superposition": {
        "popular: share of the angles within 89° to 91°": (0.9, 0.99),
        "features of 5 that a plane stores, 100% on": (2, 2),
        "features of 5 that a plane stores, 10% on": (5, 5),
        "40 features in 16 dimensions, cosine: autoencoder": (0.98, 1),
        "40 features in 16 dimensions, cosine: principal axes": (0.5, 0.75),
        "GPT, channels: same last letter": (0.6, 0.82),
    },
    "2_scale": {"parameters: off by": (-0.1, 0.1), "tokens: off by": (-0.1, 0.1)},
    "5_preferences": {
        "pairs ranked as the person would": (0.62, 0.8),
        "liking at best": (-1.9, -0.8),
        "divergence in the end, with a price": (1, 8),
        "reward in the end": (1.8, 5),
    },
}


@only_in_full
@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_of_the_guide(name: str, named: None, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ROOT / "data" / "shakespeare_char" / TINY_SHAKESPEARE.name
    if name in ("1_superposition", "2_scale", "4_directions") and not text.is_file():
        pytest.skip("the figures are tiny Shakespeare's; get it with: python prepare.py shakespeare_char")
    monkeypatch.chdir(ROOT)
    figures = lesson(f"4_inside/{name}").main()
    hold(figures, FIGURES[name])
    if name == "5_preferences":
        assert figures["liking at best"] > figures["liking at first"] + 0.3
        assert figures["liking in the end"] < figures["liking at best"] - 0.1
    if name == "1_superposition":
        limit = figures["the worst pair's angle is at most"]
        assert limit - 9 < figures["worst pair: angle of the worst pair"] < limit
