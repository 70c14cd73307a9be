"""How fast prepare.py is, and how much memory it takes, on a text that it writes itself.

    python -m engine.prepare_speed --megabytes 2000

The same documents go through `tiktoken.encode_ordinary_batch` on as many threads: tokenizing alone, nothing
read, hashed, split or written. `measure_prepare` returns the figures.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from engine.system import available_cores


def measure_preparing(options: Any) -> None:
    """How fast a text that is made up on the spot becomes token files."""
    pass

    found = measure_prepare(options.megabytes * 10**6)
    print(
        f"{options.megabytes} MB of text, {found['workers']} workers: from JSON lines to token files "
        f"{found['megabytes_per_second']:.1f} MB/s, tiktoken alone on as many threads "
        f"{found['tiktoken_megabytes_per_second']:.1f} MB/s, ratio {found['ratio']:.2f}; "
        f"the largest process took {found['largest_process']:.0f} MiB"
    )


COMPARED = 2**26  # bytes of documents that tiktoken is measured on
ROOT = Path(__file__).resolve().parents[2]


def documents(size: int, seed: int = 0) -> Iterator[str]:
    """So many bytes of documents of some thousand characters: random paragraphs of Python's manual."""
    stream = random.Random(seed)
    paragraphs = [part for name in sorted(topics) for part in topics[name].split("\n\n") if part.isascii()]
    while size > 0:
        text = "\n\n".join(stream.choices(paragraphs, k=stream.randint(2, 20)))
        size -= len(text)
        yield text


def measure_prepare(size: int, workers: int | None = None) -> dict[str, float]:
    """Prepare so many bytes as .jsonl with GPT-2's encoding; rates in MB of text a second, memory in MiB.

    `largest_process` is the peak of the largest process, the main one or a worker.
    """
    workers = workers or available_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
            for text in documents(size):
                file.write(json.dumps({"text": text}) + "\n")
        command = [
            sys.executable,
            str(ROOT / "prepare.py"),
            "speed",
            "--input",
            "text.jsonl",
            "--tokenizer",
            "gpt2",
        ]
        before = time.perf_counter()
        subprocess.run([*command, "--workers", str(workers)], cwd=folder, check=True)
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
    """MB a second that tiktoken tokenises in batches of a thousand documents, on so many threads."""
    from engine.text.byte_pairs import GPT2Tokenizer

    encoding = GPT2Tokenizer().encoding
    texts = list(documents(size))
    before = time.perf_counter()
    for first in range(0, len(texts), 1000):
        encoding.encode_ordinary_batch(texts[first : first + 1000], num_threads=threads)
    return size / (time.perf_counter() - before) / 1e6


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=2000, help="size of the text (default: 2000)")
    parser.add_argument("--workers", type=int, help="processes (default: one for each core)")
    options = parser.parse_args()
    print(json.dumps(measure_prepare(options.megabytes * 10**6, options.workers)))


if __name__ == "__main__":
    main()
