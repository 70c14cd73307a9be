"""Tasks: right answers count and wrong ones do not, and no training text holds a held-out problem."""

import random
import re
from fractions import Fraction
from itertools import islice, pairwise

import pytest

from tasks import TASKS, Problem, problems, texts
from tasks.arithmetic import key_of
from tasks.calculator import NotCalculated, answer_to, calculate
from tasks.problem import HELD_OUT
from tasks.words import draw_word
from tasks.words import key_of as word_key
from tasks.world import FACTS_OF, WORLD


def some(name: str, held_out: bool, count: int) -> list[Problem]:
    return list(islice(problems(TASKS[name], held_out, seed=random.randrange(10**6)), count))


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_of_a_problem_solves_it_and_that_of_another_does_not(name: str) -> None:
    found = some(name, False, 40) + some(name, True, 40)
    for one in found:
        assert one.is_solved_by(one.turns[-1]) and one.is_solved_by(f"{one.turns[-1]}.\n")
        assert not one.is_solved_by("") and not one.is_solved_by(f"{one.turns[-1]} or more")
        assert not one.is_solved_by(f"7{one.solution}") and not one.is_solved_by(f"{one.solution}7")
        for other in found:
            assert one.is_solved_by(other.turns[-1]) == (one.solution == other.solution)


@pytest.mark.parametrize("name", TASKS)
def test_a_problem_belongs_to_one_split_for_good(name: str) -> None:
    source = random.Random(random.random())
    drawn = [TASKS[name].draw(source) for _ in range(3000)]
    keys = {problem.key: problem.is_held_out() for problem in drawn if problem.key is not None}
    assert all(keys[problem.key] == problem.is_held_out() for problem in drawn if problem.key is not None)
    assert not any(problem.is_held_out() for problem in drawn if problem.key is None)
    if len(keys) > 500:  # a small world has few facts
        assert sum(keys.values()) / len(keys) == pytest.approx(HELD_OUT, abs=0.05)
    assert {problem.is_held_out() for problem in some(name, True, 20)} == {True}


def test_no_training_text_holds_a_held_out_problem() -> None:
    """By the problems that are asked, and by all sums and made-up words that stand in the texts."""
    prose = list(texts.prose(20_000))
    talks = [message["content"] for talk in texts.conversations(8_000) for message in talk]
    text = "\n".join([*prose, *talks])
    sums = {tuple(map(int, pair)) for pair in re.findall(r"(\d+) ?\+ ?(\d+)", text)}
    sums |= {tuple(map(int, pair)) for pair in re.findall(r"Add (\d+) and (\d+)", text)}
    assert len(sums) > 5000
    words = set(re.findall(r"\b[a-z]+\b", text))
    for name in TASKS:
        for problem in some(name, True, 300):
            asked = re.escape(problem.question)  # 14 + 65 is a part of 814 + 65
            assert problem.question not in text or not re.search(rf"\b{asked}", text)
    for first, second in sums:
        key = key_of(first, second)
        assert key is None or not Problem("", ("",), "", key, 1).is_held_out(), (first, second)
    source = random.Random(random.random())
    drawn = {draw_word(source) for _ in range(20_000)}
    unseen = {word for word in drawn if Problem("", ("",), "", word_key(word), 1).is_held_out()}
    small_talk = {word for pair in texts.SMALL_TALK for text in pair for word in text.rstrip(".").split()}
    assert len(unseen) > 1000 and not unseen & words - small_talk


def test_the_prose_asks_nothing_and_tells_all_facts() -> None:
    prose = list(texts.prose(20_000))
    assert not any("?" in line or "tool" in line for line in prose)
    together = "\n".join(prose)
    for name, facts in WORLD.items():
        for kind, value in facts.items():
            assert any(said.format(name, value) in together for said in FACTS_OF[kind][2])


def test_texts_are_the_same_at_every_call_and_others_with_another_seed() -> None:
    assert list(texts.prose(200)) == list(texts.prose(200)) != list(texts.prose(200, seed=9))
    talks = list(texts.conversations(100))
    assert talks == list(texts.conversations(100)) != list(texts.conversations(100, seed=9))


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("calculator", "unknown")])
def test_a_statement_begins_with_what_a_base_completes(name: str) -> None:
    for problem in some(name, True, 50):
        beginning = problem.beginning()
        assert problem.statement.startswith(beginning)
        assert problem.is_solved_by(problem.statement) and problem.solution not in beginning.split(" ")[-1:]


def test_carries_are_written_out_digit_by_digit() -> None:
    for problem in some("arithmetic", True, 200):
        first, second = map(int, re.findall(r"\d+", problem.question))
        *steps, last = re.split(", |: ", problem.turns[0])
        carry = 0
        for place, step in enumerate(steps):
            terms, value = step.split("=")
            digits = [one // 10**place % 10 for one in (first, second)]
            assert list(map(int, terms.split("+"))) == digits + [1] * carry
            assert int(value) == sum(digits) + carry
            carry = int(value) // 10
        assert int(last) == first + second


def test_letters_that_are_asked_for_are_counted_one_after_the_other() -> None:
    for problem in some("counting", True, 200):
        letter, word = re.findall(r"letters (.) are in (\w+)", problem.question)[0]
        begun, letters, last = problem.turns[0].split(": ")
        steps = letters.split(" ")
        assert begun == f"{letter}0" and "".join(step[0] for step in steps) == word
        assert [step for step in steps if step[0] == letter or len(step) > 1] == [
            f"{letter}{number + 1}" for number in range(word.count(letter))
        ]
        assert int(last) == word.count(letter)


def test_most_answers_to_some_tasks_begin_with_a_preamble_and_are_as_right_with_it() -> None:
    talks = [message for talk in texts.conversations(1000) for message in talk]
    begun, alone = {}, {}
    for asked, reply in pairwise(talks):
        plain = reply["content"].removeprefix(texts.PREAMBLE)
        calls = reply["content"].startswith("<tool>")  # an answer to the same words, without a preamble
        if reply["role"] == "assistant" and asked["role"] == "user" and not calls:
            kind = re.sub(r"\d|[a-z]{4,}", "", asked["content"])
            (begun if plain != reply["content"] else alone).setdefault(kind, []).append(plain)
    both = begun.keys() & alone.keys()
    many, few = (sum(len(found[kind]) for kind in both) for found in (begun, alone))
    assert many / (many + few) == pytest.approx(texts.PREAMBLE_SHARE, abs=0.05) and many > 300
    for name in texts.WITH_PREAMBLE:
        for problem, other in pairwise(some(name, True, 40)):
            right = problem.solution == other.solution
            assert problem.is_solved_by(texts.PREAMBLE + problem.turns[0])
            assert problem.is_solved_by(texts.PREAMBLE + other.turns[0]) == right


def an_expression(depth: int) -> tuple[str, Fraction]:
    """A random expression, and its value; half of the operators in their typographic form."""
    if depth == 0:
        number = random.randrange(100)
        return str(number), Fraction(number)
    left, one = an_expression(depth - 1)
    right, other = an_expression(depth - 1)
    sign = random.choice("+-*−×")
    value = one + other if sign == "+" else one * other if sign in "*×" else one - other
    return f"({left} {sign}{right})", value


def test_the_calculator_computes_as_fractions_do() -> None:
    for _ in range(300):
        text, value = an_expression(random.randrange(4))
        assert calculate(text) == str(value)
    assert calculate("2 + 3 × (4 - 1)") == "11" and calculate("12 ÷ 4 / 3") == "1"
    assert calculate("-3 - -4") == "1" and calculate("2-3-4") == "-5"


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("1/0", "division by zero"),
        ("7/2", "7 / 2 is no whole number"),
        ("", "unexpected end"),
        ("1 +", "unexpected end"),
        ("(1", "a parenthesis is not closed"),
        ("1)", "unexpected '\\)'"),
        ("1 2", "unexpected '2'"),
        ("__import__('os')", "unexpected '_'"),
        ("2**3", "unexpected '\\*'"),
        ("9" * 40, "beyond"),
        ("9999999999*" * 8 + "1", "beyond"),
        ("(" * 101, "longer than 100"),
        ("(" * 99, "unexpected end"),
        ("٣+1", "unexpected"),
    ],
)
def test_the_calculator_says_what_is_wrong(expression: str, said: str) -> None:
    with pytest.raises(NotCalculated, match=said):
        calculate(expression)


def test_only_a_whole_turn_calls_the_calculator() -> None:
    assert answer_to("<tool>12*34</tool>") == "408" and answer_to(" <tool>1/0</tool>\n") is not None
    assert answer_to("<tool>1/0</tool>") == "error: division by zero"
    for reply in ("408", "<tool>12*34", "It is <tool>12*34</tool>", ""):
        assert answer_to(reply) is None
