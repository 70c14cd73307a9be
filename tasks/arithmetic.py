"""Sums of up to three digits: with the carries written out, without, and by the calculator.

347 + 285    7+5=12, 4+8+1=13, 3+2+1=6: 632
"""

import random
from itertools import zip_longest

from tasks.calculator import calculate
from tasks.problem import Problem, Task

WORDINGS = ("What is {} + {}?", "{} + {} = ?", "Add {} and {}.", "How much is {} + {}?")
TOLD = "You have a calculator."


def worked(first: int, second: int) -> str:
    """A sum digit by digit from the right, and its result."""
    steps, carry = [], 0
    for one, other in zip_longest(str(first)[::-1], str(second)[::-1], fillvalue="0"):
        value = int(one) + int(other) + carry
        steps.append(f"{one}+{other}{'+1' if carry else ''}={value}")
        carry = value // 10
    return f"{', '.join(steps)}: {first + second}"


def draw_terms(source: random.Random) -> tuple[int, int, int]:
    """Two terms and the digits that the longer may have: 1, 2 or, mostly, 3."""
    digits = source.choice((1, 2, 2, 3, 3, 3))
    first, second = source.randrange(10 ** (digits - 1), 10**digits), source.randrange(10**digits)
    return (first, second, digits) if source.random() < 0.5 else (second, first, digits)


def key_of(first: int, second: int) -> str | None:
    """The same for both orders; of sums with a single digit None, since all carries are made of them."""
    return None if min(first, second) < 10 else f"{min(first, second)}+{max(first, second)}"


def draw_sum(source: random.Random) -> Problem:
    """A sum with its carries."""
    first, second, digits = draw_terms(source)
    question = source.choice(WORDINGS).format(first, second)
    steps, key = worked(first, second), key_of(first, second)
    return Problem(question, (steps,), str(first + second), key, digits, f"{first} + {second}: {steps}.")


def draw_sum_alone(source: random.Random) -> Problem:
    """A sum without its carries."""
    first, second, digits = draw_terms(source)
    question = f"{source.choice(WORDINGS).format(first, second)} Only the result."
    result, key = str(first + second), key_of(first, second)
    return Problem(question, (result,), result, key, digits, f"{first} + {second} = {result}.")


def draw_calculation(source: random.Random) -> Problem:
    """A sum, a difference, a product or a quotient for the calculator."""
    first, second, digits = draw_terms(source)
    sign = source.choice("++-*/")
    if sign == "/":
        second = second % 30 + 1
        first *= second
    result = calculate(f"{first}{sign}{second}")
    wording = source.choice(WORDINGS) if sign == "+" else "What is {} " + sign + " {}?"
    key = key_of(first, second) if sign == "+" else f"{first}{sign}{second}"
    turns = (f"<tool>{first}{sign}{second}</tool>", result, result)
    return Problem(wording.format(first, second), turns, result, key, digits, system=TOLD)


ARITHMETIC = Task("arithmetic", draw_sum)
SUMS_ALONE = Task("sums_alone", draw_sum_alone)
CALCULATOR = Task("calculator", draw_calculation)
