"""A small made-up world of people, the same at every start; and people who are not in it.

What is held out of the facts are questions: the prose tells them all, since nobody can know what was never
said, and a tenth of them is never asked in training.
"""

import random

from tasks.problem import Problem, Task
from tasks.words import draw_word, key_of

PEOPLE = 40
JOBS = ("baker", "teacher", "farmer", "sailor", "painter", "doctor", "singer", "tailor")
ANIMALS = ("cat", "dog", "horse", "goat", "parrot", "rabbit")
TOWNS = ("Tolen", "Marib", "Suneka", "Dorva", "Pelim", "Garun", "Lisota", "Nefar")
# What is told of a person: how it is asked, answered, and said in prose.
FACTS_OF = {
    "town": ("Where does {} live?", "{} lives in {}", ("{} lives in {}.", "The home of {} is in {}.")),
    "job": ("What does {} do?", "{} is a {}", ("{} is a {}.", "{} works as a {}.")),
    "animal": ("Which animal does {} have?", "{} has a {}", ("{} has a {}.", "{} takes care of a {}.")),
}


def make_people() -> dict[str, dict[str, str]]:
    """Names, and what is true of each."""
    source = random.Random("the world")
    names: dict[str, dict[str, str]] = {}
    while len(names) < PEOPLE:
        name = draw_word(source).capitalize()
        names[name] = {
            "town": source.choice(TOWNS), "job": source.choice(JOBS), "animal": source.choice(ANIMALS)
        }  # fmt: skip
    return names


WORLD = make_people()


def draw_fact(source: random.Random) -> Problem:
    """A question about someone."""
    name, kind = source.choice(list(WORLD)), source.choice(list(FACTS_OF))
    value = WORLD[name][kind]
    question, answer, said = FACTS_OF[kind]
    turns = (f"{answer.format(name, value)}.",)
    statement = source.choice(said).format(name, value)
    return Problem(question.format(name), turns, value, f"{name} {kind}", 1, statement)


def draw_unknown(source: random.Random) -> Problem:
    """A question about someone of whom nothing was ever told."""
    name = draw_word(source).capitalize()
    while name in WORLD:
        name = draw_word(source).capitalize()
    question = FACTS_OF[source.choice(list(FACTS_OF))][0].format(name)
    return Problem(question, (f"About {name} I don't know.",), "don't know", key_of(name.lower()), 1)


FACTS = Task("facts", draw_fact)
UNKNOWN = Task("unknown", draw_unknown)
