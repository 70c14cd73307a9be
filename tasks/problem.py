"""A problem, what a right answer to it is, and which split it belongs to."""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HELD_OUT = 0.1  # the share of problems that no training text holds


@dataclass(frozen=True)
class Problem:
    """A question, and a conversation that answers it."""

    question: str
    # An assistant's answer: one turn; or a call of the tool, its result, and an answer.
    turns: tuple[str, ...]
    solution: str  # what a right answer ends with
    key: str | None  # what is asked, however it is worded; None: never held out
    difficulty: int  # digits, letters or numbers
    statement: str = ""  # the same as a sentence of prose
    system: str | None = None  # what the assistant is told before

    def is_solved_by(self, reply: str) -> bool:
        """Whether an assistant's last turn ends with the solution, not within a list or a word."""
        reply = reply.rstrip(" .\n")
        before = reply[: -len(self.solution)]
        apart = not before or (before.endswith(" ") and not before.endswith(", "))
        return reply.endswith(self.solution) and apart

    def is_held_out(self) -> bool:
        """Whether it is for measuring: a tenth of all are, chosen by a hash of what is asked."""
        return self.key is not None and is_held_out(self.key)

    def beginning(self) -> str:
        """The statement up to its answer, for a base model to complete."""
        answer = self.turns[0] if self.statement.endswith(f"{self.turns[0]}.") else self.solution
        return self.statement[: -len(answer) - 1].rstrip()

    def messages(self) -> list[dict[str, str]]:
        """The conversation."""
        roles = ("assistant", "tool")
        told = [] if self.system is None else [{"role": "system", "content": self.system}]
        answer = [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(self.turns)]
        return [*told, {"role": "user", "content": self.question}, *answer]


def is_held_out(key: str) -> bool:
    """Whether a hash of the key puts it into the share HELD_OUT."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little") < HELD_OUT * 2**32


@dataclass(frozen=True)
class Task:
    """A kind of problem: `draw` makes one of either split."""

    name: str
    draw: Callable[[random.Random], Problem]


def problems(task: Task, held_out: bool, seed: int) -> Iterator[Problem]:
    """Endless problems of a split, a function of the seed."""
    source = random.Random(f"{task.name} {held_out} {seed}")
    while True:
        problem = task.draw(source)
        if problem.is_held_out() == held_out:
            yield problem
