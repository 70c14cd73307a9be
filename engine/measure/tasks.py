"""How many held-out problems of tasks/ an assistant solves, or a base that completes prose."""

from itertools import islice

import torch

from engine.conversation.answering import answer_all
from engine.conversation.questions import question_of, read_questions
from engine.errors import UserError
from engine.generation import Sampling, TextStream, stream
from engine.measure.scoring import Figures, mean_of
from engine.text.roles import ChatTokenizer
from engine.text.tokenizer import Tokenizer
from model import GPT
from tasks import TASKS, Problem, problems
from tasks.calculator import answer_to

LONGEST_ANSWER = 80  # tokens
PROBLEMS = 500  # of a task of tasks/
SEED = 1  # of the problems: the same for all models
GREEDY = Sampling(temperature=0)


def score_task(model: GPT, tokenizer: Tokenizer, name: str, limit: int | None, batch_size: int) -> Figures:
    """Ask `limit` held-out problems of a task, or the questions of a file; greedy answers.

    Without a limit PROBLEMS are asked, or all of a file. Raises UserError for a base model and a task that
    has no prose, or a model too small for an answer.
    """
    longest = LONGEST_ANSWER
    if name in TASKS:
        asked = list(islice(problems(TASKS[name], held_out=True, seed=SEED), limit or PROBLEMS))
    else:
        asked, longest = read_questions(name)[:limit], model.config.block_size // 2
    if not asked:
        raise UserError(f"{name} has no questions")
    if model.config.block_size <= longest:
        raise UserError(f"block_size is {model.config.block_size}; an answer has up to {longest} tokens")
    replies: list[tuple[str, bool]] = []
    if isinstance(tokenizer, ChatTokenizer):
        for first in range(0, len(asked), batch_size):
            replies += answer_as_assistant(model, tokenizer, asked[first : first + batch_size], longest)
    elif all(problem.statement for problem in asked):
        replies = [complete_as_base(model, tokenizer, problem) for problem in asked]
    else:
        raise UserError(f"{name} is a task for assistants, and the model is none; tune it first")
    solved = [
        float(ended and problem.is_solved_by(text))
        for problem, (text, ended) in zip(asked, replies, strict=True)
    ]
    hardest = max(problem.difficulty for problem in asked)
    of_hardest = [one for one, problem in zip(solved, asked, strict=True) if problem.difficulty == hardest]
    return {
        "accuracy": mean_of(solved),
        "of_the_hardest": mean_of(of_hardest) if hardest else None,  # a file says nothing of difficulty
        "ended": mean_of([float(ended) for _, ended in replies]),
        "characters": mean_of([float(len(text)) for text, _ in replies]),  # of the last turn
        "problems": len(asked),
    }


def answer_as_assistant(
    model: GPT, tokenizer: ChatTokenizer, batch: list[Problem], longest: int
) -> list[tuple[str, bool]]:
    """The last turn of each answer, of up to `longest` tokens, and whether it ended by itself."""
    questions = [question_of(problem) for problem in batch]
    answers = answer_all(model, tokenizer, questions, longest, GREEDY, answer_to)
    return [(answer.text, answer.ended) for answer in answers]


def complete_as_base(model: GPT, tokenizer: Tokenizer, problem: Problem) -> tuple[str, bool]:
    """The rest of the line that states the solution, and whether the line ended."""
    ids = torch.from_numpy(tokenizer.encode(problem.beginning()))[None]
    ids = ids.to(model.token_embedding.weight.device)
    text, line = TextStream(tokenizer, stop="\n"), ""
    for token in stream(model, ids, LONGEST_ANSWER, GREEDY, n_tokens=tokenizer.vocab_size):
        line += text.push(int(token))
        if text.stopped:
            return line, True
    return line + text.finish(), False
