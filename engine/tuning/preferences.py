"""Preferences: a prompt, a chosen answer, and a rejected one.

{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
{"prompt": [{"role": "user", "content": "2 + 2?"}], "chosen": [{"role": "assistant", "content": "4"}], …}

They are read from a file, or sampled: the model answers a question of tasks/ twice. The right answer is
chosen, and the shorter one if both are right or both wrong.
"""

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.conversation.messages import Message, check_messages, read_turns
from engine.conversation.questions import question_of
from engine.conversation.template import encode_question
from engine.errors import UserError
from engine.json_files import read_json_lines
from engine.settings import TuneSettings
from engine.system import write_whole
from engine.text.roles import ChatTokenizer
from engine.training.run import Run
from engine.tuning.rollout import Judge, ask, chosen_tasks, draw_questions
from engine.tuning.rows import Rows, make_rows
from model import derive_seed
from tasks.problem import is_held_out

FILES = ("preferences.jsonl", "preferences_held_out.jsonl")  # of a run's folder
QUESTIONS_AT_ONCE = 128
MOST_QUESTIONS = 50  # for one pair, on average, before sampling gives up


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
        """Whether it is for measuring: a tenth of all are, chosen by a hash of the prompt."""
        return is_held_out(repr(self.prompt))


# ------------------------------------------------------------------------------------------------------------
# files


def read_pairs(path: Path) -> list[Pair]:
    """The pairs in a file of JSON lines. Raises UserError that names the first bad line."""
    return [pair_of(record, where) for where, record in read_json_lines(path)]


def pair_of(record: Any, where: str) -> Pair:
    """A pair from a record, checked. Raises UserError."""
    if not isinstance(record, dict) or not {"prompt", "chosen", "rejected"} <= record.keys():
        raise UserError(f"{where} is no preference; one has the fields prompt, chosen, rejected")
    prompt = read_turns(record["prompt"], "user", f"{where}: prompt")
    answers = []
    for name in ("chosen", "rejected"):
        turns = read_turns(record[name], "assistant", f"{where}: {name}")
        turns = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
        check_messages([*prompt, *turns], f"{where}: {name}")
        if len(turns) != 1 or turns[0].role != "assistant":
            raise UserError(f"{where}: {name} must be one turn of the assistant after the prompt")
        answers.append(turns[0].content)
    if answers[0] == answers[1]:
        raise UserError(f"{where}: chosen and rejected are the same")
    return Pair(tuple(prompt), *answers)


# ------------------------------------------------------------------------------------------------------------
# pairs of the model's own answers


def sample_pairs(run: Run, settings: TuneSettings) -> tuple[list[Pair], list[Pair]]:
    """Pairs for training, of which a share `flipped` has wrong labels, and held-out pairs.

    A function of the weights and the seed. Raises UserError if the answers hardly ever differ.
    """
    training = ranked_pairs(run, settings, settings.pairs, held_out=False)
    source = random.Random(derive_seed(settings.seed, "flipped"))
    for number, pair in enumerate(training):
        if source.random() < settings.flipped:
            training[number] = dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen)
    return training, ranked_pairs(run, settings, settings.eval_prompts, held_out=True)


def ranked_pairs(run: Run, settings: TuneSettings, count: int, held_out: bool) -> list[Pair]:
    """`count` pairs of a better and a worse answer: right and wrong, or else shorter and longer."""
    tasks, judge = chosen_tasks(settings.tasks), Judge(run.console.say)
    pairs: list[Pair] = []
    questions = 0
    while len(pairs) < count:
        if questions > max(MOST_QUESTIONS * count, 1000):
            raise UserError(
                f"of two answers to {questions} questions one was better in {len(pairs)} cases; the model is "
                f"too good or too bad at {', '.join(settings.tasks.split())} to make pairs of its answers; "
                f"train it longer, take other --tasks, or give pairs: --preferences=FILE"
            )
        seed = derive_seed(settings.seed, "pairs", str(held_out), questions)
        asked = draw_questions(tasks, seed, QUESTIONS_AT_ONCE, held_out)
        questions += len(asked)
        twice = [problem for problem in asked for _ in range(2)]
        answers = ask(run, settings, twice, seed, settings.temperature)
        rewards = judge.rewards(twice, answers).tolist()
        quality = [(rewards[row], -len(answers.tokens[row])) for row in range(len(twice))]
        usable = [ended and text.strip() for ended, text in zip(answers.ended, answers.texts, strict=True)]
        for number, problem in enumerate(asked):
            worse, better = sorted((2 * number, 2 * number + 1), key=quality.__getitem__)
            if usable[worse] and usable[better] and quality[better] > quality[worse]:
                prompt = tuple(question_of(problem))
                pairs.append(Pair(prompt, answers.texts[better], answers.texts[worse]))
    return pairs[:count]


# ------------------------------------------------------------------------------------------------------------
# a run's pairs, as tokens and in their order


@dataclass
class EncodedPairs:
    """Pairs as ids: prompts up to the assistant's role, answers with the end of the turn."""

    tokenizer: ChatTokenizer
    device: torch.device
    reference: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(2, 0))  # (2, pairs), of dpo
    prompts: list[np.ndarray] = dataclasses.field(default_factory=list)
    chosen: list[np.ndarray] = dataclasses.field(default_factory=list)
    rejected: list[np.ndarray] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)

    def add(self, pair: Pair, block_size: int) -> bool:
        """Add a pair if it fits into the block (of a long prompt the newest exchanges); returns whether."""
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

    def batches(self, most: int, numbers: Sequence[int] | None = None) -> Iterator[tuple[Rows, list[int]]]:
        """Pairs of these numbers, or all, at most `most` rows at a time; and their numbers.

        Of B pairs the first B rows are the chosen answers, the others the rejected ones.
        """
        numbers, size = list(range(len(self)) if numbers is None else numbers), max(1, most // 2)
        for first in range(0, len(numbers), size):
            part = numbers[first : first + size]
            prompts = [self.prompts[number] for number in part]
            answers = [column[number] for column in (self.chosen, self.rejected) for number in part]
            yield make_rows(self.tokenizer, 2 * prompts, answers, self.device), part


def pairs_of_run(run: Run, settings: TuneSettings) -> tuple[EncodedPairs, EncodedPairs]:
    """The pairs that a run learns from, and held-out pairs; a new run writes them into its folder first.

    Raises UserError if there are none.
    """
    tokenizer = run.data.tokenizer
    assert isinstance(tokenizer, ChatTokenizer) and run.folder is not None, "it is an assistant's run"
    files = [run.folder / name for name in FILES]
    if not run.resumed:
        if settings.preferences is None:
            both = sample_pairs(run, settings)
        else:
            given = read_pairs(Path(settings.preferences))
            both = [[pair for pair in given if pair.is_held_out() == held_out] for held_out in (False, True)]
        for file, pairs in zip(files, both, strict=True):
            write_whole(file, "".join(f"{pair.to_json()}\n" for pair in pairs).encode())
    encoded = EncodedPairs(tokenizer, run.device), EncodedPairs(tokenizer, run.device)
    for pairs, file in zip(encoded, files, strict=True):
        fits = [pairs.add(pair, run.model.config.block_size) for pair in read_pairs(file)]
        left_out = "" if all(fits) else f"; {fits.count(False)} are longer than the block and left out"
        run.console.say(f"preferences: {len(pairs):,} pairs in {file}{left_out}")
        if not any(fits):
            raise UserError(f"{file} holds no pair that fits; a tenth of the prompts is held out: give more")
    return encoded


def pairs_of_step(seed: int, step: int, size: int, count: int) -> list[int]:
    """Which of `count` pairs a step learns from: all come once in a random order, then in another."""
    numbers = range(step * size, (step + 1) * size)
    orders = {
        epoch: np.random.default_rng(derive_seed(seed, "order of pairs", epoch)).permutation(count)
        for epoch in {number // count for number in numbers}
    }
    return [int(orders[number // count][number % count]) for number in numbers]
