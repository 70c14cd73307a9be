"""How well a model predicts: the loss of a text, and HellaSwag and LAMBADA, each with its standard error.

A score is a mean over independent units (windows of a text, examples of a task); its standard error is that
of the mean. Every function takes the model in evaluation mode and leaves it as it was.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.dataset import DATA_FOLDER
from engine.errors import UserError
from engine.sources import PublicFile, Unreachable, fetch, write_whole
from engine.tokenizer import Tokenizer
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
class Score:
    """A figure and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"


def mean_of(values: Sequence[float]) -> Score:
    """The mean of independent values, and its standard error: their standard deviation (n - 1) over √n."""
    count = len(values)
    mean = math.fsum(values) / count
    spread = math.fsum((value - mean) ** 2 for value in values)
    return Score(mean, math.sqrt(spread / (count - 1) / count) if count > 1 else math.nan)


def ratio_of(sums: Sequence[float], counts: Sequence[int]) -> Score:
    """Σ sums / Σ counts over independent units, and a ratio estimate's error (Cochran, 1977, §2.11)."""
    units, total = len(sums), sum(counts)
    ratio = math.fsum(sums) / total
    spread = math.fsum((part - ratio * count) ** 2 for part, count in zip(sums, counts, strict=True))
    return Score(ratio, math.sqrt(spread * units / (units - 1)) / total if units > 1 else math.nan)


def perplexity_of(loss: Score) -> Score:
    """exp of a loss in nats; its standard error to first order, infinite for a loss that exp cannot hold."""
    perplexity = math.exp(loss.value) if loss.value < 700 else math.inf
    return Score(perplexity, perplexity * loss.error)


# ------------------------------------------------------------------------------------------------------------
# text


@dataclass(frozen=True)
class TextScores:
    """The loss in nats per token, its perplexity, and bits per byte of text where the bytes are known."""

    loss: Score
    perplexity: Score
    bits_per_byte: Score | None
    tokens: int


def sliding_windows(tokens: int, block_size: int, stride: int) -> list[tuple[int, int, int]]:
    """(begin, end, first): inputs are begin … end - 1, and the targets first … end are counted.

    Each token but the first is a target once. All windows but the first hold `block_size` inputs and count
    their last `stride` targets, so that each of these is predicted from at least block_size - stride + 1
    tokens. With a stride of block_size the windows do not overlap, and the last one is short, as in train.py.
    """
    windows = []
    first = 1
    while first < tokens:
        last = min(tokens - 1, max(first - 1 + stride, block_size if first == 1 else 0))
        begin = first - 1 if stride == block_size else max(0, last - block_size)
        windows.append((begin, last, first))
        first = last + 1
    return windows


@torch.no_grad()
def score_text(
    model: GPT, ids: Tensor, bytes_per_token: float | None, stride: int, batch_size: int
) -> TextScores:
    """Score ids (tokens,) with a sliding window; `bytes_per_token` is a token's mean length in UTF-8."""
    windows = sliding_windows(len(ids), model.config.block_size, stride)
    sums: list[float] = []
    counts = [last - first + 1 for _, last, first in windows]
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        rows = [ids[begin : last + 1] for begin, last, _ in batch]
        for losses, (_, _, first), (begin, _, _) in zip(token_losses(model, rows), batch, batch, strict=True):
            sums.append(losses[first - begin - 1 :].sum().item())
    loss = ratio_of(sums, counts)
    bits = None
    if bytes_per_token:
        bits = Score(loss.value / math.log(2) / bytes_per_token, loss.error / math.log(2) / bytes_per_token)
    return TextScores(loss, perplexity_of(loss), bits, sum(counts))


def token_losses(model: GPT, rows: Sequence[Tensor]) -> list[Tensor]:
    """For each row (length,) of ids, the losses in nats of all but the first: (length - 1,) float64, CPU.

    Rows of different lengths are padded on the right, which a causal model cannot see.
    """
    device = model.token_embedding.weight.device
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(device)  # (B, T)
    logits = model(padded[:, :-1])[0]  # (B, T - 1, V)
    losses = []
    for index, row in enumerate(rows):
        length = len(row) - 1
        losses.append(
            F.cross_entropy(exact(logits[index, :length]), padded[index, 1 : length + 1], reduction="none")
        )
    return [loss.cpu().double() for loss in losses]


def exact(logits: Tensor) -> Tensor:
    """Logits in float64 (float32 where the device has none): their own rounding is all that is left."""
    return logits.float() if logits.device.type == "mps" else logits.double()


# ------------------------------------------------------------------------------------------------------------
# continuations


@dataclass(frozen=True)
class Continuation:
    """A continuation's log-probability, its length in tokens, and whether the most probable tokens are it."""

    log_probability: float
    tokens: int
    greedy: bool


@torch.no_grad()
def score_continuations(
    model: GPT, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int
) -> Iterator[Continuation]:
    """Score (context, continuation) pairs of ids, in their order.

    Where both do not fit into block_size + 1 tokens, the beginning of the context is dropped; UserError where
    the continuation alone does not fit.
    """
    room = model.config.block_size + 1
    device = model.token_embedding.weight.device
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        for context, continuation in batch:
            if not len(context) or len(continuation) >= room:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens after {len(context)} does not fit into "
                    f"the model's block_size {room - 1}"
                )
        rows = [torch.tensor([*context, *continuation][-room:]) for context, continuation in batch]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        logits = model(padded[:, :-1])[0]
        for index, (row, (_, continuation)) in enumerate(zip(rows, batch, strict=True)):
            count = len(continuation)
            scored = exact(logits[index, len(row) - 1 - count : len(row) - 1])  # (count, V)
            targets = padded[index, len(row) - count : len(row)]
            loss = F.cross_entropy(scored, targets, reduction="sum").item()
            yield Continuation(-loss, count, bool((scored.argmax(-1) == targets).all()))


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

    An ending is encoded by itself, after a space. Dividing log-probabilities by tokens evens out lengths.
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

    The perplexity is that of whole words: exp of the mean of their losses, which sum over a word's tokens.
    """
    pairs = []
    for example in examples:
        context, _, word = example["text"].rstrip().rpartition(" ")
        pairs.append((tokenizer.encode(context), tokenizer.encode(f" {word}")))
    scored = list(score_continuations(model, pairs, batch_size))
    loss = mean_of([-one.log_probability for one in scored])
    return LambadaScores(mean_of([float(one.greedy) for one in scored]), perplexity_of(loss), len(examples))


# ------------------------------------------------------------------------------------------------------------
# files


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
