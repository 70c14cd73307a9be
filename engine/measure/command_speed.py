"""Time whole commands: train.py to its first step and to a loss, and prepare.py."""

import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from engine.command_line import ROOT, as_arguments
from engine.errors import UserError
from engine.measure.timing import ratios, seconds_of, summary, take_turns
from engine.measure.training_step import PLAIN
from engine.system import available_cores
from engine.text.byte_pairs import GPT2Tokenizer
from engine.training.metrics import read_metrics

TRAIN, PREPARE = ([sys.executable, str(ROOT / script)] for script in ("train.py", "prepare.py"))
LEAST = (
    "import torch; p = torch.nn.Parameter(torch.ones(2)); p.sum().backward(); torch.optim.AdamW([p]).step()"
)
COMPARED = 2**26  # bytes of documents that tiktoken is measured on


def measure_loss(options: Namespace) -> None:
    """Train two configurations with each seed, in turns; print validation losses and seconds."""
    names = [options.config or "configs/shakespeare_char_fast.py", options.compare or "the plain setting"]
    lines = [name.split() for name in names]
    if options.compare is None:
        lines[1] = ["configs/shakespeare_char.py", *as_arguments(PLAIN)]
    outcomes: list[list[dict[str, Any]]] = [[] for _ in lines]
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for number, line in enumerate(lines):
                outcomes[number].append(train_to_the_end(line, seed, Path(folder, f"{number}-{seed}")))
    seconds = [[outcome["seconds"] for outcome in found] for found in outcomes]
    for name, found, spent in zip(names, outcomes, seconds, strict=True):
        losses = [outcome["val_loss"] for outcome in found]
        spread = f"{statistics.fmean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"
        spent = f"{statistics.median(spent):.1f} s of training"
        print(f"{name}: validation loss {spread} over {len(losses)} seeds, {spent}")
    shares = [100 * ratio for ratio in ratios(*seconds)]
    print(f"{names[0]} takes {summary(shares)} % of the other's time")


def train_to_the_end(line: Sequence[str], seed: int, folder: Path) -> dict[str, Any]:
    """Train in a new process; the last evaluation, of the whole split. Raises UserError."""
    fixed = {"seed": seed, "out_dir": folder, "eval_iters": None, "sample_tokens": 0}
    fixed |= {"eval_interval": 1000000, "keep_checkpoints": 1}
    finished = subprocess.run([*TRAIN, *line, *as_arguments(fixed)], stdout=subprocess.DEVNULL)
    if finished.returncode:
        raise UserError(f"train.py {' '.join(line)} ended with status {finished.returncode}")
    return [entry for entry in read_metrics(folder / "metrics.jsonl") if entry["kind"] == "eval"][-1]


def measure_start(options: Namespace) -> None:
    """Time train.py up to its first step, against importing torch and making one optimizer step."""
    settings = PLAIN | {"max_iters": 1, "sample_tokens": 0, "eval_iters": 1, "eval_interval": 100}
    train = [*TRAIN, "--dataset=text", "--out_dir=run", *as_arguments(settings)]
    with tempfile.TemporaryDirectory() as folder:

        def seconds(line: list[str]) -> float:
            shutil.rmtree(Path(folder, "run"), ignore_errors=True)
            return seconds_of(lambda: subprocess.run(line, cwd=folder, check=True, capture_output=True))

        Path(folder, "text.txt").write_text("Something to read, again and again. " * 2000)
        seconds([*PREPARE, "text.txt"])
        lines = {"least": [sys.executable, "-c", LEAST], "ours": train}
        measures = {name: lambda line=line: seconds(line) for name, line in lines.items()}
        least, ours = take_turns(measures, options.rounds).values()
    print(f"import torch and one optimizer step: {summary(least)} s")
    print(f"train.py with one step, two small evaluations and a checkpoint: {summary(ours)} s")
    print(f"ratio {summary(ratios(ours, least))}")


def measure_preparing(options: Namespace) -> None:
    """Print how fast a generated text becomes token files of GPT-2's encoding, and the memory that takes.

    The baseline is `tiktoken.encode_ordinary_batch` on the same documents with as many threads: it only
    tokenizes, and does not read, hash, split or write.
    """
    import resource  # which Windows lacks

    size, workers = options.megabytes * 10**6, options.processes or available_cores()
    command = [*PREPARE, "speed", "--input=text.jsonl", "--tokenizer=gpt2", f"--workers={workers}"]
    with tempfile.TemporaryDirectory() as folder:
        with open(Path(folder, "text.jsonl"), "w", encoding="utf-8") as file:
            for text in documents(size):
                file.write(json.dumps({"text": text}) + "\n")
        ours = size / 1e6 / seconds_of(lambda: subprocess.run(command, cwd=folder, check=True))
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # in KiB, but on macOS
    compared = min(size, COMPARED)
    encoding, texts = GPT2Tokenizer().encoding, list(documents(compared))

    def encode() -> None:
        for first in range(0, len(texts), 1000):
            encoding.encode_ordinary_batch(texts[first : first + 1000], num_threads=workers)

    theirs = compared / 1e6 / seconds_of(encode)
    print(
        f"{options.megabytes} MB of text, {workers} workers: from JSON lines to token files "
        f"{ours:.1f} MB/s, tiktoken alone on as many threads {theirs:.1f} MB/s, ratio {ours / theirs:.2f}; "
        f"the largest process took {largest / (2**20 if sys.platform == 'darwin' else 2**10):.0f} MiB"
    )


def documents(size: int) -> Iterator[str]:
    """Documents of `size` bytes in all: random paragraphs of Python's manual."""
    stream = random.Random(0)
    paragraphs = [part for name in sorted(topics) for part in topics[name].split("\n\n") if part.isascii()]
    while size > 0:
        text = "\n\n".join(stream.choices(paragraphs, k=stream.randint(2, 20)))
        size -= len(text)
        yield text
