"""Measure the speed and memory of prepare.py on a generated text.

The baseline is `tiktoken.encode_ordinary_batch` on the same documents with as many threads: it only
tokenizes, and does not read, hash, split or write.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from engine.measure.training_step import ROOT
from engine.system import available_cores
from engine.text.byte_pairs import GPT2Tokenizer

COMPARED = 2**26  # bytes of documents that tiktoken is measured on


def measure_preparing(options: Namespace) -> None:
    """Print how fast a generated text becomes token files."""
    found = measure_prepare(options.megabytes * 10**6, options.processes or available_cores())
    print(
        f"{options.megabytes} MB of text, {found['workers']} workers: from JSON lines to token files "
        f"{found['megabytes_per_second']:.1f} MB/s, tiktoken alone on as many threads "
        f"{found['tiktoken_megabytes_per_second']:.1f} MB/s, ratio {found['ratio']:.2f}; "
        f"the largest process took {found['largest_process']:.0f} MiB"
    )


def documents(size: int, seed: int = 0) -> Iterator[str]:
    """Documents of a few thousand characters, `size` bytes in all: random paragraphs of Python's manual."""
    stream = random.Random(seed)
    paragraphs = [part for name in sorted(topics) for part in topics[name].split("\n\n") if part.isascii()]
    while size > 0:
        text = "\n\n".join(stream.choices(paragraphs, k=stream.randint(2, 20)))
        size -= len(text)
        yield text


def measure_prepare(size: int, workers: int) -> dict[str, float]:
    """Prepare a .jsonl of this size with GPT-2's encoding; rates in MB of text per second, memory in MiB.

    `largest_process` is the peak of the largest process, the main one or a worker.
    """
    import resource  # which Windows lacks

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
            for text in documents(size):
                file.write(json.dumps({"text": text}) + "\n")
        command = [sys.executable, str(ROOT / "prepare.py"), "speed", "--input", "text.jsonl"]
        command += ["--tokenizer", "gpt2", "--workers", str(workers)]
        before = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True)
        seconds = time.perf_counter() - before
        kibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    rate = tiktoken_rate(min(size, COMPARED), workers)
    return {
        "workers": workers,
        "megabytes_per_second": size / seconds / 1e6,
        "tiktoken_megabytes_per_second": rate,
        "ratio": size / seconds / 1e6 / rate,
        "largest_process": kibibytes / (2**20 if sys.platform == "darwin" else 2**10),
    }


def tiktoken_rate(size: int, threads: int) -> float:
    """MB per second that tiktoken encodes, in batches of a thousand documents."""
    encoding = GPT2Tokenizer().encoding
    texts = list(documents(size))
    before = time.perf_counter()
    for first in range(0, len(texts), 1000):
        encoding.encode_ordinary_batch(texts[first : first + 1000], num_threads=threads)
    return size / (time.perf_counter() - before) / 1e6
