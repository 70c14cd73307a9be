"""Lesson 3.7. Temperature, top-k, top-p: three ways to draw from the same distribution.

A model gives probabilities; what it writes depends on how one draws. A temperature T divides the logits:
below 1 the likely becomes likelier, above 1 the distribution flattens, and T = 0 means always the most
probable. Top-k and top-p cut off the tail, where a thousand characters that are each improbable would
together be drawn too often.

    python lessons/3_gpt/7_sampling.py

Temperature: Ackley, Hinton and Sejnowski (1985); top-k: Fan et al. (2018); top-p: Holtzman et al. (2020).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import Text, run, shakespeare
from drawing import save
from matplotlib import pyplot
from torch import Tensor

from engine.generation import Sampling


class Counts:
    """A model without training: how often each character follows the last three, two, one and none."""

    def __init__(self, text: Text) -> None:
        self.V, self.tables = text.vocab_size, []
        for order in range(4):
            length = len(text.train) - order
            index = sum(text.train[i : i + length] * self.V ** (order - i) for i in range(order + 1))
            self.tables.append(torch.bincount(index, minlength=self.V ** (order + 1)).view(-1, self.V))

    def logits(self, ids: list[int]) -> Tensor:
        """Log-probabilities (V,) of what follows. A context seen n times counts n / (n + 3) of the whole."""
        blend = torch.full((self.V,), 1 / self.V, dtype=torch.float64)
        for order, table in enumerate(self.tables):
            row = table[sum(ids[i - order] * self.V ** (order - 1 - i) for i in range(order))]
            blend = (row + 3 * blend) / (row.sum() + 3)
        return blend.log()


def with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / T), (V,); T = 0 is the limit: all on the most probable."""
    if temperature == 0:
        return torch.zeros_like(logits).index_fill(0, logits.argmax(), 1.0)
    return (logits / temperature).softmax(dim=0)


def top_k(probabilities: Tensor, k: int) -> Tensor:
    """Only the k most probable, made to sum to 1 again."""
    kept = torch.zeros_like(probabilities)
    best = probabilities.topk(k).indices
    kept[best] = probabilities[best]
    return kept / kept.sum()


def top_p(probabilities: Tensor, p: float) -> Tensor:
    """Only the fewest most probable ones that together reach p, made to sum to 1 again."""
    reached = probabilities.sort(descending=True).values.cumsum(dim=0)
    return top_k(probabilities, min(int((reached < p).sum()) + 1, len(reached)))


def distribution(logits: Tensor, temperature: float, k: int | None = None, p: float | None = None) -> Tensor:
    """The three after each other, (V,): what the next character is drawn from."""
    probabilities = with_temperature(logits, temperature)
    probabilities = probabilities if k is None else top_k(probabilities, k)
    return probabilities if p is None else top_p(probabilities, p)


def entropy(probabilities: Tensor) -> float:
    """In nats: 0 where one character has it all, ln V where all are equal."""
    present = probabilities[probabilities > 0]
    return abs((present * present.log()).sum().item())


WAYS = {"T = 0": (0,), "T = 0.5": (0.5,), "T = 1": (1,), "T = 2": (2,)}
WAYS |= {"T = 1, top-k 5": (1, 5), "T = 1, top-p 0.8": (1, None, 0.8)}


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    four = torch.tensor([0.5, 0.3, 0.15, 0.05])
    return {
        "1. the first of two, logits ln 4 and 0, T = 0.5": with_temperature(
            torch.tensor([4.0, 1.0]).log(), 0.5
        )[0].item(),
        "2. how many top-p 0.9 keeps of 0.5, 0.3, 0.15, 0.05": int((top_p(four, 0.9) > 0).sum()),
        "3. the first of these after top-k 2": top_k(four, 2)[0].item(),
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Draw in six ways from one model, compare with model.py; returns the figures."""
    torch.manual_seed(seed)
    text = shakespeare()
    model = Counts(text)
    prompt = text.tokenizer.encode("\nKING HENRY:\nWhat is th").tolist()
    logits = model.logits(prompt)
    order = logits.argsort(descending=True)[:20]
    names = text.tokenizer.decode(order.tolist()).replace(" ", "␣").replace("\n", "↵")

    figures = {}
    figure, rows = pyplot.subplots(6, 2, figsize=(11, 9.5), layout="constrained", width_ratios=(1, 1.1))
    for (left, right), (name, way) in zip(rows, WAYS.items(), strict=True):
        ids = list(prompt)
        for _ in range(40 if quick else 160):
            ids.append(int(torch.multinomial(distribution(model.logits(ids), *way), 1)))
        sample = text.tokenizer.decode(ids[len(prompt) :])
        figures[name] = entropy(distribution(logits, *way))
        print(f"{name:<18}entropy {figures[name]:.2f} nats: {sample!r}")

        left.bar(range(len(order)), distribution(logits, *way)[order].numpy(), color="C0")
        left.set_xticks(range(len(order)), names)
        left.set(ylim=(0, 1), ylabel=name)
        right.axis("off")
        wrapped = [line[i : i + 64] for line in sample.split("\n") for i in range(0, max(1, len(line)), 64)]
        right.text(0, 1, "\n".join(wrapped[:9]), va="top", family="monospace", fontsize=9, parse_math=False)
    rows[0][0].set_title("after “What is th”, the next character")
    rows[0][1].set_title("what it writes")

    differences = []
    for way in ((0.5, None, None), (2.0, None, None), (1.0, 5, None), (1.0, None, 0.8), (0.7, 20, 0.9)):
        theirs = Sampling(*way).probabilities(logits[None])[0]
        differences.append((distribution(logits, *way) - theirs).abs().max().item())
    print(f"largest difference from engine/generation.py: {max(differences):.1e}")
    save(figure, __file__)
    kept = float((distribution(logits, 1, 5) > 0).sum())
    return figures | {"difference": max(differences), "kept": kept}


if __name__ == "__main__":
    run(main, __doc__, exercises)
