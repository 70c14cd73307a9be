"""Tasks by name: those of tasks/, and questions from a file, such as GSM8K's (Cobbe et al., 2021).

A file has a question and an answer on each line, as JSON: {"question": "…", "answer": "… #### 42"}. The
solution is what follows the last ####, or the whole answer where there is none.
"""

import re
from decimal import Decimal
from pathlib import Path

from engine.conversation.messages import Message
from engine.errors import UserError, did_you_mean
from engine.json_files import check_fields, read_json_lines
from tasks import TASKS, Problem, Task

QUESTIONS_FILE = ".jsonl"  # the end of the name of a task that is a file
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class FileProblem(Problem):
    """A problem from a file. Of a number for a solution, the last number of the reply must be equal to it."""

    def is_solved_by(self, reply: str) -> bool:
        """Whether an assistant's last turn gives the solution."""
        if not NUMBER.fullmatch(self.solution):
            return super().is_solved_by(reply)
        found = NUMBER.findall(reply)
        return bool(found) and value_of(found[-1]) == value_of(self.solution)


def value_of(number: str) -> Decimal:
    """Its value; commas may group the digits."""
    return Decimal(number.replace(",", ""))


def task_named(name: str) -> Task:
    """A task of tasks/, or the questions of a file NAME.jsonl. Raises UserError."""
    if name in TASKS:
        return TASKS[name]
    if not name.endswith(QUESTIONS_FILE):
        raise UserError(
            f"tasks: {name} is none of tasks/{did_you_mean(name, TASKS)} (there are {' '.join(TASKS)}), "
            f"and no file of questions, {QUESTIONS_FILE}"
        )
    asked = read_questions(name)
    if {problem.is_held_out() for problem in asked} != {False, True}:
        raise UserError(
            f"{name} has too few questions, {len(asked)}: a hash decides which tenth of them is held out, "
            f"and both parts need some"
        )
    return Task(name, lambda source: source.choice(asked))


def question_of(problem: Problem) -> list[Message]:
    """The conversation up to its answer."""
    return [Message(**turn) for turn in problem.messages()[: -len(problem.turns)]]


def read_questions(path: str) -> list[Problem]:
    """The problems of a file, in its order. Raises UserError that names the first bad line."""
    asked: list[Problem] = []
    for where, record in read_json_lines(Path(path)):
        check_fields(record, {"question": str, "answer": str}, where)
        question, answer = record["question"].strip(), record["answer"].strip()
        solution = answer.rpartition("####")[2].strip()
        if not question or not solution:
            raise UserError(f"{where}: a question needs words, and an answer a solution")
        asked.append(FileProblem(question, (answer,), solution, question, difficulty=0))
    return asked
