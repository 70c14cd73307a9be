"""Part 1, networks: what each lesson claims holds, with few steps, and with all where asked (LESSONS=full).

Where chance plays a part, SEEDS are used, by which nothing in a lesson was chosen.
"""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.lessons import hold, learn, lesson, only_in_full, seeds

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


def test_micrograd_gives_the_figures_of_its_worked_example_and_of_the_lecture(place: Path) -> None:
    figures = learn("1_networks/3_micrograd", place, seed=SEEDS[0])
    example = [figures[name] for name in ("worked example", "its gradient in a", "its gradient in b")]
    assert example == pytest.approx([24.7041, 138.8338, 645.5773], abs=5e-5)
    assert figures["neuron"] == pytest.approx(0.7071, abs=5e-5)
    slopes = [figures[f"its gradient in {name}"] for name in ("x1", "w1", "x2", "w2")]
    assert slopes == pytest.approx([-1.5, 1.0, 0.5, 0], abs=1e-12)
    assert figures["parameters"] == 337
    assert figures["twice"] == 2


@seeds
def test_micrograd_learns_moons_to_the_last_and_its_gradients_are_those_of_pytorch(seed: int) -> None:
    micrograd, dice = lesson("1_networks/3_micrograd"), random.Random(seed)
    examples, layers = micrograd.moons(100, dice), micrograd.network([2, 16, 16, 1], dice)
    compare_with_pytorch(layers, examples[:5])
    micrograd.train(layers, examples, 100, dice)
    compare_with_pytorch(layers, examples[:5])
    assert all((micrograd.forward(layers, x).data > 0) == (label > 0) for x, label in examples)


def compare_with_pytorch(layers: list, examples: list) -> None:
    """Every gradient of a network of Values against the same network of tensors."""
    micrograd = lesson("1_networks/3_micrograd")
    same = micrograd.as_torch(layers)
    for each in micrograd.parameters(layers):
        each.grad = 0.0
    micrograd.hinge_loss(layers, examples).backward()
    micrograd.hinge_loss(same, examples).backward()
    mine = [each.grad for each in micrograd.parameters(layers)]
    assert mine == pytest.approx([each.grad.item() for each in micrograd.parameters(same)], abs=1e-12)
    assert max(map(abs, mine)) > 1e-4


@pytest.mark.parametrize(
    "function",
    (
        lambda a, b: a + b * a,
        lambda a, b: a * b - 3 * a + 1,
        lambda a, b: (a * 0.3).exp() * b**-2,
        lambda a, b: (a * b).tanh() + (a - b).relu() + (b - a).relu() * a,
        lambda a, b: (a + a) * (a + a) * b + a,
        lambda a, b: lesson("1_networks/3_micrograd").worked_example(a, b),
    ),
)
def test_every_operation_of_a_value_has_the_gradient_of_pytorch(function: Callable) -> None:
    micrograd = lesson("1_networks/3_micrograd")
    for a, b in ((-4.0, 2.0), (0.7, -1.3), (2.5, 0.1)):
        mine = [micrograd.Value(a), micrograd.Value(b)]
        theirs = [torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (a, b)]
        for numbers in (mine, theirs):
            function(*numbers).backward()
        assert function(*mine).data == pytest.approx(function(*theirs).item(), rel=1e-12)
        assert [each.grad for each in mine] == pytest.approx([each.grad.item() for each in theirs], rel=1e-12)


def test_gradients_of_given_values_add_up_until_set_to_zero_and_those_of_made_ones_do_not() -> None:
    micrograd = lesson("1_networks/3_micrograd")
    a = micrograd.Value(3.0)
    made = a * a
    result = made * 2
    result.backward()
    result.backward()
    assert (made.grad, a.grad) == (2, 24)


def test_answers_about_micrograd() -> None:
    assert list(lesson("1_networks/3_micrograd").exercises().values()) == pytest.approx([7, 10, 0.25])


@seeds
def test_thirteen_thousand_numbers_read_digits_and_are_certain_of_noise(
    place: Path, digits: None, seed: int
) -> None:
    figures = learn("1_networks/4_digits", place, seed=seed)
    assert figures["parameters"] == 13002
    assert figures["batch against one by one"] < 1e-4
    hold(
        figures,
        {
            "sigmoid, squared error, test accuracy": (0.7, 0.9),
            "ReLU, cross-entropy, test accuracy": (0.85, 0.93),
            "784-50-100-10, test accuracy": (0.88, 0.94),
            "true labels, learned": (0.88, 1),
            "random labels, learned": (0.1, 0.2),
            "nudges felt by the loss, sigmoid neurons": (0.99, 1),
            "nudges felt by the accuracy, sigmoid neurons": (0, 0.05),
            "nudges felt by the loss, step neurons": (0, 0.05),
            "certainty about noise": (0.4, 1),
            "neighbouring weights alike, begun large": (0, 0.3),
            "neighbouring weights alike, begun small": (0.4, 1),
        },
    )


def test_the_gradients_of_the_digits_lesson_are_those_of_pytorchs_own_layers(digits: None) -> None:
    digit_lesson = lesson("1_networks/4_digits")
    torch.manual_seed(SEEDS[0])
    layers = [each.detach().double().requires_grad_() for each in digit_lesson.network(784, 16, 16, 10)]
    images, labels = torch.rand(20, 784, dtype=torch.float64), torch.arange(20) % 10
    linear = [torch.nn.Linear(n, m).double() for n, m in ((784, 16), (16, 16), (16, 10))]
    model = torch.nn.Sequential(
        linear[0], torch.nn.Sigmoid(), linear[1], torch.nn.Sigmoid(), linear[2], torch.nn.Sigmoid()
    )
    for each, weights, bias in zip(linear, layers[::2], layers[1::2], strict=True):
        each.load_state_dict({"weight": weights.detach().T, "bias": bias.detach()})
    loss = digit_lesson.squared_error(digit_lesson.forward(layers, images, torch.sigmoid), labels)
    mine = torch.autograd.grad(loss, layers)
    targets = torch.nn.functional.one_hot(labels, 10).double()
    theirs = torch.nn.functional.mse_loss(model(images), targets) * 10 / 2
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-12)
    for each, weights, bias in zip(linear, mine[::2], mine[1::2], strict=True):
        torch.testing.assert_close(weights, each.weight.grad.T, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(bias, each.bias.grad, rtol=1e-10, atol=1e-12)


def test_answers_about_digits() -> None:
    assert list(lesson("1_networks/4_digits").exercises().values()) == pytest.approx([23860, 2.302585, 1.25])


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_by_hand_are_autograds_and_the_first_layers_learn_slowest(
    place: Path, digits: None, seed: int
) -> None:
    figures = learn("1_networks/5_backpropagation", place, seed=seed)
    assert figures["gradients"] == 13002
    for name in (
        "from autograd",
        "from autograd, cross-entropy",
        "broadcasting, from autograd",
        "softmax in steps, from its short form",
    ):
        assert figures[name] < 1e-12, name
    assert figures["784-30-10, test accuracy"] > 0.5
    for hidden, published in ((2, (0.07, 0.31)), (3, (0.012, 0.060, 0.283))):
        speeds = [figures[f"speed of hidden layer {number} of {hidden}"] for number in range(1, hidden + 1)]
        assert speeds == sorted(speeds)
        assert all(0.5 < mine / theirs < 2 for mine, theirs in zip(speeds, published, strict=True))


def test_the_short_form_of_softmax_and_cross_entropy_is_pytorchs() -> None:
    dice = np.random.default_rng(SEEDS[1])
    logits, labels = dice.standard_normal((9, 5)), dice.integers(5, size=9)
    tensor = torch.tensor(logits, requires_grad=True)
    torch.nn.functional.cross_entropy(tensor, torch.tensor(labels)).backward()
    for mine in lesson("1_networks/5_backpropagation").softmax_backward(logits, labels):
        assert abs(mine - tensor.grad.numpy()).max() < 1e-15


def test_answers_about_backpropagation() -> None:
    answers = lesson("1_networks/5_backpropagation").exercises()
    assert list(answers.values()) == pytest.approx([0.25, 16, 0.15])


@seeds
def test_a_convolution_by_im2col_is_pytorchs_and_reads_digits_with_fewer_parameters(
    place: Path, digits: None, seed: int
) -> None:
    figures = learn("1_networks/6_convolution", place, seed=seed)
    assert figures["from conv2d"] < 1e-12
    assert (figures["CNN, parameters"], figures["MLP, parameters"]) == (9226, 13002)
    assert figures["CNN, test accuracy"] > max(0.91, figures["MLP, test accuracy"] + 0.01)
    assert figures["CNN, shifted by 2"] > figures["MLP, shifted by 2"]


def test_a_static_graph_repeats_what_its_example_did() -> None:
    convolution = lesson("1_networks/6_convolution")
    assert convolution.static_graph(8.0, 8.0) == (3, convolution.halved(8.0))
    assert convolution.static_graph(8.0, 100.0) == (3, 12.5) and convolution.halved(100.0) == 0.78125


def test_a_network_of_convolutions_has_the_gradients_of_pytorch() -> None:
    convolution, dice = lesson("1_networks/6_convolution"), np.random.default_rng(SEEDS[0])
    layers = convolution.cnn(dice)
    convolutions = [layer for layer in layers if isinstance(layer, convolution.Linear)]
    parameters = []
    for layer in convolutions:
        layer.weights, layer.bias = layer.weights.astype(float), dice.standard_normal(len(layer.bias))
        parameters.append([torch.tensor(each, requires_grad=True) for each in (layer.weights, layer.bias)])
    x, upstream = dice.random((3, 28, 28, 1)), dice.standard_normal((3, 10))
    mine = convolution.scores(layers, x)
    gradient = upstream
    for layer in reversed(layers):
        gradient = layer.backward(gradient)

    (first, second, last), image = parameters, torch.tensor(x.transpose(0, 3, 1, 2))
    for (weights, bias), channels, width, padding in ((first, 1, 5, 2), (second, 8, 3, 1)):
        filters = weights.T.reshape(-1, channels, width, width)
        image = torch.nn.functional.conv2d(image, filters, bias, 2, padding).relu()
    theirs = image.permute(0, 2, 3, 1).flatten(1) @ last[0] + last[1]
    theirs.backward(torch.tensor(upstream))
    assert abs(mine - theirs.detach().numpy()).max() < 1e-12
    for layer, tensors in zip(convolutions, parameters, strict=True):
        for slope, tensor in zip(layer.gradients, tensors, strict=True):
            assert abs(slope - tensor.grad.numpy()).max() < 1e-12


def test_answers_about_convolutions() -> None:
    assert list(lesson("1_networks/6_convolution").exercises().values()) == [1168, 6084, 9]


# Lowest and highest that a figure may have on the 5,000 digits, with any seed.
FIGURES = {
    "1_perceptron": {"of 4 bits": (1882, 1882)},
    "2_downhill": {"f stays at, rate 0.4": (0.11, 0.14), "f stays at, rate 0.1": (0.022, 0.031)},
    "3_micrograd": {"right": (100, 100), "apart": (0, 1e-12)},
    "4_digits": {
        "sigmoid, squared error, test accuracy": (0.84, 0.92),
        "ReLU, cross-entropy, test accuracy": (0.89, 0.945),  # less than the convolutions' lowest
        "784-50-100-10, test accuracy": (0.91, 0.96),
        "true labels, learned": (0.98, 1),
        "random labels, learned": (0.2, 0.45),
        "certainty about noise": (0.6, 1),
        "neighbouring weights alike, begun large": (0, 0.3),
        "neighbouring weights alike, begun small": (0.45, 1),
    },
    "5_backpropagation": {"784-30-10, test accuracy": (0.68, 0.93)},
    "6_convolution": {"CNN, test accuracy": (0.95, 0.98), "MLP, test accuracy": (0.88, 0.94)},
}


@only_in_full
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_of_the_guide(name: str, seed: int, digits: None) -> None:
    hold(lesson(f"1_networks/{name}").main(seed=seed), FIGURES[name])
