"""A data set of 100 GB is opened and read at no cost in memory, its windows permuted without an index."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import ROOT

TOKENS = 50_000_000_000
READER = """
import resource, sys
import numpy as np
from engine.data.dataset import open_dataset
from engine.data.order import training_starts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = open_dataset("large", 1024)
per_epoch = (data.train.tokens - 1024) // 1024
asked = range(0, per_epoch, per_epoch // 5)
starts = [training_starts(1, consumed, 64, data.train.tokens, 1024) for consumed in asked]
rows = [data.train.windows(one, 1024) for one in starts]
assert all(row.shape == (64, 1025) for row in rows)
starts = np.concatenate(starts)
assert len(set(starts.tolist())) == len(starts)
assert starts.max() > data.train.tokens * 0.95 > 20 * starts.min()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_data_set_of_100_gigabytes_costs_no_memory(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "large"
    folder.mkdir(parents=True)
    files = []
    for split, tokens in (("train", TOKENS), ("val", 100_000)):
        with open(folder / f"{split}.bin", "wb") as file:
            file.truncate(2 * tokens)
        entry = {
            "path": f"{split}.bin",
            "split": split,
            "tokens": tokens,
            "header_bytes": 0,
            "sha256": "not read",
        }
        files.append(entry)
    if (folder / "train.bin").stat().st_blocks * 512 > 10**9:
        pytest.skip("this file system has no sparse files")
    meta = {"format": 1, "dtype": "uint16", "vocab_size": 256, "tokenizer": {"kind": "bytes"}, "files": files}
    (folder / "meta.json").write_text(json.dumps(meta))
    finished = subprocess.run(
        [sys.executable, "-c", READER],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    kibibytes = int(finished.stdout) / (1024 if sys.platform == "darwin" else 1)
    assert kibibytes < 100_000  # an index of the windows alone would take 390 MB
