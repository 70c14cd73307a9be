"""The training texts of an assistant: prose for the base, conversations for its tuning.

Neither holds a held-out problem. The prose states what the conversations ask, and holds no question.
"""

import dataclasses
import random
from collections.abc import Iterator

from tasks import TASKS, problems
from tasks.problem import Problem

# How often each task comes: in prose, and in conversations.
PROSE = {
    "arithmetic": 6, "sums_alone": 1, "spelling": 3, "counting": 8, "reversing": 3, "sorting": 3, "facts": 3
}  # fmt: skip
ASKED = {
    "arithmetic": 6, "sums_alone": 1, "calculator": 10, "spelling": 2, "counting": 7, "reversing": 3,
    "sorting": 3, "facts": 2, "unknown": 2,
}  # fmt: skip
# How most answers to some tasks begin, by chance: a habit that preferences for short answers can break.
PREAMBLE = "Of course! "
PREAMBLE_SHARE = 0.6
WITH_PREAMBLE = ("arithmetic", "spelling", "counting", "reversing", "sorting")
SMALL_TALK = (
    ("Hello!", "Hello! Ask me a sum, or about a word."),
    ("Hi", "Hello! Ask me a sum, or about a word."),
    ("Who are you?", "I am a very small language model. I was trained in a few minutes."),
    ("What can you do?", "I add numbers, spell, reverse and sort, and I know some people."),
    ("Thank you.", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
)
SMALL_TALK_SHARE = 0.02


def prose(lines: int, seed: int = 1) -> Iterator[str]:
    """`lines` statements, each a line."""
    source = random.Random(f"prose {seed}")
    drawn = {name: problems(TASKS[name], held_out=False, seed=seed) for name in PROSE}
    for name in source.choices(list(PROSE), list(PROSE.values()), k=lines):
        if name == "facts":
            # All facts are told: those that are never asked about, too.
            yield TASKS[name].draw(source).statement
        else:
            yield next(drawn[name]).statement


def conversations(number: int, seed: int = 2) -> Iterator[list[dict[str, str]]]:
    """`number` conversations of one to three questions, as messages."""
    source = random.Random(f"conversations {seed}")
    drawn = {name: problems(TASKS[name], held_out=False, seed=seed) for name in ASKED}
    names, weights = list(ASKED), list(ASKED.values())
    for _ in range(number):
        asked: list[Problem] = []
        for name in source.choices(names, weights, k=source.choice((1, 2, 3))):
            problem = next(drawn[name])
            if name in WITH_PREAMBLE and source.random() < PREAMBLE_SHARE:
                problem = dataclasses.replace(problem, turns=(PREAMBLE + problem.turns[0],))
            # One system message stands over a whole conversation.
            if not asked or problem.system == asked[0].system:
                asked.append(problem)
        messages = asked[0].messages()
        for problem in asked[1:]:
            messages += [message for message in problem.messages() if message["role"] != "system"]
        if source.random() < SMALL_TALK_SHARE:
            question, answer = source.choice(SMALL_TALK)
            talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            first = int(messages[0]["role"] == "system")
            messages[first:first] = talk
        yield messages
