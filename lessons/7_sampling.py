"""Lesson 7. Temperature, top-k, top-p: three ways to draw from the same distribution.

A model gives probabilities; what it writes depends on how one draws. A temperature T divides the logits:
below 1 the likely becomes likelier, above 1 the distribution flattens, and T = 0 means always the most
probable. Top-k and top-p cut off the tail, where a thousand characters that are each improbable would
together be drawn too often.

    python lessons/7_sampling.py        (10 seconds)

Temperature: Ackley, Hinton and Sejnowski (1985); top-k: Fan et al. (2018); top-p: Holtzman et al. (2020).
"""

import torch
from common import Text, run, save, shakespeare
from matplotlib import pyplot
from torch import Tensor

from model import next_token_probabilities

CONTEXT = 3  # characters that the model of this lesson looks back


class Counts:
    """A model without training: how often each character follows the last three, blended with shorter
    contexts.
    """

    def __init__(self, text: Text) -> None:
        self.text = text
        V = text.vocab_size
        self.tables = []
        for order in range(CONTEXT + 1):
            length = len(text.train) - order
            index = sum(text.train[i : i + length] * V ** (order - i) for i in range(order + 1))
            self.tables.append(torch.bincount(index, minlength=V ** (order + 1)).view(-1, V))

    def logits(self, ids: list[int]) -> Tensor:
        """Log-probabilities (V,) of what follows. A context seen n times counts n / (n + 3) of the whole."""
        V = self.text.vocab_size
        blend = torch.full((V,), 1 / V, dtype=torch.float64)
        for order, table in enumerate(self.tables):
            row = table[sum(ids[len(ids) - order + i] * V ** (order - 1 - i) for i in range(order))]
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
    ordered, order = probabilities.sort(descending=True)
    count = int((ordered.cumsum(dim=0) < p).sum()) + 1
    return top_k(probabilities, min(count, len(order)))


def entropy(probabilities: Tensor) -> float:
    """In nats: 0 where one character has it all, ln V where all are equal."""
    present = probabilities[probabilities > 0]
    return abs((present * present.log()).sum().item())


WAYS = {
    "T = 0": lambda logits: with_temperature(logits, 0),
    "T = 0.5": lambda logits: with_temperature(logits, 0.5),
    "T = 1": lambda logits: with_temperature(logits, 1),
    "T = 2": lambda logits: with_temperature(logits, 2),
    "T = 1, top-k 5": lambda logits: top_k(with_temperature(logits, 1), 5),
    "T = 1, top-p 0.8": lambda logits: top_p(with_temperature(logits, 1), 0.8),
}


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Draw in six ways from one model, compare with model.py; returns the figures."""
    text = shakespeare()
    model = Counts(text)
    prompt = text.tokenizer.encode("\nKING HENRY:\nWhat is th").tolist()
    logits = model.logits(prompt)

    torch.manual_seed(seed)
    samples, entropies = {}, {}
    for name, way in WAYS.items():
        ids = list(prompt)
        for _ in range(40 if quick else 160):
            ids.append(int(torch.multinomial(way(model.logits(ids)), 1)))
        samples[name] = text.tokenizer.decode(ids[len(prompt) :])
        entropies[name] = entropy(way(logits))
        print(f"{name:<18}entropy {entropies[name]:.2f} nats: {samples[name]!r}")

    differences = []
    for temperature, k, p in (
        (0.5, None, None),
        (2.0, None, None),
        (1.0, 5, None),
        (1.0, None, 0.8),
        (0.7, 20, 0.9),
    ):
        ours = with_temperature(logits, temperature)
        ours = ours if k is None else top_k(ours, k)
        ours = ours if p is None else top_p(ours, p)
        differences.append(
            (ours - next_token_probabilities(logits[None], temperature, k, p)[0]).abs().max().item()
        )
    print(f"largest difference from model.py's next_token_probabilities: {max(differences):.1e}")
    draw(text.tokenizer.decode(range(text.vocab_size)), logits, samples)
    return entropies | {
        "difference": max(differences),
        "kept": float((WAYS["T = 1, top-k 5"](logits) > 0).sum()),
    }


def draw(characters: str, logits: Tensor, samples: dict[str, str]) -> None:
    """The bars of each way, and beside them what it writes."""
    order = logits.argsort(descending=True)[:20]
    names = [{" ": "␣", "\n": "↵"}.get(characters[i], characters[i]) for i in order]
    figure, panels = pyplot.subplots(
        len(WAYS), 2, figsize=(11, 9.5), layout="constrained", width_ratios=(1, 1.1)
    )
    for (left, right), (name, way) in zip(panels, WAYS.items(), strict=True):
        left.bar(range(len(order)), way(logits)[order].numpy(), color="C0")
        left.set_xticks(range(len(order)), names)
        left.set_ylim(0, 1)
        left.set_ylabel(name)
        right.axis("off")
        lines = samples[name].split("\n")
        wrapped = [line[i : i + 64] for line in lines for i in range(0, max(1, len(line)), 64)]
        right.text(0, 1, "\n".join(wrapped[:9]), va="top", family="monospace", fontsize=9, parse_math=False)
    panels[0][0].set_title("after “What is th”, the next character")
    panels[0][1].set_title("what it writes")
    save(figure, "7_sampling")
    pyplot.close(figure)


if __name__ == "__main__":
    run(main, __doc__)
