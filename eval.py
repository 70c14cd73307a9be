"""Score a model.

    python eval.py                                                       the newest run's validation split
    python eval.py out/shakespeare_char                                  that of another run
    python eval.py gpt2 --dataset shakespeare --stride 512               a sliding window over a data set
    python eval.py gpt2 --text book.txt                                  any text
    python eval.py out/assistant_chat --tasks arithmetic reversing       held-out questions of tasks/
    python eval.py gpt2-medium --tasks hellaswag lambada                 public benchmarks, zero-shot
    python eval.py exported/ --tasks hellaswag --hellaswag val.jsonl --limit 1000

The model is a run, gpt2, gpt2-medium, gpt2-large, gpt2-xl, OWNER/NAME@COMMIT on the Hugging Face hub, a
folder in its GPT-2 layout, or a nanoGPT ckpt.pt. Every figure comes with its standard error;
docs/evaluation.md says more.
"""

import dataclasses
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tasks
from engine.command_line import Parser, at_least_one, read_early, run_script
from engine.errors import UserError, similar_file

BENCHMARKS = ("loss", "hellaswag", "lambada")
TASKS = (*BENCHMARKS, *tasks.TASKS)
PROBLEMS = 500  # asked of a task, if --limit does not say
DTYPES = ("float32", "bfloat16", "float16", "float64")


def read_options(arguments: Sequence[str]) -> Namespace:
    """The command line, checked. Raises UserError."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        help="a run, the name of a GPT-2, a folder, or a nanoGPT ckpt.pt (default: the newest run in out/)",
    )
    add("--tasks", nargs="+", choices=TASKS, default=["loss"], help="default: loss")
    add("--dataset", help="for loss: a prepared data set (default: the one of the run)")
    add("--split", choices=("train", "val"), default="val", help="its split (default: val)")
    add("--text", type=Path, help="for loss: a text file in UTF-8, in place of a data set")
    add(
        "--stride",
        type=at_least_one,
        help="tokens that a window moves on by (default: block_size)",
    )
    add("--hellaswag", type=Path, metavar="FILE", help="hellaswag_val.jsonl (default: downloaded)")
    add("--lambada", type=Path, metavar="FILE", help="lambada_test.jsonl (default: downloaded)")
    add("--limit", type=at_least_one, help="the first so many examples, or tokens of a text (default: all)")
    add("--batch_size", type=at_least_one, default=8, help="sequences at a time (default: 8)")
    add("--checkpoint", default="best", help="which one of a run: best, last, step-… (default: best)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps or xpu (default: auto)")
    add("--dtype", choices=DTYPES, default="float32", help="default: float32")
    add("--threads", type=at_least_one, help="CPU threads (default: the machine's cores)")
    add("--output", type=Path, metavar="FILE", help="write the figures to a JSON file as well")
    return parser.parse_args(arguments)


# Above the slow imports, so that --help and mistakes are answered at once.
OPTIONS = read_early(read_options) if __name__ == "__main__" else None

import torch

from engine.data.dataset import open_dataset
from engine.device import Compute, choose_threads, find_device
from engine.measure.benchmarks import read_hellaswag, read_lambada, score_hellaswag, score_lambada
from engine.measure.scoring import score_text
from engine.measure.tasks import score_task
from engine.runs import newest_run
from engine.system import write_whole
from engine.text.tokenizer import BYTE_ORDER_MARK, print_note
from engine.weights.pretrained import Pretrained, read_pretrained
from model import GPT


def main(arguments: Sequence[str]) -> None:
    """Score as a command line says."""
    score(read_options(arguments))


def score(options: Namespace) -> None:
    """Load the model, run the tasks, print a line for each figure."""
    if options.model is None:
        options.model = str(newest_run("to score"))
        print(f"the newest run: {options.model}")
    device = find_device(options.device)
    compute = Compute(device.type, options.dtype, False, choose_threads(options.threads, 1))
    compute.apply()
    found = read_pretrained(options.model, options.checkpoint)
    model = found.model(device, compute.weights_dtype()).eval()
    results: dict[str, Any] = {"model": options.model, "dtype": options.dtype}
    results["block_size"] = model.config.block_size
    with compute.autocast():
        for task in options.tasks:
            if task == "loss":
                scores = score_data(options, found, model)
            elif task == "hellaswag":
                examples = read_hellaswag(options.hellaswag, options.limit)
                scores = score_hellaswag(model, found.known_tokenizer(), examples, options.batch_size)
            elif task == "lambada":
                examples = read_lambada(options.lambada, options.limit)
                scores = score_lambada(model, found.known_tokenizer(), examples, options.batch_size)
            else:
                count = options.limit or PROBLEMS
                scores = score_task(model, found.known_tokenizer(), task, count, options.batch_size)
            report(task, scores)
            results[task] = dataclasses.asdict(scores)
    if options.output is not None:
        write_whole(options.output, json.dumps(results, indent=1).encode())


def score_data(options: Namespace, found: Pretrained, model: GPT) -> Any:
    """The scores of a text file, or of a data set's split. Raises UserError."""
    block_size = model.config.block_size
    stride = options.stride or block_size
    if stride > block_size:
        raise UserError(
            f"--stride is {stride}; the model sees {block_size} positions, so it can be 1 to {block_size}"
        )
    ids, bytes_per_token = read_ids(options, found)
    if options.limit is not None:
        ids = ids[: options.limit]
    if len(ids) < 2:
        raise UserError("the text has fewer than two tokens; there is nothing to predict")
    return score_text(model, torch.from_numpy(ids), bytes_per_token, stride, options.batch_size)


def read_ids(options: Namespace, found: Pretrained) -> tuple[Any, float | None]:
    """The token ids to score, (tokens,) int64, and the bytes of text for each, where known. UserError."""
    if options.text is not None:
        tokenizer = found.known_tokenizer()
        try:
            content = Path(options.text).read_bytes()
        except OSError as error:
            why = f"{error.strerror}{similar_file(options.text)}"
            raise UserError(f"{options.text} cannot be read: {why}") from error
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{options.text} is not UTF-8 (byte {error.start})") from error
        if text.startswith(BYTE_ORDER_MARK):
            print_note(f"{options.text} begins with a byte-order mark (U+FEFF), which is left out")
            text = text.removeprefix(BYTE_ORDER_MARK)
        ids = tokenizer.encode(text)
        return ids, len(text.encode()) / max(1, len(ids))
    name = options.dataset or found.dataset
    if name is None:
        raise UserError(
            f"there is nothing to score {options.model} on; add --dataset=NAME, --text=FILE or --tasks"
        )
    data = open_dataset(name, 1)
    found.check_reads(data.tokenizer, str(data.folder))
    split = data.train if options.split == "train" else data.val
    if split.is_masked:
        raise UserError(
            f"{data.folder} holds conversations, whose loss is that of the answers alone: "
            f"python train.py --init_from=resume --out_dir={options.model} --eval_only=True tells it"
        )
    ids = split.read(0, split.tokens)
    split.check_ids(ids)
    return ids, data.bytes_per_token(split)


def report(task: str, scores: Any) -> None:
    """A line for each figure of a task."""
    for field in dataclasses.fields(scores):
        value = getattr(scores, field.name)
        if value is not None:
            print(
                f"{task:9}  {field.name.replace('_', ' '):18}  "
                f"{f'{value:,}' if isinstance(value, int) else value}"
            )


if __name__ == "__main__":
    run_script(score, OPTIONS)
