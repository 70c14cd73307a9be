"""Preferences: a prompt, the answer that is preferred to another, and the other.

{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
{"prompt": [{"role": "user", "content": "2 + 2?"}], "chosen": [{"role": "assistant", "content": "4"}], …}

They are read from a file, or sampled: two answers of the model to a question of tasks/. Then the one that is
right is preferred, and of two that are both right or both wrong the shorter.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.conversation.messages import Message, check_messages, read_turns
from engine.conversation.template import encode_question
from engine.errors import UserError
from engine.settings import TuneSettings
from engine.system import write_whole
from engine.text.roles import ChatTokenizer
from engine.training.run import Run
from engine.tuning.questions import Judge, chosen_tasks, draw_questions, prompt_of, question_of
from engine.tuning.rollout import draw_answers
from engine.tuning.rows import Rows, make_rows
from model import GPT, derive_seed
from tasks.problem import HELD_OUT

FILES = ("preferences.jsonl", "preferences_held_out.jsonl")  # of a run's folder
QUESTIONS_AT_ONCE = 128  # that two answers are sampled to
MOST_QUESTIONS = 50  # for one pair, before it is said that the answers do not differ


@dataclass(frozen=True)
class Pair:
    """One preference."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str

    def to_json(self) -> str:
        """As a line of a file."""
        prompt = [message._asdict() for message in self.prompt]
        line = {"prompt": prompt, "chosen": self.chosen, "rejected": self.rejected}
        return json.dumps(line, ensure_ascii=False)

    def is_held_out(self) -> bool:
        """Whether it is for measuring: a tenth, by a hash of the prompt."""
        digest = hashlib.sha256(repr(self.prompt).encode()).digest()
        return int.from_bytes(digest[:4], "little") < HELD_OUT * 2**32


# ------------------------------------------------------------------------------------------------------------
# files


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file of JSON lines. Raises UserError that names the first line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the preferences {path} cannot be read: {error}") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            pairs.append(pair_of(json.loads(line), where))
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is no JSON: {error}") from error
    return pairs


def pair_of(record: Any, where: str) -> Pair:
    """A pair from a record, checked. Raises UserError."""
    names = ("prompt", "chosen", "rejected")
    if not isinstance(record, dict) or not set(names) <= record.keys():
        raise UserError(f"{where} is no preference; one has the fields {', '.join(names)}")
    prompt, chosen, rejected = (
        read_turns(record[name], "user" if name == "prompt" else "assistant", f"{where}: {name}")
        for name in names
    )
    answers = []
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        turns = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
        check_messages([*prompt, *turns], f"{where}: {name}")
        if len(turns) != 1 or turns[0].role != "assistant":
            raise UserError(f"{where}: {name} must be one turn of the assistant after the prompt")
        answers.append(turns[0].content)
    if answers[0] == answers[1]:
        raise UserError(f"{where}: chosen and rejected are the same")
    return Pair(tuple(prompt), *answers)


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write what `read_pairs` reads."""
    write_whole(path, "".join(f"{pair.to_json()}\n" for pair in pairs).encode())


# ------------------------------------------------------------------------------------------------------------
# pairs of the model's own answers


def sample_pairs(
    model: GPT, tokenizer: ChatTokenizer, settings: TuneSettings, say: Callable[[str], None]
) -> tuple[list[Pair], list[Pair]]:
    """Pairs for training, of which a share `flipped` is labelled wrongly, and held-out ones.

    A function of the weights and the seed. Raises UserError where the answers hardly ever differ.
    """
    training = _ranked_pairs(model, tokenizer, settings, settings.pairs, held_out=False, say=say)
    source = random.Random(derive_seed(settings.seed, "flipped"))
    training = [
        dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen)
        if source.random() < settings.flipped
        else pair
        for pair in training
    ]
    held_out = _ranked_pairs(model, tokenizer, settings, settings.eval_prompts, held_out=True, say=say)
    return training, held_out


def _ranked_pairs(
    model: GPT,
    tokenizer: ChatTokenizer,
    settings: TuneSettings,
    count: int,
    held_out: bool,
    say: Callable[[str], None],
) -> list[Pair]:
    tasks, judge, pairs = chosen_tasks(settings.tasks), Judge(say), []
    room = model.config.block_size - settings.max_new_tokens
    asked_before = 0
    while len(pairs) < count:
        if asked_before > max(MOST_QUESTIONS * count, 1000):
            raise UserError(
                f"of two answers to {asked_before} questions one was better in {len(pairs)} cases; "
                f"the model is too good or too bad at {settings.tasks} to make pairs of its answers"
            )
        seed = derive_seed(settings.seed, "pairs", str(held_out), asked_before)
        asked = draw_questions(tasks, seed, QUESTIONS_AT_ONCE, held_out)
        asked_before += len(asked)
        prompts = [prompt_of(tokenizer, question_of(problem), room) for problem in asked for _ in range(2)]
        answers = draw_answers(model, tokenizer, prompts, settings.max_new_tokens, seed)
        rewards = judge.rewards([problem for problem in asked for _ in range(2)], answers)
        for number, problem in enumerate(asked):
            both = 2 * number, 2 * number + 1
            if not all(answers.ended[row] and answers.texts[row].strip() for row in both):
                continue
            # The right one before the wrong one, and the shorter before the longer.
            worse, better = sorted(both, key=lambda row: (rewards[row], -len(answers.tokens[row])))
            if (rewards[worse], len(answers.tokens[worse])) != (rewards[better], len(answers.tokens[better])):
                texts = answers.texts[better], answers.texts[worse]
                pairs.append(Pair(tuple(question_of(problem)), *texts))
    return pairs[:count]


# ------------------------------------------------------------------------------------------------------------
# a run's pairs, as tokens and in their order


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs as ids: prompts up to the assistant's role, answers with the end of the turn."""

    tokenizer: ChatTokenizer
    device: torch.device
    prompts: list[np.ndarray] = dataclasses.field(default_factory=list)
    chosen: list[np.ndarray] = dataclasses.field(default_factory=list)
    rejected: list[np.ndarray] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)

    def add(self, pair: Pair, block_size: int) -> bool:
        """Take a pair if it fits into the block (of a long prompt the newest exchanges); whether it did."""
        chosen, rejected = (
            np.append(self.tokenizer.encode_plain(text), self.tokenizer.end_of_turn)
            for text in (pair.chosen, pair.rejected)
        )
        room = block_size - max(len(chosen), len(rejected))
        prompt, _ = encode_question(self.tokenizer, pair.prompt, room)
        if len(prompt) > room:
            return False
        self.prompts.append(prompt)
        self.chosen.append(chosen)
        self.rejected.append(rejected)
        return True

    def batches(
        self, batch_size: int, numbers: Sequence[int] | None = None
    ) -> Iterator[tuple[Rows, list[int]]]:
        """Pairs of these numbers, or all, at most `batch_size` rows at a time; and their numbers.

        Of B pairs the first B rows are the chosen answers, the others the rejected ones.
        """
        numbers, most = list(range(len(self)) if numbers is None else numbers), max(1, batch_size // 2)
        for first in range(0, len(numbers), most):
            part = numbers[first : first + most]
            prompts = [self.prompts[number] for number in part]
            answers = [column[number] for column in (self.chosen, self.rejected) for number in part]
            yield make_rows(self.tokenizer, 2 * prompts, answers, self.device), part


def pairs_of_run(run: Run, settings: TuneSettings) -> tuple[EncodedPairs, EncodedPairs]:
    """The pairs that a run learns from, and held-out ones; a new run writes them into its folder first.

    Raises UserError where there are none.
    """
    tokenizer, say = run.data.tokenizer, run.console.say
    assert isinstance(tokenizer, ChatTokenizer) and run.folder is not None, "it is an assistant's run"
    files = [run.folder / name for name in FILES]
    if not run.resumed:
        if settings.preferences is None:
            both = sample_pairs(run.model, tokenizer, settings, say)
        else:
            given = read_pairs(Path(settings.preferences))
            both = [[pair for pair in given if pair.is_held_out() == held_out] for held_out in (False, True)]
        for file, pairs in zip(files, both, strict=True):
            write_pairs(file, pairs)
    encoded = EncodedPairs(tokenizer, run.device), EncodedPairs(tokenizer, run.device)
    for pairs, file in zip(encoded, files, strict=True):
        fits = [pairs.add(pair, run.model.config.block_size) for pair in read_pairs(file)]
        left_out = f"; {fits.count(False)} are longer than the block and left out" if not all(fits) else ""
        say(f"preferences: {len(pairs):,} pairs in {file}{left_out}")
        if not len(pairs):
            raise UserError(
                f"{file} holds no pair that fits; a tenth of all prompts is held out, so give more"
            )
    return encoded


def pairs_of_step(seed: int, step: int, size: int, count: int) -> list[int]:
    """Which of `count` pairs step number `step` learns from: each once in a random order, then in another."""
    numbers = range(step * size, (step + 1) * size)
    orders = {
        epoch: np.random.default_rng(derive_seed(seed, "order of pairs", epoch)).permutation(count)
        for epoch in {number // count for number in numbers}
    }
    return [int(orders[number // count][number % count]) for number in numbers]
