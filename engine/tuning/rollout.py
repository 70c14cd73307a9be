"""Questions of tasks/, answers drawn from the model that is tuned, and the rewards that a program gives."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.conversation.answering import pad_left
from engine.conversation.questions import question_of, task_named
from engine.conversation.template import encode_question
from engine.errors import UserError
from engine.generation import Sampling, new_cache, next_token, read, uniform_numbers
from engine.settings import TuneSettings
from engine.text.roles import ChatTokenizer
from engine.training.run import Run
from engine.tuning.rows import Rows, make_rows
from model import GPT
from tasks import TASKS, Problem, Task, problems


def chosen_tasks(names: str) -> list[Task]:
    """The tasks of these names. Raises UserError for none, an unknown one, or one with a tool's turn."""
    chosen = [task_named(name) for name in names.split()]
    for task in chosen:
        if len(task.draw(random.Random(0)).turns) > 1:
            raise UserError(f"tasks: {task.name} takes a tool's turn, and tune.py draws answers of one turn")
    if not chosen:
        raise UserError(f"tasks names no task; there are {' '.join(TASKS)}")
    return chosen


def draw_questions(tasks: Sequence[Task], seed: int, count: int, held_out: bool = False) -> list[Problem]:
    """`count` problems of tasks that are equally likely: a function of the seed."""
    drawn = {task.name: problems(task, held_out, seed) for task in tasks}
    source = random.Random(f"questions {seed}")
    return [next(drawn[source.choice(tasks).name]) for _ in range(count)]


# ------------------------------------------------------------------------------------------------------------
# answers


@dataclass(frozen=True)
class Answers:
    """Answers to B prompts, of up to A tokens."""

    tokenizer: ChatTokenizer
    prompts: Sequence[np.ndarray]
    tokens: list[np.ndarray]  # of each answer, with the end of the turn or what else stopped it
    drawn: Tensor  # (B, A) bool: where an answer has a token
    log_probabilities: Tensor  # (B, A): of the tokens as they were drawn; 0 elsewhere
    texts: list[str]
    ended: list[bool]  # by themselves

    def batches(self, size: int, numbers: Sequence[int] | None = None) -> Iterator[tuple[Rows, list[int]]]:
        """Rows of the answers `numbers` (None: of all), `size` at a time, with their numbers.

        Short ones come first, so that little is padded.
        """
        numbers = range(len(self.tokens)) if numbers is None else numbers
        ordered = sorted(numbers, key=lambda number: len(self.prompts[number]) + len(self.tokens[number]))
        for first in range(0, len(ordered), size):
            part = ordered[first : first + size]
            prompts, answers = ([column[number] for number in part] for column in (self.prompts, self.tokens))
            yield make_rows(self.tokenizer, prompts, answers, self.drawn.device), part

    @torch.no_grad()
    def measure(self, of_tokens: Callable[[Rows], Tensor], size: int) -> Tensor:
        """The values (N,) that `of_tokens(rows)` gives answers' tokens, in their places: (B, A), else 0."""
        found = torch.zeros_like(self.log_probabilities)
        for rows, numbers in self.batches(size):
            part = torch.zeros_like(found[numbers])
            part[self.drawn[numbers]] = of_tokens(rows)
            found[numbers] = part
        return found


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


@torch.no_grad()
def draw_answers(
    model: GPT,
    tokenizer: ChatTokenizer,
    prompts: Sequence[np.ndarray],
    limit: int,
    seed: int,
    temperature: float = 1.0,
) -> Answers:
    """An answer of up to `limit` tokens to each prompt, ids up to the assistant's role; all at once.

    Row b draws from a stream of its own, a function of (seed, b). Any special token stops an answer. At
    temperature 1, as in tuning, tokens are drawn from the very distribution that is trained.
    """
    device, n_tokens = model.token_embedding.weight.device, tokenizer.vocab_size
    text, starts = pad_left(tokenizer, prompts, device)
    special = torch.tensor([tokenizer.is_special(index) for index in range(n_tokens)], device=device)
    sampling, uniforms = Sampling(temperature), uniform_numbers(seed, 0, len(prompts), device)
    cache = new_cache(model, len(prompts), starts, 0)
    cache.size = text.shape[1] + limit
    logits = read(model, text, cache)
    going_on = torch.ones(len(prompts), dtype=torch.bool, device=device)
    tokens, drawn, log_probabilities = [], [], []  # of each step, (B,)
    while going_on.any() and len(tokens) < limit:
        if tokens:
            logits = read(model, tokens[-1][:, None], cache)
        logits = logits[:, :n_tokens].to(model.head.weight.dtype)
        tokens.append(next_token(logits, text, starts, sampling, uniforms))
        drawn.append(going_on)
        of_tokens = logits.log_softmax(dim=-1).gather(1, tokens[-1][:, None])[:, 0]
        log_probabilities.append(of_tokens * going_on)
        going_on = going_on & ~special[tokens[-1]]
    lengths = torch.stack(drawn).sum(dim=0).tolist()
    rows = [row[:n] for row, n in zip(torch.stack(tokens, dim=1).cpu().numpy(), lengths, strict=True)]
    return Answers(
        tokenizer, prompts, rows, torch.stack(drawn, dim=1), torch.stack(log_probabilities, dim=1),
        [tokenizer.decode(row[: len(row) - tokenizer.is_special(int(row[-1]))].tolist()) for row in rows],
        [bool(row[-1] == tokenizer.end_of_turn) for row in rows],
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------
# rewards


class Judge:
    """Rewards of answers: 1 for one that ended and is right by its problem's checker, else 0.

    An answer on which the checker raises an error earns 0. All errors are counted, and the first of each kind
    is printed.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.errors: Counter[str] = Counter()
        self._say = say

    def rewards(self, asked: Sequence[Problem], answers: Answers) -> Tensor:
        """One for each answer to a problem, (B,)."""
        earned = torch.zeros(len(asked))
        for row, (problem, text) in enumerate(zip(asked, answers.texts, strict=True)):
            try:
                earned[row] = float(answers.ended[row] and bool(problem.is_solved_by(text)))
            except Exception as error:  # whatever a checker raises is no reason to lose the run
                kind = f"{type(error).__name__}: {error}"
                if not self.errors[kind]:
                    self._say(
                        f"warning: the reward of {problem.question!r} for {text!r} raised {kind}; it is 0"
                    )
                self.errors[kind] += 1
        return earned.to(answers.drawn.device)

    def figures(self, rewards: Tensor, answers: Answers) -> dict[str, float]:
        """Mean reward, share of answers that ended by themselves, mean length in tokens, errors so far."""
        figures = {
            "reward": rewards.mean().item(),
            "ended": sum(answers.ended) / len(answers.ended),
            "length": answers.drawn.sum(dim=1).double().mean().item(),
        }
        return figures | ({"reward_errors": float(self.errors.total())} if self.errors else {})
