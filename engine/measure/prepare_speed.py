"""Measure the speed and memory of prepare.py on a generated text.

The baseline is `tiktoken.encode_ordinary_batch` on the same documents with as many threads: it only
tokenizes, and does not read, hash, split or write.
"""

import json
import random
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from engine.command_line import ROOT
from engine.measure.timing import seconds_of
from engine.system import available_cores
from engine.text.byte_pairs import GPT2Tokenizer

COMPARED = 2**26  # bytes of documents that tiktoken is measured on


def measure_preparing(options: Namespace) -> None:
    """Print how fast a generated text becomes token files, with GPT-2's encoding."""
    import resource  # which Windows lacks

    size, workers = options.megabytes * 10**6, options.processes or available_cores()
    command = [sys.executable, str(ROOT / "prepare.py"), "speed", "--input", "text.jsonl"]
    command += ["--tokenizer", "gpt2", "--workers", str(workers)]
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


def documents(size: int, seed: int = 0) -> Iterator[str]:
    """Documents of a few thousand characters, `size` bytes in all: random paragraphs of Python's manual."""
    stream = random.Random(seed)
    paragraphs = [part for name in sorted(topics) for part in topics[name].split("\n\n") if part.isascii()]
    while size > 0:
        text = "\n\n".join(stream.choices(paragraphs, k=stream.randint(2, 20)))
        size -= len(text)
        yield text
