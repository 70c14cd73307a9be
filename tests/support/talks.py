"""Random conversations, and a data set of them."""

import json
import random
from pathlib import Path

from engine.data.dataset import Dataset, open_dataset
from engine.preparation.pipeline import prepare
from engine.preparation.request import Request

WORDS = ["what", "is", "the", "sum", "of", "two", "and", "please", "tell", "me", "cats", "12", "naïve"]


def some(words: int) -> str:
    """So many random words."""
    return " ".join(random.choices(WORDS, k=words))


def talks(number: int, longest: int = 3) -> list[dict]:
    """So many random conversations of up to `longest` exchanges, all different."""
    found = []
    for index in range(number):
        turns = [{"role": "system", "content": f"Number {index}."}]
        for _ in range(random.randint(1, longest)):
            turns.append({"role": "user", "content": some(4)})
            turns.append({"role": "assistant", "content": some(random.randint(1, 6))})
        found.append({"messages": turns})
    return found


def written(records: list[dict], name: str = "talk.jsonl") -> list[str]:
    """A file of records in the current folder; its name, as input."""
    Path(name).write_text("\n".join(map(json.dumps, records)))
    return [name]


def made(inputs: list[str], name: str = "talk", **options: object) -> tuple[Dataset, list[str]]:
    """data/talk of these files, and what was said meanwhile."""
    said: list[str] = []
    prepare(Request(name, inputs, **{"tokenizer": "bytes", **options}), said.append)
    return open_dataset(name, 4), said
