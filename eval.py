"""Score a model.

    python eval.py                                                       the newest run's validation split
    python eval.py out/shakespeare_char                                  that of another run
    python eval.py gpt2 --dataset shakespeare --stride 512               a sliding window over a data set
    python eval.py gpt2 --text book.txt                                  any text
    python eval.py out/assistant_chat --tasks arithmetic reversing       held-out questions of tasks/
    python eval.py gpt2-medium --tasks hellaswag lambada                 public benchmarks, zero-shot
    python eval.py exported/ --tasks hellaswag --hellaswag val.jsonl --limit 1000

The model is a run, gpt2 to gpt2-xl, OWNER/NAME@COMMIT on the Hugging Face hub, a folder in its GPT-2 layout,
or a nanoGPT ckpt.pt. Every figure comes with its standard error; docs/evaluation.md says more.
"""

import dataclasses
import json
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

import tasks
from engine.command_line import Parser, at_least_one, read_early, run_script
from engine.errors import UserError, did_you_mean, similar_file

TASKS = ("loss", "hellaswag", "lambada", *tasks.TASKS)
DTYPES = ("float32", "bfloat16", "float16", "float64", "int8")


def read_options(arguments: Sequence[str]) -> Namespace:
    """The command line, checked. Raises UserError."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("model", nargs="?", help="a run, a GPT-2's name, a folder, or a ckpt.pt (default: the newest run)")
    add("--tasks", nargs="+", type=task_name, default=["loss"], help=f"{', '.join(TASKS)}, or files.jsonl")
    add("--dataset", help="for loss: a prepared data set (default: the one of the run)")
    add("--split", choices=("train", "val"), default="val", help="its split (default: val)")
    add("--text", type=Path, help="for loss: a text file in UTF-8, in place of a data set")
    add("--stride", type=at_least_one, help="tokens that a window moves on by (default: block_size)")
    add("--hellaswag", type=Path, metavar="FILE", help="hellaswag_val.jsonl (default: downloaded)")
    add("--lambada", type=Path, metavar="FILE", help="lambada_test.jsonl (default: downloaded)")
    add("--limit", type=at_least_one, help="examples, or tokens of a text, from the first (default: all)")
    add("--batch_size", type=at_least_one, default=8, help="sequences at a time (default: 8)")
    add("--checkpoint", default="best", help="which one of a run: best, last, step-… (default: best)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps or xpu (default: auto)")
    add("--dtype", choices=DTYPES, default="float32", help="default: float32")
    add("--threads", type=at_least_one, help="CPU threads (default: the machine's cores)")
    add("--output", type=Path, metavar="FILE", help="write the figures to a JSON file as well")
    return parser.parse_args(arguments)


def task_name(text: str) -> str:
    """A value of --tasks, as the `type` of an option."""
    if text not in TASKS and not text.endswith(".jsonl"):
        meant = did_you_mean(text, TASKS, otherwise=f"; it can be {', '.join(TASKS)}")
        raise ArgumentTypeError(f"invalid choice: {text!r}{meant}, or a file of questions, .jsonl")
    return text


# Above the slow imports, so that --help and mistakes are answered at once.
OPTIONS = read_early(read_options) if __name__ == "__main__" else None

import numpy as np
import torch

from engine.data.dataset import open_dataset
from engine.device import Compute, choose_threads, find_device
from engine.kernels import quantize, require_int8
from engine.measure.benchmarks import read_hellaswag, read_lambada, score_hellaswag, score_lambada
from engine.measure.scoring import Figures, score_text
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
    if options.dtype == "int8":
        require_int8(device)
    dtype = "float32" if options.dtype == "int8" else options.dtype
    compute = Compute(device.type, dtype, False, choose_threads(options.threads, 1))
    compute.apply()
    found = read_pretrained(options.model, options.checkpoint)
    model = found.model(device, compute.weights_dtype()).eval()
    if options.dtype == "int8":
        quantize(model)
    results = {"model": options.model, "dtype": options.dtype, "block_size": model.config.block_size}
    with compute.autocast():
        for task in options.tasks:
            results[task] = figures = score_one(task, options, found, model)
            for name, value in figures.items():
                if value is not None:
                    shown = f"{value:,}" if isinstance(value, int) else value
                    print(f"{task:9}  {name.replace('_', ' '):18}  {shown}")
    if options.output is not None:
        write_whole(options.output, json.dumps(results, indent=1, default=dataclasses.asdict).encode())


def score_one(task: str, options: Namespace, found: Pretrained, model: GPT) -> Figures:
    """The figures of a task. Raises UserError."""
    if task == "loss":
        return score_data(options, found, model)
    tokenizer, limit, batch_size = found.known_tokenizer(), options.limit, options.batch_size
    if task == "hellaswag":
        return score_hellaswag(model, tokenizer, read_hellaswag(options.hellaswag, limit), batch_size)
    if task == "lambada":
        return score_lambada(model, tokenizer, read_lambada(options.lambada, limit), batch_size)
    return score_task(model, tokenizer, task, limit, batch_size)


def score_data(options: Namespace, found: Pretrained, model: GPT) -> Figures:
    """The figures of a text file, or of a data set's split. Raises UserError."""
    block_size = model.config.block_size
    stride = options.stride or block_size
    if stride > block_size:
        raise UserError(
            f"--stride is {stride}; the model sees {block_size} positions, so it can be 1 to {block_size}"
        )
    ids, bytes_per_token = read_text(options.text, found) if options.text else read_data(options, found)
    ids = torch.from_numpy(ids[: options.limit])
    if len(ids) < 2:
        raise UserError("the text has fewer than two tokens; there is nothing to predict")
    return score_text(model, ids, bytes_per_token, stride, options.batch_size)


def read_text(path: Path, found: Pretrained) -> tuple[np.ndarray, float]:
    """The token ids of a text file, and bytes of text per token. Raises UserError."""
    tokenizer = found.known_tokenizer()
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}{similar_file(path)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start})") from error
    if text.startswith(BYTE_ORDER_MARK):
        print_note(f"{path} begins with a byte-order mark (U+FEFF), which is left out")
        text = text.removeprefix(BYTE_ORDER_MARK)
    ids = tokenizer.encode(text)
    return ids, len(text.encode()) / max(1, len(ids))


def read_data(options: Namespace, found: Pretrained) -> tuple[np.ndarray, float | None]:
    """The token ids of a data set's split, and bytes of text per token (None: unknown). Raises UserError."""
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
            f"python train.py --init_from=resume --out_dir={options.model} --eval_only=True prints it"
        )
    ids = split.read(0, split.tokens)
    split.check_ids(ids)
    return ids, data.bytes_per_token(split)


if __name__ == "__main__":
    run_script(score, OPTIONS)
