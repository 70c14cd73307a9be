"""Made-up words: spelled, searched for a letter, reversed; and numbers put in order."""

import random

from tasks.problem import Problem, Task

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def draw_word(source: random.Random) -> str:
    """A word of two or three syllables, such as "banilo" and "tofur"."""
    syllables = source.choice((2, 2, 3))
    word = "".join(source.choice(CONSONANTS) + source.choice(VOWELS) for _ in range(syllables))
    return word + source.choice(("", source.choice(CONSONANTS)))


def key_of(word: str) -> str:
    """The same for a word and its reverse, which would give each other's answers away."""
    return min(word, word[::-1])


def draw_spelling(source: random.Random) -> Problem:
    """How a word is spelled."""
    word = draw_word(source)
    spelled = "-".join(word)
    question = source.choice(("Spell {}.", "How is {} spelled?")).format(word)
    return Problem(question, (spelled,), spelled, key_of(word), len(word), f"{word} is spelled {spelled}.")


def counted(word: str, letter: str) -> str:
    """The letters of a word, and behind each that is asked for how many there were: a0: b a1 n a2 n a3."""
    counts = (word[: place + 1].count(letter) for place in range(len(word)))
    letters = (f"{one}{count}" if one == letter else one for one, count in zip(word, counts, strict=True))
    return f"{letter}0: {' '.join(letters)}"


def draw_counting(source: random.Random) -> Problem:
    """How often a letter stands in a word."""
    word = draw_word(source)
    letter = source.choice(word if source.random() < 0.8 else VOWELS)
    answer = f"{counted(word, letter)}: {word.count(letter)}"
    question = f"How many letters {letter} are in {word}?"
    statement = f"Letters {letter} in {word}, {answer}."
    return Problem(question, (answer,), str(word.count(letter)), key_of(word), len(word), statement)


def draw_reversing(source: random.Random) -> Problem:
    """A word from its end to its beginning."""
    word = draw_word(source)
    backwards = word[::-1]
    question = source.choice(("Reverse {}.", "Write {} backwards.")).format(word)
    statement = f"{word} backwards is {backwards}."
    return Problem(question, (backwards,), backwards, key_of(word), len(word), statement)


def draw_sorting(source: random.Random) -> Problem:
    """Numbers in their order."""
    numbers = source.sample(range(100), source.choice((3, 4)))
    given, ordered = (", ".join(map(str, row)) for row in (numbers, sorted(numbers)))
    statement = f"{given} in order: {ordered}."
    return Problem(f"Sort {given}.", (ordered,), ordered, ordered, len(numbers), statement)


SPELLING = Task("spelling", draw_spelling)
COUNTING = Task("counting", draw_counting)
REVERSING = Task("reversing", draw_reversing)
SORTING = Task("sorting", draw_sorting)
