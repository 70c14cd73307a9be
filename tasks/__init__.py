"""Questions whose answers a program can check, made by chance: what an assistant is tuned on and measured by.

    python eval.py out/assistant_chat --tasks arithmetic spelling

Each task draws problems, and each problem belongs for good to the training or to the held-out ones: by a hash
of what is asked, so that no text for training can hold a held-out one. `texts.py` makes the data sets.
"""

from tasks.arithmetic import ARITHMETIC, CALCULATOR, SUMS_ALONE
from tasks.problem import Problem, Task, problems
from tasks.words import COUNTING, REVERSING, SORTING, SPELLING
from tasks.world import FACTS, UNKNOWN

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        ARITHMETIC, SUMS_ALONE, CALCULATOR, SPELLING, COUNTING, REVERSING, SORTING, FACTS, UNKNOWN
    )
}  # fmt: skip

__all__ = ["TASKS", "Problem", "Task", "problems"]
