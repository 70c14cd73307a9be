"""Part 2, language before attention: what each lesson claims holds, with few steps, and with all where asked.

The figures are those of the 29,910 names of 2017. SEEDS are such as nothing in a lesson was chosen by.
"""

import importlib
import random
from collections import Counter
from itertools import pairwise
from math import log
from pathlib import Path

import pytest
import torch
from support.commands import ROOT
from support.lessons import hold, learn, lesson, only_in_full
from torch import nn

from engine.preparation.recipes import TINY_SHAKESPEARE

SEEDS = (101, 102, 103)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_layer_learns_the_table_that_was_counted(place: Path, named: None, seed: int) -> None:
    figures = learn("2_language/1_bigrams", place, seed=seed)
    words = lesson("common").names().words
    pairs = Counter(pair for word in words for pair in pairwise(f".{word}."))
    firsts = Counter(letter for word in words for letter in f".{word}")
    counted = -sum(count * log(count / firsts[pair[0]]) for pair, count in pairs.items()) / pairs.total()
    assert figures["loss, counted"] == pytest.approx(counted, rel=1e-12)
    assert counted < figures["loss, one added to each count"] < counted + 0.002
    assert counted < figures["loss, one layer that learned"] < counted + 0.01
    assert figures["pairs never seen"] == 27 * 27 - len(pairs)
    assert figures["largest distance of a row's sum from 1"] < 1e-12
    assert figures["the same without keepdim"] > 1


def test_answers_about_bigrams() -> None:
    answers = lesson("2_language/1_bigrams").exercises().values()
    assert list(answers) == pytest.approx([3.295837, 0.01, 2.302585])


def test_an_mlp_beats_the_table_and_vowels_find_each_other(place: Path, named: None) -> None:
    figures = learn("2_language/2_mlp", place, seed=SEEDS[0])
    assert figures["parameters"] == 11897
    hold(
        figures,
        {
            "best rate of the search": (0.01, 0.3),
            "100 names by heart: their loss": (0, 1.5),
            "100 names by heart: loss on dev": (4, 15),
            "in 2 dimensions: loss on dev": (2.3, 2.65),
            "distance among vowels, of that among all": (0, 0.8),
        },
    )


def test_answers_about_the_mlp() -> None:
    assert list(lesson("2_language/2_mlp").exercises().values()) == [3481, 5, 19683]


def test_what_a_network_begins_with_decides_how_it_learns(place: Path, named: None) -> None:
    figures = learn("2_language/3_initialisation", place, seed=SEEDS[0])
    hold(
        figures,
        {
            "careless: loss at the start": (20, 35),
            "small last weights: loss at the start": (3.25, 3.45),
            "and gain 5/3: loss at the start": (3.25, 3.35),
            "careless: tanhs asleep": (0.5, 0.7),
            "and gain 5/3: tanhs asleep": (0.05, 0.4),
            "BatchNorm: tanhs asleep": (0, 0.03),
            "and gain 5/3: loss on dev": (2.1, 2.5),
            "20th tanh, gain 1": (0.1, 0.25),
            "20th tanh, gain 5/3": (0.6, 0.7),
            "20th tanh, gain 3": (0.8, 0.9),
            "20th tanh, BatchNorm, gain 3": (0.6, 0.66),
            "step beside weights, rate 0.1, log10": (-3.3, -2.7),
        },
    )
    assert figures["careless: loss on dev"] > figures["small last weights: loss on dev"] + 0.5


def test_the_batch_norm_of_the_lesson_is_pytorchs() -> None:
    torch.manual_seed(SEEDS[0])
    mine = lesson("2_language/3_initialisation").BatchNorm(5).double()
    theirs = nn.BatchNorm1d(5, momentum=0.01).double()
    for scale in (1.0, 3.0, 0.1):
        x = scale * torch.randn(9, 5, dtype=torch.float64) + scale
        torch.testing.assert_close(mine(x), theirs(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mine.mean, theirs.running_mean, check_dtype=False)
    torch.testing.assert_close(mine.variance, theirs.running_var, check_dtype=False)
    mine.eval(), theirs.eval()
    torch.testing.assert_close(mine(x[:1]), theirs(x[:1]), rtol=1e-6, atol=1e-6)


def test_answers_about_initialisation() -> None:
    answers = lesson("2_language/3_initialisation").exercises().values()
    assert list(answers) == pytest.approx([64, 0.0199, 400])


def test_gradients_by_hand_are_autograds_and_a_network_learns_by_them(place: Path, named: None) -> None:
    figures = learn("2_language/4_backpropagation", place, seed=SEEDS[0])
    assert (figures["gradients by hand"], figures["parameters"]) == (24, 12297)
    assert figures["exactly autograd's"] >= 6
    assert max(figures["logits in short, apart by"], figures["BatchNorm in short, apart by"]) < 1e-5
    assert 2.1 < figures["learned by hand, loss on dev"] < 2.5


@pytest.mark.parametrize("seed", SEEDS)
def test_every_gradient_by_hand_is_right_to_the_last_digits_of_float64(seed: int) -> None:
    backpropagation = lesson("2_language/4_backpropagation")
    torch.manual_seed(seed)
    p = {name: each.double().requires_grad_() for name, each in backpropagation.parameters().items()}
    x, y = torch.randint(27, (16, 3)), torch.randint(27, (16,))
    v = backpropagation.forward(p, x, y)
    theirs = backpropagation.autograds(p, v)
    for way in (backpropagation.backward, backpropagation.backward_in_short):
        mine = way(p, v, x, y)
        assert mine.keys() >= p.keys()
        for name, gradient in mine.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=1e-9, atol=1e-14)
    logits = (p["C"][x].flatten(1) @ p["W1"] + p["b1"]).detach()
    norm = nn.BatchNorm1d(logits.shape[1]).double()(logits)  # divides by B where the lesson divides by B - 1
    torch.testing.assert_close(v["normal"], norm * (15 / 16) ** 0.5, rtol=1e-3, atol=1e-3)


def test_answers_about_backpropagation_through_all_of_it() -> None:
    answers = lesson("2_language/4_backpropagation").exercises().values()
    assert list(answers) == pytest.approx([-0.8, 0, 0])


def test_a_recurrent_network_sees_farther_than_three_letters(place: Path, named: None) -> None:
    figures = learn("2_language/5_recurrent", place, seed=SEEDS[0])
    sizes = [figures[f"{name}: parameters"] for name in ("MLP", "RNN", "GRU")]
    assert sizes == [11897, 11803, 28443]
    assert figures["MLP: moved by the letter 5 back"] == 0
    assert min(figures[f"{name}: moved by the letter 5 back"] for name in ("RNN", "GRU")) > 0.002
    assert figures["GRU: gradient left after 10 steps"] > 5 * figures["RNN: gradient left after 10 steps"]
    assert max(figures[f"{name}: loss on dev"] for name in ("MLP", "RNN", "GRU")) < 2.6


@pytest.mark.parametrize("gates", (False, True))
def test_the_recurrent_networks_of_the_lesson_are_pytorchs(gates: bool) -> None:
    recurrent = lesson("2_language/5_recurrent")
    torch.manual_seed(SEEDS[0])
    mine = recurrent.Recurrent(gates).double()
    theirs = (nn.GRU if gates else nn.RNN)(64, 64, batch_first=True).double()
    weights = {"ih": mine.of_letter, "hh": mine.of_state}
    theirs.load_state_dict(
        {
            f"{kind}_{name}_l0": getattr(layer, kind)
            for name, layer in weights.items()
            for kind in ("weight", "bias")
        }
    )
    points = torch.randn(3, 7, 64, dtype=torch.float64)
    torch.testing.assert_close(mine.states(points), theirs(points)[0], rtol=1e-12, atol=1e-14)


def test_whole_names_hold_each_letter_once_as_a_target() -> None:
    inputs, targets = lesson("2_language/5_recurrent").whole_names(["emma", "abcdefghijklmno"])
    assert inputs[0, :7].tolist() == [0, 5, 13, 13, 1, 0, 0] and targets[0, :6].tolist() == [
        5,
        13,
        13,
        1,
        0,
        -100,
    ]
    assert (targets >= 0).sum(dim=1).tolist() == [5, 16] and targets[1, -1] == 0


def test_answers_about_recurrent_networks() -> None:
    answers = lesson("2_language/5_recurrent").exercises().values()
    assert list(answers) == pytest.approx([8320, 1 / 32, 8])


def test_a_tree_over_eight_letters_is_a_convolution(place: Path, named: None) -> None:
    figures = learn("2_language/6_wavenet", place, seed=SEEDS[0])
    assert (figures["flat: parameters"], figures["WaveNet: parameters"]) == (22097, 76579)
    assert figures["sliding, apart by"] < 1e-12
    assert max(figures["flat: loss on dev"], figures["WaveNet: loss on dev"]) < 2.6


def test_the_tree_joins_neighbours_and_sees_all_eight_letters() -> None:
    wavenet = lesson("2_language/6_wavenet")
    torch.manual_seed(SEEDS[0])
    model = wavenet.WaveNet().eval()
    join = model.layers[0].join.weight
    x = torch.randn(2, 8, wavenet.WIDTH)
    by_hand = torch.stack([torch.cat((x[0, 2], x[0, 3])) @ join.T, torch.cat((x[1, 6], x[1, 7])) @ join.T])
    scale = (1 + model.layers[0].norm.eps) ** -0.5  # a fresh BatchNorm remembers mean 0 and variance 1
    layer = model.layers[0](x)
    torch.testing.assert_close(torch.stack((layer[0, 1], layer[1, 3])), (by_hand * scale).tanh())
    ids = torch.randint(1, 27, (1, 8))
    for place in range(8):
        other = ids.clone()
        other[0, place] = ids[0, place] % 26 + 1
        assert not torch.equal(model(ids), model(other))


def test_answers_about_wavenet() -> None:
    assert list(lesson("2_language/6_wavenet").exercises().values()) == [32, 7, 3]


def test_word2vec_runs_on_any_text(place: Path) -> None:
    figures = learn("2_language/7_word2vec", place, seed=SEEDS[0])
    assert figures["words"] > 10_000 and figures["different ones"] > 400


@pytest.mark.parametrize("bag", (False, True))
def test_words_that_keep_the_same_company_come_to_lie_together(bag: bool) -> None:
    word2vec, dice = lesson("2_language/7_word2vec"), random.Random(SEEDS[0])
    torch.manual_seed(SEEDS[0])
    torch.set_num_threads(1)
    subjects = [[f"{subject}{letter}" for letter in "abcdefghij"] for subject in ("sea", "farm")]
    text = " ".join(dice.choice(subjects[s // 40 % 2]) for s in range(20_000))
    words, counts, ids = word2vec.read_words(text)
    vectors = word2vec.F.normalize(word2vec.learn(ids, counts, 400, bag).word.weight.detach(), dim=1)
    for number, word in enumerate(words):
        near = word2vec.nearest(vectors, vectors[number], [number], 5)
        assert sum(words[other][:3] == word[:3] for other in near) >= 4, word


def test_an_analogy_is_right_where_the_step_leads_to_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    word2vec = lesson("2_language/7_word2vec")
    monkeypatch.setattr(word2vec, "RELATIONS", {"sexes": "man woman king queen he she"})
    words = ["man", "woman", "king", "queen", "sea", "sky", *(f"other{i}" for i in range(20))]
    vectors = torch.zeros(len(words), 24)
    vectors[range(4)] = word2vec.F.pad(torch.tensor([[1.0, 0, 0], [1, 0, 1], [0, 1, 0], [0, 1, 1]]), (0, 21))
    vectors[4:] = torch.eye(24)[3:].repeat(2, 1)[: len(words) - 4]
    assert word2vec.analogies(word2vec.F.normalize(vectors, dim=1), words) == (2, 2, 2)
    vectors[[3, 4]] = vectors[[4, 3]]  # now the sea lies where the queen should
    asked, first, _ = word2vec.analogies(word2vec.F.normalize(vectors, dim=1), words)
    assert (asked, first) == (2, 0)


def test_word2vec_begins_with_a_loss_of_six_coins() -> None:
    model = lesson("2_language/7_word2vec").Vectors(30)
    known, right, wrong = torch.randint(30, (4, 1)), torch.randint(30, (4,)), torch.randint(30, (4, 5))
    assert model(known, right, wrong).item() == pytest.approx(6 * log(2))


def test_answers_about_word2vec() -> None:
    answers = lesson("2_language/7_word2vec").exercises().values()
    assert list(answers) == pytest.approx([4.158883, 8, 8])


def test_the_originals_have_the_lectures_parameters_and_can_be_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    originals = importlib.import_module("originals")
    monkeypatch.setattr(originals, "STEPS", 3)
    torch.manual_seed(SEEDS[0])
    counts = {}
    for name, (make, length, share) in originals.MODELS.items():
        model, (inputs, targets) = make(), lesson("common").windows(["emma", "olivia", "ava"], length)
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
        before = [parameter.clone() for parameter in model.parameters()]
        originals.train(model, inputs, targets, share)
        assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)), (
            name
        )
    sizes = {"MLP": 11897, "MLP, BatchNorm": 12097, "flat, eight letters": 22097, "WaveNet": 76579}
    assert counts | sizes == counts


# What the lectures' own protocol comes to on these names: means of three seeds of tests/lessons/originals.py.
PROTOCOL = {
    "MLP": 2.1815,
    "MLP, calm logits": 2.1435,
    "MLP, calm tanh": 2.1176,
    "MLP, BatchNorm": 2.1231,
    "WaveNet": 1.9957,
}
# Which figure of which lesson is of the same network, and what the lecture reports of makemore's names.
SAME = {
    ("2_mlp", "loss on dev"): ("MLP", 2.1701),
    ("3_initialisation", "careless: loss on dev"): ("MLP", 2.168),
    ("3_initialisation", "small last weights: loss on dev"): ("MLP, calm logits", 2.13),
    ("3_initialisation", "and gain 5/3: loss on dev"): ("MLP, calm tanh", 2.103),
    ("3_initialisation", "BatchNorm: loss on dev"): ("MLP, BatchNorm", 2.105),
    ("4_backpropagation", "learned by hand, loss on dev"): ("MLP, BatchNorm", 2.1162),
    ("6_wavenet", "WaveNet: loss on dev"): ("WaveNet", 1.993),
}
# Lowest and highest that other figures may have, with any seed.
FIGURES = {
    "1_bigrams": {
        "loss, counted": (2.45408, 2.45410),
        "loss, one added to each count": (2.4546, 2.4548),
        "loss, one layer that learned": (2.4540, 2.4552),
    },
    "2_mlp": {
        "loss on names learned from": (2.08, 2.17),
        "100 names by heart: their loss": (0.6, 1.0),
        "100 names by heart: loss on dev": (6, 12),
        "in 2 dimensions: loss on dev": (2.4, 2.5),
        "distance among vowels, of that among all": (0.25, 0.5),
    },
    "3_initialisation": {
        "careless: tanhs asleep": (0.5, 0.7),
        "BatchNorm: tanhs asleep": (0, 0.03),
        "BatchNorm: remembered, less of all": (0, 0.01),
    },
    "4_backpropagation": {"exactly autograd's": (6, 24)},
    "5_recurrent": {
        "MLP: loss on dev": (2.10, 2.16),
        "RNN: loss on dev": (2.05, 2.11),
        "GRU: loss on dev": (2.00, 2.06),
        "RNN: moved by the letter 5 back": (0.04, 0.12),
        "GRU: moved by the letter 5 back": (0.06, 0.16),
    },
    "6_wavenet": {"flat: loss on dev": (2.02, 2.09)},
    "7_word2vec": {
        "CBOW: right": (0.03, 0.11),
        "skip-gram: right": (0.02, 0.08),
        "CBOW: among the nearest ten": (0.1, 0.25),
        "skip-gram: among the nearest ten": (0.08, 0.2),
    },
}


@only_in_full
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_of_the_guide(name: str, seed: int, named: None, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ROOT / "data" / "shakespeare_char" / TINY_SHAKESPEARE.name
    if name == "7_word2vec" and not text.is_file():
        pytest.skip("the figures are tiny Shakespeare's; get it with: python prepare.py shakespeare_char")
    monkeypatch.chdir(ROOT)
    figures = lesson(f"2_language/{name}").main(seed=seed)
    near = {figure: PROTOCOL[network] for (where, figure), (network, _) in SAME.items() if where == name}
    hold(figures, FIGURES[name] | {figure: (loss - 0.03, loss + 0.03) for figure, loss in near.items()})
    if name == "3_initialisation":
        assert figures["careless: loss on dev"] > figures["BatchNorm: loss on dev"] + 0.02


@only_in_full
@pytest.mark.parametrize("name", sorted({name for name, _ in SAME}))
def test_on_makemores_names_the_figures_are_the_lectures(name: str) -> None:
    common = lesson("common")
    if not (common.NAMES / common.NAMES_TXT.name).is_file():
        pytest.skip("makemore's names are not at hand; a lesson fetches them where it can")
    figures = lesson(f"2_language/{name}").main(seed=1)
    theirs = {figure: loss for (where, figure), (_, loss) in SAME.items() if where == name}
    hold(figures, {figure: (loss - 0.02, loss + 0.02) for figure, loss in theirs.items()})
