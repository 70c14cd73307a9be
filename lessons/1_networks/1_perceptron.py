"""Lesson 1.1. A perceptron and NAND: neurons that add numbers, and a gate that no single neuron can be.

A neuron weighs its inputs, adds them up, and fires if the sum passes a threshold. With the right weights it
is a logic gate, and since everything can be built out of NAND gates, everything can be built out of neurons.
The weights need not be set by hand: a rule of one line learns them from examples, wherever a straight line
can divide the examples. For XOR none can, and a second layer helps.

    python lessons/1_networks/1_perceptron.py

The neuron and its rule: Rosenblatt (1958); XOR: Minsky and Papert (1969); NAND by the weights -2, -2 and the
bias 3, and adding with it: Nielsen, "Neural networks and deep learning" (2015), chapter 1; the counts of
functions: OEIS A000609.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import numpy as np
from common import beside, run
from drawing import finish, panels, save
from matplotlib.axes import Axes

ROWS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])  # all that two inputs can be
GATES = {"AND": [0, 0, 0, 1], "OR": [0, 1, 1, 1], "NAND": [1, 1, 1, 0], "XOR": [0, 1, 1, 0]}


def neuron(inputs: np.ndarray, weights: np.ndarray, bias: np.ndarray | float) -> np.ndarray:
    """1 where the weighted sum of the inputs (…, n) is above the threshold -bias, else 0."""
    return (inputs @ weights + bias > 0).astype(int)


def nand(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """0 only where both are 1: one weight of -2 does not outweigh the bias of 3, two do."""
    return neuron(np.stack((a, b), axis=-1), np.array([-2, -2]), 3)


def add_bits(a: np.ndarray, b: np.ndarray, carry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of three bits as two: the lower one and the carry; nine NANDs, that is nine neurons."""
    x = nand(a, b)
    half = nand(nand(a, x), nand(b, x))  # a XOR b
    y = nand(half, carry)
    return nand(nand(half, y), nand(carry, y)), nand(x, y)


def add(a: np.ndarray, b: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers added as on paper, from the right, by neurons alone."""
    total, carry = np.zeros_like(a), np.zeros_like(a)
    for place in range(bits):
        low, carry = add_bits(a >> place & 1, b >> place & 1, carry)
        total += low << place
    return total + (carry << bits)


def learn(wanted: list[int], passes: int, dice: np.random.Generator) -> tuple[np.ndarray, float, list[int]]:
    """The perceptron's rule: after a mistake, move the weights towards the input, or away from it.

    Returns weights, bias, and the mistakes of each pass; stops after a pass without any.
    """
    weights, bias, mistakes = np.zeros(2), 0.0, []
    while len(mistakes) < passes and (not mistakes or mistakes[-1] > 0):
        mistakes.append(0)
        for row in dice.permutation(4):
            error = wanted[row] - neuron(ROWS[row], weights, bias)  # 1: should have fired; -1: should not
            weights, bias = weights + error * ROWS[row], bias + error
            mistakes[-1] += abs(int(error))
    return weights, bias, mistakes


def learnable(n: int, passes: int = 60) -> np.ndarray:
    """The same rule for every function of n bits at once: the tables (…, 2ⁿ) that one neuron has learned."""
    rows = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    rows = np.concatenate((rows, np.ones_like(rows[:, :1])), axis=1)  # an input that is always 1: the bias
    tables = (np.arange(2 ** (2**n))[:, None] >> np.arange(2**n)) & 1
    weights = np.zeros((len(tables), n + 1), dtype=int)
    for row, wanted in [*zip(rows, tables.T, strict=True)] * passes:
        weights += (wanted - (weights @ row > 0))[:, None] * row
    return tables[((weights @ rows.T > 0) == tables).all(axis=1)]


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    three = (np.arange(8)[:, None] >> np.arange(3)) & 1
    majority, parity = three.sum(axis=1) >= 2, three.sum(axis=1) % 2
    fewest_wrong = int(abs(learnable(3) - parity).sum(axis=1).min())
    biases = [bias for bias in range(-9, 9) if (neuron(three, np.ones(3), bias) == majority).all()]
    return {
        "1. the whole bias that makes weights 1, 1, 1 a majority of three": biases[0],
        "2. neurons that add two numbers of 8 bits": 9 * 8,
        "3. rows of the parity of three bits that one neuron gets right": 8 - fewest_wrong,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Gates by hand, an adder, gates that are learned, what cannot be; returns the figures."""
    print(f"NAND of 00, 01, 10, 11: {nand(*ROWS.T)}")
    a, b = np.divmod(np.arange(256), 16)
    right = int((add(a, b, bits=4) == a + b).sum())
    print(f"36 neurons add: 5 + 9 = {add(a, b, 4)[5 * 16 + 9]}; of the 256 sums of 4 bits {right} are right")

    dice = np.random.default_rng(seed)
    learned = {gate: learn(table, 30, dice) for gate, table in GATES.items()}
    for gate, (weights, bias, mistakes) in learned.items():
        print(f"{gate:<5}weights {weights}, bias {bias:g}, mistakes of each pass {mistakes[:12]}")

    # XOR's four conditions cannot all hold: b <= 0, v + b > 0 and w + b > 0 make v + w + b > -b >= 0.
    hidden = neuron(ROWS, np.array([[2, -2], [2, -2]]), np.array([-1, 3]))  # OR and NAND, side by side
    xor = neuron(hidden, np.array([2, 2]), -3)  # AND of the two
    print(f"two layers, (a OR b) AND (a NAND b): {xor}")

    counts = {f"of {n} bits": len(learnable(n)) for n in ((2, 3) if quick else (2, 3, 4))}
    originals = {"of 2 bits": 14, "of 3 bits": 104, "of 4 bits": 1882}
    print("\nfunctions that one neuron can be, of 16, 256 and 65,536:")
    beside({name: originals[name] for name in counts}, counts)
    draw(learned, counts)
    two_layers = int((xor == GATES["XOR"]).sum())
    passes = max(len(learned[gate][2]) for gate in ("AND", "OR", "NAND"))
    xor_mistakes = learned["XOR"][2][-1]
    figures = counts | {"sums": right, "two layers": two_layers}
    return figures | {"passes": passes, "XOR's mistakes": xor_mistakes}


def plane(axes: Axes, gate: str) -> None:
    """The four inputs of a gate, filled where it says 1."""
    for (x, y), value in zip(ROWS, GATES[gate], strict=True):
        axes.plot(x, y, "o", markersize=15, color="C0", markerfacecolor="C0" if value else "white", zorder=3)
    axes.set(xlim=(-0.5, 1.7), ylim=(-0.5, 1.7), xticks=(0, 1), yticks=(0, 1), xlabel="a", ylabel="b")


def draw(learned: dict[str, tuple], counts: dict[str, int]) -> None:
    """NAND's line, mistakes of each pass, XOR in two layers, and how rare the learnable functions are."""
    figure, (left, second, third, right) = panels(4, 17, 4.4)
    x = np.array([-0.5, 1.7])
    plane(left, "NAND")
    (v, w), bias, _ = learned["NAND"]
    left.plot(x, (3 - 2 * x) / 2, "C1", label="set by hand")
    left.plot(x, -(bias + v * x) / w, "C2--", label="learned")
    finish(left, title="NAND: a line divides")
    for gate, (_, _, mistakes) in learned.items():
        second.plot(range(1, len(mistakes) + 1), mistakes, "o-", label=gate)
    second.set(xlim=(0.5, 15.5), xticks=(1, 5, 10, 15), yticks=range(5))
    finish(second, title="XOR is never learned", xlabel="pass", ylabel="mistakes of four")
    third.fill_between(x, 0.5 - x, 1.5 - x, color="C0", alpha=0.15)
    third.plot(x, 0.5 - x, "C1", label="a OR b")
    third.plot(x, 1.5 - x, "C2", label="a NAND b")
    plane(third, "XOR")
    finish(third, title="XOR: between two lines")
    total = {"of 2 bits": 16, "of 3 bits": 256, "of 4 bits": 65536}
    bars = right.bar(counts.keys(), [100 * count / total[name] for name, count in counts.items()], color="C0")
    right.bar_label(bars, [f"{count:,} of\n{total[name]:,}" for name, count in counts.items()], padding=3)
    right.set(ylim=(0, 115), ylabel="%", title="what one neuron can be")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
