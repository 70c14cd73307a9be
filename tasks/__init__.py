"""Random questions whose answers a program can check: an assistant is tuned on them and measured by them.

    python eval.py out/assistant_chat --tasks arithmetic spelling

Each task draws problems. A hash of what is asked decides whether a problem is for training or held out, so
that no training text can hold a held-out problem. `texts.py` makes the data sets.
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
