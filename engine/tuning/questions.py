"""Questions of tasks/ for a model that is tuned, and the rewards of its answers."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.conversation.messages import Message
from engine.conversation.template import encode_question
from engine.errors import UserError, did_you_mean
from engine.settings import TuneSettings
from engine.text.roles import ChatTokenizer
from engine.training.run import Run
from engine.tuning.rollout import Answers, draw_answers
from tasks import TASKS, Problem, Task, problems


def chosen_tasks(names: str) -> list[Task]:
    """The tasks of these names. Raises UserError for what is none, or takes more than one turn to answer."""
    for name in names.split():
        if name not in TASKS:
            raise UserError(
                f"tasks: {name} is none of tasks/{did_you_mean(name, TASKS)} (there are {' '.join(TASKS)})"
            )
        if len(TASKS[name].draw(random.Random(0)).turns) > 1:
            raise UserError(f"tasks: {name} takes a tool's turn, and tune.py draws answers of one turn")
    if not names.split():
        raise UserError(f"tasks names no task; there are {' '.join(TASKS)}")
    return [TASKS[name] for name in names.split()]


def draw_questions(tasks: Sequence[Task], seed: int, count: int, held_out: bool = False) -> list[Problem]:
    """So many problems of the tasks, each as likely as the others: a function of the seed."""
    drawn = {task.name: problems(task, held_out, seed) for task in tasks}
    source = random.Random(f"questions {seed}")
    return [next(drawn[source.choice(tasks).name]) for _ in range(count)]


def question_of(problem: Problem) -> list[Message]:
    """The conversation up to its answer."""
    return [Message(**turn) for turn in problem.messages()[: -len(problem.turns)]]


def ask(
    run: Run, settings: TuneSettings, asked: Sequence[Problem], seed: int, temperature: float = 1.0
) -> Answers:
    """Answers of a run's model to questions, all at once. Raises UserError where there is no room."""
    tokenizer, limit = run.data.tokenizer, settings.max_new_tokens
    assert isinstance(tokenizer, ChatTokenizer), "it is an assistant's run"
    room = run.model.config.block_size - limit
    prompts = [encode_question(tokenizer, question_of(problem), room)[0] for problem in asked]
    for problem, prompt in zip(asked, prompts, strict=True):
        if len(prompt) > room:
            raise UserError(
                f"{problem.question!r} takes {len(prompt)} tokens, and beside an answer of "
                f"--max_new_tokens={limit} the block has room for {room}"
            )
    with run.compute.autocast():
        return draw_answers(run.model, tokenizer, prompts, limit, seed, temperature)


class Judge:
    """Rewards of answers: 1 for one that ended and is right by its problem's checker, else 0.

    A checker that raises is said, once for each kind of error, and counted; such an answer earns 0.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.errors: Counter[str] = Counter()
        self._say = say

    def rewards(self, asked: Sequence[Problem], answers: Answers) -> Tensor:
        """One for each answer to a problem, (B,)."""
        rows = zip(asked, answers.texts, answers.ended, strict=True)
        earned = [float(ended and self._is_right(problem, text)) for problem, text, ended in rows]
        return torch.tensor(earned, device=answers.drawn.device)

    def _is_right(self, problem: Problem, text: str) -> bool:
        try:
            return bool(problem.is_solved_by(text))
        except Exception as error:  # whatever a checker raises is told, and no reason to lose the run
            kind = f"{type(error).__name__}: {error}"
            if not self.errors[kind]:
                self._say(f"warning: the reward of {problem.question!r} for {text!r} raised {kind}; it is 0")
            self.errors[kind] += 1
            return False

    def figures(self, rewards: Tensor, answers: Answers) -> dict[str, float]:
        """Mean reward, share of answers that ended by themselves, mean length in tokens, errors so far."""
        figures = {
            "reward": rewards.mean().item(),
            "ended": sum(answers.ended) / len(answers.ended),
            "length": answers.drawn.sum(dim=1).double().mean().item(),
        }
        return figures | ({"reward_errors": float(self.errors.total())} if self.errors else {})
