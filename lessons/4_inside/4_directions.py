"""Lesson 4.4. Directions with meaning: from a to A, from consonants to vowels, from 0 to 9, and to capitals.

A GPT is trained on Shakespeare and on lines like 07<82. Nobody told it what a capital, a vowel or a digit is,
but in its embeddings one step leads from each small letter to its capital, another divides vowels from
consonants, and the digits lie in a row by size. In the stream, too, a thought is a direction: a dot product
reads it (how much does what I am point that way?), and adding it puts it there. With a little of "a capital
comes next" added, the network shouts; with a little subtracted, it never does.

    python lessons/4_inside/4_directions.py

The step from word to word: Mikolov et al. (2013), lesson 2.7. Linear directions: Park et al., "The linear
representation hypothesis" (2023). Adding them: Turner et al., "Activation addition" (2023).
"""

import math
import random
import string
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import beside, changed, fit, fresh_gpt, output_of, run, shakespeare, size, stretches
from drawing import finish, save, written_out
from matplotlib import pyplot
from torch import Tensor
from torch.nn import functional as F

from model import GPT

LENGTH = 32
SMALL, LARGE, DIGITS, VOWELS = string.ascii_lowercase, string.ascii_uppercase, string.digits, "aeiouAEIOU"
KINDS = {"capitals": LARGE, "vowels": VOWELS}
STRENGTHS = (-2, -1, -0.5, 0, 0.5, 1, 2)


def mixed_text(lines: list[str]) -> str:
    """The lines, and between them comparisons of numbers below 100."""
    text = []
    for line in lines:
        a, b = random.randrange(100), random.randrange(100)
        sign = "<" if a < b else ">" if a > b else "="
        text += [line, f"{a:02}{sign}{b:02}"] if random.random() < 0.6 else [line]
    return "\n".join(text)


def right_capitals(small: Tensor, large: Tensor, step: bool) -> int:
    """How many small letters (26, C) lead to their capitals (26, C), among all other letters.

    `step` adds the mean step from small to large of the other 25: nothing about this letter is known.
    """
    right = 0
    for letter in range(26):
        others = torch.arange(26) != letter
        place = small[letter] + step * (large[others] - small[others]).mean(dim=0)
        candidates = torch.cat((large, small[others]))
        right += (F.normalize(candidates, dim=1) @ place).argmax().item() == letter
    return right


def right_vowels(small: Tensor) -> int:
    """How many of the 26 are nearer, along the step between the means of the other 25, to their own kind."""
    vowel, right = torch.tensor([letter in VOWELS for letter in SMALL]), 0
    for letter in range(26):
        others = torch.arange(26) != letter
        one, zero = small[others & vowel].mean(dim=0), small[others & ~vowel].mean(dim=0)
        right += ((small[letter] - (one + zero) / 2) @ (one - zero) > 0).item() == vowel[letter].item()
    return right


def along_first_axis(points: Tensor) -> Tensor:
    """Where points (N, C) lie along the line on which they differ most, (N,)."""
    centred = points - points.mean(dim=0)
    return centred @ torch.linalg.svd(centred).Vh[0]


def told_apart(values: Tensor, is_so: Tensor) -> float:
    """How often one of these has a larger value than one of the others (guessing: 0.5)."""
    ranks = values.argsort().argsort().double()
    count = is_so.sum().item()
    return (ranks[is_so].mean().item() - (count - 1) / 2) / (len(values) - count)


@torch.no_grad()
def written(model: GPT, characters: str, direction: Tensor, count: int) -> list[str]:
    """Texts of 80 characters, a direction (C,) being added to the stream after the first block."""
    ids = torch.full((count, 1), characters.index("\n"))
    with changed(model.blocks[0], lambda stream: stream + direction):
        for _ in range(80):
            probabilities = model(ids[:, -LENGTH:])[:, -1].softmax(dim=-1)
            ids = torch.cat((ids, probabilities.multinomial(1)), dim=1)
    return ["".join(characters[i] for i in row) for row in ids[:, 1:].tolist()]


def share_of(texts: list[str], kind: str) -> float:
    """How many of the letters of texts are of a kind."""
    letters = [letter for letter in "".join(texts) if letter.isalpha()]
    return sum(letter in kind for letter in letters) / max(1, len(letters))


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. the dot product of two directions of length 1 with an angle of 60° between them": 0.5,
        "2. by what the odds of a token are multiplied, its logit raised by 2": math.exp(2),
        "3. letters of 26 that would lead to their capital by chance, among 51": 26 / 51,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Train, look for directions in the embeddings, read and add some in the stream; returns the figures."""
    torch.manual_seed(seed)
    random.seed(seed)
    play = shakespeare()
    text = mixed_text(play.tokenizer.decode(play.train[:600_000].tolist()).split("\n"))
    characters = "".join(sorted(set(text + SMALL + LARGE)))
    place = {character: i for i, character in enumerate(characters)}
    inputs, targets = stretches(torch.tensor([place[character] for character in text]), 40_000, LENGTH)
    model = fresh_gpt(seed, len(characters), LENGTH, n_layer=2, n_head=4, n_embd=64)
    fit(model, inputs, targets, size(quick, 250, 1_200), batch=32, rate=3e-3)

    embeddings = model.token_embedding.weight.detach()
    embeddings = embeddings - embeddings.mean(dim=0)
    small, large, digits = (embeddings[[place[each] for each in kind]] for kind in (SMALL, LARGE, DIGITS))
    row = along_first_axis(digits)
    figures = {
        "small letters whose step leads to their capital, of 26": right_capitals(small, large, step=True),
        "the same without a step": right_capitals(small, large, step=False),
        "letters on the right side of vowels and consonants, of 26": right_vowels(small),
        "digits along their first axis, correlation with size": abs(
            torch.corrcoef(torch.stack((row, torch.arange(10.0))))[0, 1].item()
        ),
    }

    # In the stream: the mean state before a capital, less that before another letter; with vowels the same.
    states = output_of(model.blocks[0], model, inputs[:4000]).flatten(0, 1)
    coming = [characters[i] for i in targets[:4000].flatten().tolist()]
    letter = torch.tensor([each.isalpha() for each in coming])
    learn = torch.arange(len(coming)) < len(coming) // 2  # directions from one half, figures from the other
    steered: dict[str, list[list[str]]] = {}
    for name, kind in KINDS.items():
        is_so = torch.tensor([each in kind for each in coming])
        direction = states[learn & is_so].mean(dim=0) - states[learn & letter & ~is_so].mean(dim=0)
        judged = letter & ~learn
        figures[f"{name}: told by a dot product"] = told_apart(states[judged] @ direction, is_so[judged])
        steered[name] = [
            written(model, characters, strength * direction, size(quick, 8, 64)) for strength in STRENGTHS
        ]
        for strength, texts in zip(STRENGTHS, steered[name], strict=True):
            figures[f"{name}: share with {strength:+g} of the direction"] = share_of(texts, kind)
    beside(dict.fromkeys(figures), figures)
    for strength, texts in zip(STRENGTHS, steered["capitals"], strict=True):
        print(f"    {strength:+g} of capitals: {texts[0][:70]!r}")
    draw(small, large, digits, figures, steered)
    return figures


def draw(small: Tensor, large: Tensor, digits: Tensor, figures: dict[str, float], steered: dict) -> None:
    """Letters along two directions, digits along theirs, what adding does, and what is then written."""
    figure, axes = pyplot.subplot_mosaic("ABC;DDD", figsize=(17, 9.5), layout="constrained")
    vowel = torch.tensor([each in VOWELS for each in SMALL])
    up = F.normalize((large - small).mean(dim=0), dim=0)
    across = F.normalize(small[vowel].mean(dim=0) - small[~vowel].mean(dim=0), dim=0)
    for letters, points in ((SMALL, small), (LARGE, large)):
        axes["A"].scatter(points @ across, points @ up, s=0)
        for each, x, y in zip(letters, points @ across, points @ up, strict=True):
            axes["A"].text(x, y, each, color="C3" if each in VOWELS else "C0", fontsize=14, ha="center")
    finish(axes["A"], title="letters' embeddings", xlabel="towards vowels", ylabel="towards capitals")
    row = along_first_axis(digits)
    axes["B"].plot(range(10), row * (1 if row[9] > row[0] else -1), "o-")
    axes["B"].set_xticks(range(10))
    finish(axes["B"], title="the digits lie in a row", xlabel="digit", ylabel="along their first axis")
    for name in KINDS:
        shares = [figures[f"{name}: share with {strength:+g} of the direction"] for strength in STRENGTHS]
        axes["C"].plot(STRENGTHS, shares, "o-", label=name)
    finish(axes["C"], title="a direction is added", xlabel="how much", ylabel="share of the letters written")
    lines = []
    for name, texts_by_strength in steered.items():
        for strength, texts in zip(STRENGTHS, texts_by_strength, strict=True):
            if strength in (-1, 0, 0.5, 1):
                lines.append(f"{strength:+4g} of {name:<10}{texts[0]}")
    written_out(axes["D"], "what it writes then", lines)
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
