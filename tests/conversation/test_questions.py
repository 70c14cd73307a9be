"""Questions from a file: checked line by line, solved by a number or by words, and kept in two parts."""

import json
from itertools import islice
from pathlib import Path

import pytest

from engine.conversation.questions import FileProblem, read_questions, task_named
from engine.errors import UserError
from tasks import problems


def write(path: Path, records: list[object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_the_solution_is_what_follows_the_last_mark_or_all(tmp_path: Path) -> None:
    records = [
        {"question": " How many? ", "answer": "She has 2, then <<2+3=5>>5.\n#### 1,234"},
        {"question": "Who?", "answer": "Nobody", "more": 1},
    ]
    first, second = read_questions(write(tmp_path / "q.jsonl", records))
    assert (first.question, first.solution, second.solution) == ("How many?", "1,234", "Nobody")
    assert first.turns == (records[0]["answer"],) and first.key == "How many?"


@pytest.mark.parametrize(
    ("solution", "reply", "is_right"),
    [
        ("1,234", "So it is 1234.", True),
        ("1234", "12 and 34 make $1,234.00 in all", True),
        ("42", "#### 42", True),
        ("42", "42, or rather 43", False),
        ("-3", "it is -3", True),
        ("3", "it is -3", False),
        ("42", "forty-two", False),
        ("Nobody", "It was Nobody.", True),
        ("Nobody", "Nobody knows", False),
    ],
)
def test_a_number_counts_by_its_value_and_words_by_the_end(solution: str, reply: str, is_right: bool) -> None:
    assert FileProblem("?", (solution,), solution, "?", 0).is_solved_by(reply) == is_right


def test_a_tenth_is_held_out_and_both_parts_are_drawn(tmp_path: Path) -> None:
    records = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(300)]
    task = task_named(write(tmp_path / "q.jsonl", records))
    parts = []
    for held_out in (True, False):
        drawn = islice(problems(task, held_out, seed=1), 2000)
        parts.append({problem.question for problem in drawn})
    assert not parts[0] & parts[1] and 10 < len(parts[0]) < 60 and len(parts[1]) > 200
    again = [problem.question for problem in islice(problems(task, False, seed=1), 20)]
    assert again == [problem.question for problem in islice(problems(task, False, seed=1), 20)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no JSON"),
        ("[]", "line 2 is no object with question, answer"),
        ('{"question": "Who?"}', "line 2: answer is missing"),
        ('{"question": 1, "answer": "2"}', "line 2: question must be"),
        ('{"question": " ", "answer": "2"}', "line 2: a question needs words"),
        ('{"question": "Who?", "answer": "I say #### "}', "line 2: a question needs words"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = Path(write(tmp_path / "q.jsonl", [{"question": "Who?", "answer": "I"}]))
    path.write_text(path.read_text() + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_questions(str(path))


def test_names_that_are_no_task_and_files_that_are_too_short(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean sorting"):
        task_named("sortin")
    with pytest.raises(UserError, match=r"nowhere\.jsonl cannot be read: No such file"):
        task_named("nowhere.jsonl")
    with pytest.raises(UserError, match="too few questions, 1"):
        task_named(write(tmp_path / "q.jsonl", [{"question": "Who?", "answer": "I"}]))
