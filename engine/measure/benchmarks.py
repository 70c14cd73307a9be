"""HellaSwag and LAMBADA: public benchmarks, zero-shot."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from engine.data.dataset import DATA_FOLDER
from engine.download import PublicFile, Unreachable, fetch
from engine.errors import UserError
from engine.json_files import check_fields, read_json_lines
from engine.measure.scoring import Figures, mean_of, perplexity_of, score_continuations
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
Examples = Sequence[dict[str, Any]]


def score_hellaswag(model: GPT, tokenizer: Tokenizer, examples: Examples, batch_size: int) -> Figures:
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
    accuracies = {"accuracy": mean_of(in_total), "accuracy_per_token": mean_of(per_token)}
    return {**accuracies, "examples": len(examples)}


def score_lambada(model: GPT, tokenizer: Tokenizer, examples: Examples, batch_size: int) -> Figures:
    """LAMBADA (Paperno et al., 2016), OpenAI's version: a passage's last word, with the space before it.

    A word's loss is the sum over its tokens; the perplexity is exp of the mean over words.
    """
    pairs = []
    for example in examples:
        context, _, word = example["text"].rstrip().rpartition(" ")
        pairs.append((tokenizer.encode(context), tokenizer.encode(f" {word}")))
    scored = list(score_continuations(model, pairs, batch_size))
    accuracy = mean_of([float(one.greedy) for one in scored])
    perplexity = perplexity_of(mean_of([-one.log_probability for one in scored]))
    return {"accuracy": accuracy, "perplexity": perplexity, "examples": len(examples)}


def read_examples(
    file: PublicFile, path: Path | None, fields: dict[str, Any], limit: int | None
) -> list[dict[str, Any]]:
    """The first `limit` examples, from `path` or data/, perhaps downloaded. Raises UserError."""
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
    lines = islice(read_json_lines(path), limit)
    examples = [check_fields(example, fields, where) for where, example in lines]
    if not examples:
        raise UserError(f"{path} holds no examples")
    return examples


def read_hellaswag(path: Path | None, limit: int | None) -> Examples:
    """HellaSwag's validation examples: ctx, four endings, label. Raises UserError."""
    fields = {"ctx": str, "endings": list[str], "label": Annotated[int, range(4)]}
    examples = read_examples(HELLASWAG, path, fields, limit)
    for number, example in enumerate(examples, start=1):
        if len(example["endings"]) != 4:
            raise UserError(f"HellaSwag example {number} must have four endings")
    return examples


def read_lambada(path: Path | None, limit: int | None) -> Examples:
    """LAMBADA's test passages: text. Raises UserError."""
    examples = read_examples(LAMBADA, path, {"text": str}, limit)
    for number, example in enumerate(examples, start=1):
        if " " not in example["text"].strip():
            raise UserError(f"LAMBADA example {number} needs at least two words")
    return examples
