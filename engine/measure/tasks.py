"""How many held-out problems of tasks/ a model solves, as an assistant, or as a base that completes prose."""

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from engine.conversation.answering import answer_all
from engine.conversation.messages import Message
from engine.errors import UserError
from engine.generation import Sampling, TextStream, stream
from engine.measure.scoring import Score, mean_of
from engine.text.roles import ChatTokenizer
from engine.text.tokenizer import Tokenizer
from model import GPT
from tasks import TASKS, Problem, problems
from tasks.calculator import answer_to

LONGEST_ANSWER = 80  # tokens
SEED = 1  # of the problems: the same for all models


@dataclass(frozen=True)
class TaskScores:
    """The share of problems solved, of the most difficult ones too, and of answers that end by themselves."""

    accuracy: Score
    of_the_hardest: Score
    ended: Score
    characters: Score  # of an answer's last turn
    problems: int


def score_task(model: GPT, tokenizer: Tokenizer, name: str, count: int, batch_size: int) -> TaskScores:
    """Ask `count` held-out problems of a task, each answered with its most probable tokens.

    Raises UserError for a base model and a task that has no prose, or a model too small for an answer.
    """
    asked = list(islice(problems(TASKS[name], held_out=True, seed=SEED), count))
    if model.config.block_size <= LONGEST_ANSWER:
        raise UserError(
            f"block_size is {model.config.block_size}; an answer has up to {LONGEST_ANSWER} tokens"
        )
    solved, ended, lengths = [], [], []
    for first in range(0, count, batch_size):
        batch = asked[first : first + batch_size]
        if isinstance(tokenizer, ChatTokenizer):
            replies = answer_as_assistant(model, tokenizer, batch)
        else:
            replies = complete_as_base(model, tokenizer, batch, name)
        for problem, (text, has_ended) in zip(batch, replies, strict=True):
            solved.append(float(has_ended and problem.is_solved_by(text)))
            ended.append(float(has_ended))
            lengths.append(float(len(text)))
    hardest = max(problem.difficulty for problem in asked)
    of_hardest = [one for one, problem in zip(solved, asked, strict=True) if problem.difficulty == hardest]
    return TaskScores(mean_of(solved), mean_of(of_hardest), mean_of(ended), mean_of(lengths), count)


def answer_as_assistant(model: GPT, tokenizer: ChatTokenizer, batch: list[Problem]) -> list[tuple[str, bool]]:
    """The last turn of each answer, and whether it ended by itself."""
    questions = [[Message(**turn) for turn in problem.messages()[: -len(problem.turns)]] for problem in batch]
    answers = answer_all(model, tokenizer, questions, LONGEST_ANSWER, Sampling(temperature=0), answer_to)
    return [(answer.text, answer.ended) for answer in answers]


def complete_as_base(
    model: GPT, tokenizer: Tokenizer, batch: list[Problem], name: str
) -> list[tuple[str, bool]]:
    """The rest of the line that states each problem's solution, and whether the line ended."""
    replies = []
    for problem in batch:
        if not problem.statement:
            raise UserError(f"{name} is a task for assistants, and the model is none; tune it first")
        ids = torch.from_numpy(np.asarray(tokenizer.encode(problem.beginning())))[None]
        text, line = TextStream(tokenizer, stop="\n"), ""
        for token in stream(
            model,
            ids.to(model.token_embedding.weight.device),
            LONGEST_ANSWER,
            Sampling(temperature=0),
            n_tokens=tokenizer.vocab_size,
        ):
            line += text.push(int(token))
            if text.stopped:
                break
        ended = text.stopped
        replies.append((line + text.finish(), ended))
    return replies
