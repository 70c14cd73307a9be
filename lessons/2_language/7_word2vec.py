"""Lesson 2.7. word2vec: words get their places from their neighbours, and analogies their honest score.

A word is known by the company it keeps. Give each word a vector, and train so that a word's vector points the
way of the words around it and not the way of words drawn at random. Words that are used alike come to lie
together, since they have the same neighbours to please. "man is to woman as king is to …" is a step from
place to place. After hundreds of millions of words it arrives every other time; after the 170,000 of
Shakespeare's that are here, once in twenty times, which is a hundred times as often as guessing does.

    python lessons/2_language/7_word2vec.py

After Mikolov et al., "Efficient estimation of word representations in vector space" (2013; its score is that
after 783 million words), and "Distributed representations of words and phrases" (2013).
"""

import re
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where common.py and drawing.py are

import torch
from common import beside, descend, run, shakespeare, size
from drawing import finish, panels, save
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, WINDOW, NEGATIVES, RARE = 64, 4, 5, 5
# Pairs of the same relation: every two of a row make a question, "man is to woman as king is to what?".
RELATIONS = {
    "sexes": "man woman king queen father mother brother sister lord lady son daughter husband wife boy girl "
    "he she his her himself herself uncle aunt prince princess",
    "several": "man men hand hands eye eyes friend friends lord lords day days king kings word words heart "
    "hearts tear tears year years soldier soldiers enemy enemies thing things",
    "past": "is was do did have had see saw come came make made say said know knew give gave take took",
}
ORIGINALS = {"words": 783e6, "CBOW: right": 0.361, "skip-gram: right": 0.533}
GROUPS = {
    "numbers": "two three four five six ten twenty",
    "kin": "father mother brother sister son daughter husband wife",
    "body": "hand eyes heart tongue head face blood",
    "doing": "go come bring take give leave send",
    "people": "romeo juliet gloucester warwick henry edward richard",
}
SHOWN = ("king", "love", "death", "brother", "sword", "three", "heaven", "go")


def read_words(text: str) -> tuple[list[str], Tensor, Tensor]:
    """The words that occur five times and more, how often each does, and the text as their ids."""
    tokens = re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())
    counted = [(word, count) for word, count in Counter(tokens).most_common() if count >= RARE]
    words = [word for word, _ in counted]
    place = {word: number for number, word in enumerate(words)}
    ids = torch.tensor([place[token] for token in tokens if token in place])
    return words, torch.tensor([count for _, count in counted]).double(), ids


def with_company(ids: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Each word (N,), and the 4 words before and the 4 after it (N, 8), most of the frequent ones left out.

    "the" and "and" tell little of what is beside them; without them the window reaches farther.
    """
    share = counts / counts.sum()
    kept = ids[torch.rand(len(ids)) < (1e-3 / share[ids]).sqrt()]
    rows = kept.unfold(0, 2 * WINDOW + 1, 1)
    return rows[:, WINDOW], torch.cat((rows[:, :WINDOW], rows[:, WINDOW + 1 :]), dim=1)


class Vectors(nn.Module):
    """Two vectors for each word: as the one that is looked at, and as company."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.word, self.company = nn.Embedding(vocabulary, WIDTH), nn.Embedding(vocabulary, WIDTH)
        nn.init.uniform_(self.word.weight, -0.5 / WIDTH, 0.5 / WIDTH)
        nn.init.zeros_(self.company.weight)

    def forward(self, known: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
        """How badly known (B, K), as one vector, tells right (B,) from wrong (B, N)."""
        hint = self.word(known).mean(dim=1, keepdim=True)  # (B, 1, C)
        other = self.company(torch.cat((right[:, None], wrong), dim=1))  # (B, 1 + N, C)
        scores = (hint * other).sum(dim=2)
        signs = torch.ones_like(scores)
        signs[:, 1:] = -1
        return -F.logsigmoid(signs * scores).sum(dim=1).mean()


def learn(ids: Tensor, counts: Tensor, steps: int, bag: bool) -> Vectors:
    """`bag`, CBOW: the company together predicts the word; else, skip-gram: the word predicts each of it."""
    model = Vectors(len(counts))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    drawn_from = counts**0.75  # wrong words: the frequent ones often, but less than they occur
    for step in range(steps):
        if step % 200 == 0:
            middle, company = with_company(ids, counts)
            pool = torch.multinomial(drawn_from, 1_000_000, replacement=True)
        optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, 2 * (steps - step) / steps)
        some = torch.randint(len(middle), (1024,))
        wrong = pool[torch.randint(len(pool), (1024, NEGATIVES))]
        if bag:
            loss = model(company[some], middle[some], wrong)
        else:
            one_of_it = company[some, torch.randint(2 * WINDOW, (1024,))]
            loss = model(middle[some, None], one_of_it, wrong)
        descend(optimizer, loss)
    return model


def nearest(vectors: Tensor, place: Tensor, apart_from: list[int], count: int) -> list[int]:
    """The words whose vectors (V, C), of length 1, point most the way of a place (C,)."""
    scores = vectors @ F.normalize(place, dim=0)
    scores[apart_from] = -1
    return scores.topk(count).indices.tolist()


def analogies(vectors: Tensor, words: list[str]) -> tuple[int, int, int]:
    """How many questions there are, how often the answer is the nearest word, and among the nearest ten."""
    place, first, ten, asked = {word: i for i, word in enumerate(words)}, 0, 0, 0
    for row in RELATIONS.values():
        pairs = list(zip(row.split()[::2], row.split()[1::2], strict=True))
        for known, other in permutations([pair for pair in pairs if set(pair) <= set(words)], 2):
            (a, b), (c, answer) = ([place[word] for word in pair] for pair in (known, other))
            best = nearest(vectors, vectors[b] - vectors[a] + vectors[c], [a, b, c], 10)
            first, ten, asked = first + (best[0] == answer), ten + (answer in best), asked + 1
    return asked, first, ten


def members(words: list[str]) -> tuple[list[str], Tensor]:
    """The words of the groups (M,), and which of them are in the same group as which, (M, M)."""
    found = [(group, word) for group, row in GROUPS.items() for word in row.split() if word in words]
    same = torch.tensor([[group == other for other, _ in found] for group, _ in found])
    return [word for _, word in found], same


def exercises() -> dict[str, float]:
    """The answers to the exercises of the guide."""
    return {
        "1. the loss before learning, with 5 negatives": (1 + NEGATIVES) * torch.tensor(2.0).log().item(),
        "2. pairs that a word in the middle of a text makes, window 4": 2 * WINDOW,
        "3. how many times as often a word is drawn that occurs 16 times as often": 16**0.75,
    }


def main(quick: bool = False, seed: int = 1) -> dict[str, float]:
    """Skip-gram and CBOW, neighbours, analogies; returns the figures."""
    torch.manual_seed(seed)
    text = shakespeare()
    words, counts, ids = read_words(text.tokenizer.decode(text.train.tolist()))
    shown, same = members(words)
    figures: dict[str, float] = {"words": len(ids), "different ones": len(words)}
    for name, bag in (("CBOW", True), ("skip-gram", False)):
        model = learn(ids, counts, size(quick, 200, 3_000), bag)
        vectors = F.normalize(model.word.weight.detach(), dim=1)
        asked, first, ten = analogies(vectors, words)
        figures |= {"questions": asked, f"{name}: right": first / max(asked, 1)}
        figures[f"{name}: among the nearest ten"] = ten / max(asked, 1)
        chosen = vectors[[words.index(word) for word in shown]]
        alike = chosen @ chosen.T
        figures[f"{name}: alike in a group"] = alike[same & (alike < 0.999)].mean().item()  # not with itself
        figures[f"{name}: across groups"] = alike[~same].mean().item()
        print(name)
        for i in (words.index(word) for word in SHOWN if word in words):
            near = ", ".join(words[j] for j in nearest(vectors, vectors[i], [i], 6))
            print(f"    {words[i]:<10}{near}")
    figures["right by guessing"] = 1 / len(words)
    beside(dict.fromkeys(figures) | ORIGINALS, figures)
    draw(alike, shown, figures)
    return figures


def draw(alike: Tensor, shown: list[str], figures: dict[str, float]) -> None:
    """How alike words of five kinds are to skip-gram, and the analogies beside the original's."""
    figure, (left, right) = panels(2, 16, 7.5, width_ratios=(1.3, 1))
    image = left.imshow(alike.numpy(), cmap="RdBu", vmin=-0.8, vmax=0.8)
    left.set_xticks(range(len(shown)), shown, rotation=90, fontsize=9)
    left.set_yticks(range(len(shown)), shown, fontsize=9)
    left.set_title(", ".join(GROUPS))
    figure.colorbar(image, ax=left, label="cosine", shrink=0.8)
    for offset, name in ((-0.2, "CBOW"), (0.2, "skip-gram")):
        right_here, near = figures[f"{name}: right"], figures[f"{name}: among the nearest ten"]
        bars = [ORIGINALS[f"{name}: right"], right_here, near]
        right.bar([place + offset for place in range(3)], bars, 0.38, label=name)
    right.set_xticks(range(3), ("783 million words:\nright", "here: right", "here: among the\nnearest ten"))
    right.axhline(figures["right by guessing"], color="black", linestyle="--", label="guessing")
    finish(right, title="man is to woman as king is to …", ylabel="share of the questions")
    save(figure, __file__)


if __name__ == "__main__":
    run(main, __doc__, exercises)
