"""HellaSwag and LAMBADA: public benchmarks, zero-shot."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.dataset import DATA_FOLDER
from engine.download import PublicFile, Unreachable, fetch
from engine.errors import UserError
from engine.measure.scoring import Score, mean_of, perplexity_of, score_continuations
from engine.system import write_whole
from engine.text.tokenizer import Tokenizer
from model import GPT

HELLASWAG = PublicFile(
    "hellaswag_val.jsonl",
    "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
    "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
)
LAMBADA = PublicFile(
    "lambada_test.jsonl",
    "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
    "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
)


@dataclass(frozen=True)
class HellaSwagScores:
    """Shares of examples whose true ending is the most probable: in total, and per token."""

    accuracy: Score
    accuracy_per_token: Score
    examples: int


def score_hellaswag(
    model: GPT, tokenizer: Tokenizer, examples: Sequence[dict[str, Any]], batch_size: int
) -> HellaSwagScores:
    """HellaSwag (Zellers et al., 2019), zero-shot: which of four endings is likeliest after the context.

    Each ending is encoded on its own, with a space before it. Dividing its log-probability by its number of
    tokens makes endings of different lengths comparable.
    """
    pairs = []
    for example in examples:
        context = tokenizer.encode(example["ctx"])
        pairs += [(context, tokenizer.encode(f" {ending}")) for ending in example["endings"]]
    scored = list(score_continuations(model, pairs, batch_size))
    in_total, per_token = [], []
    for index, example in enumerate(examples):
        four = scored[4 * index : 4 * index + 4]
        totals = [one.log_probability for one in four]
        means = [one.log_probability / one.tokens for one in four]
        in_total.append(float(totals.index(max(totals)) == example["label"]))
        per_token.append(float(means.index(max(means)) == example["label"]))
    return HellaSwagScores(mean_of(in_total), mean_of(per_token), len(examples))


@dataclass(frozen=True)
class LambadaScores:
    """The share of last words that greedy text gets right, and the perplexity of the last words."""

    accuracy: Score
    perplexity: Score
    examples: int


def score_lambada(
    model: GPT, tokenizer: Tokenizer, examples: Sequence[dict[str, Any]], batch_size: int
) -> LambadaScores:
    """LAMBADA (Paperno et al., 2016), OpenAI's version: a passage's last word, with the space before it.

    A word's loss is the sum over its tokens; the perplexity is exp of the mean over words.
    """
    pairs = []
    for example in examples:
        context, _, word = example["text"].rstrip().rpartition(" ")
        pairs.append((tokenizer.encode(context), tokenizer.encode(f" {word}")))
    scored = list(score_continuations(model, pairs, batch_size))
    loss = mean_of([-one.log_probability for one in scored])
    return LambadaScores(mean_of([float(one.greedy) for one in scored]), perplexity_of(loss), len(examples))


def read_examples(
    file: PublicFile, path: Path | None, required: dict[str, type], limit: int | None
) -> list[dict]:
    """The first `limit` examples of a public file: from `path`, from data/, or downloaded into data/.

    Raises UserError where the file cannot be had, or an example lacks one of the fields in `required`.
    """
    name = file.name.split("_")[0]
    if path is None:
        path = DATA_FOLDER / name / file.name
        if not path.is_file():
            try:
                write_whole(path, fetch(file))
            except Unreachable as error:
                raise UserError(
                    f"{file.name} cannot be had ({error}); where there is no network, put {file.address} to "
                    f"{path}, or name the file: --{name}=FILE"
                ) from error
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    examples = []
    for number, line in enumerate(lines[:limit], start=1):
        try:
            example = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}, is no JSON: {error}") from error
        if not isinstance(example, dict) or any(
            type(example.get(key)) is not kind for key, kind in required.items()
        ):
            raise UserError(f"{path}, line {number}, must hold {', '.join(required)}")
        examples.append(example)
    if not examples:
        raise UserError(f"{path} holds no examples")
    return examples


def read_hellaswag(path: Path | None, limit: int | None) -> list[dict[str, Any]]:
    """HellaSwag's validation examples: ctx, four endings, label. Raises UserError."""
    examples = read_examples(HELLASWAG, path, {"ctx": str, "endings": list, "label": int}, limit)
    for number, example in enumerate(examples, start=1):
        endings = example["endings"]
        if (
            len(endings) != 4
            or not all(isinstance(one, str) for one in endings)
            or example["label"] not in range(4)
        ):
            raise UserError(f"HellaSwag example {number} must have four endings and a label from 0 to 3")
    return examples


def read_lambada(path: Path | None, limit: int | None) -> list[dict[str, Any]]:
    """LAMBADA's test passages: text. Raises UserError."""
    examples = read_examples(LAMBADA, path, {"text": str}, limit)
    for number, example in enumerate(examples, start=1):
        if " " not in example["text"].strip():
            raise UserError(f"LAMBADA example {number} needs at least two words")
    return examples
