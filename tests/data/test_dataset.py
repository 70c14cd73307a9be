"""Token files and the order in which training reads them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.commands import ROOT, TEXT, TINY, torchrun
from support.datasets import write_dataset

from engine.data.dataset import Split, open_dataset
from engine.data.order import evaluation_batches, evaluation_windows, permute, training_starts
from engine.errors import UserError
from engine.preparation.pipeline import prepare
from engine.preparation.request import Request


def quiet(_: str) -> None:
    """Say nothing."""


def split_of(tmp_path: Path, *lengths: int, header: int = 0) -> tuple[Split, np.ndarray]:
    """A split over several files of the given lengths, and the ids that they hold."""
    ids = np.random.randint(0, 50_000, sum(lengths)).astype("<u2")
    entries, begin = [], 0
    for number, length in enumerate(lengths):
        name = f"{number}.bin"
        (tmp_path / name).write_bytes(b"h" * header + ids[begin : begin + length].tobytes())
        entries.append({"path": name, "tokens": length, "header_bytes": header})
        begin += length
    return Split("train", tmp_path, entries, np.dtype("<u2"), 50_000), ids.astype(np.int64)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097])
def test_the_permutation_hits_every_number_once(size: int) -> None:
    keys = np.random.randint(0, 2**63, 7, dtype=np.uint64)
    assert sorted(permute(np.arange(size), size, keys)) == list(range(size))


def test_the_permutation_needs_no_memory_for_its_size() -> None:
    keys = np.random.randint(0, 2**63, 7, dtype=np.uint64)
    size = 10**15
    images = permute(np.arange(1000) * (size // 1000), size, keys)
    assert len(set(images.tolist())) == 1000 and images.min() >= 0 and images.max() < size


def test_the_permutation_looks_random() -> None:
    """Over many keys each place is as likely as any other: chi-squared of 20 × 20 counts, 5 deviations."""
    counts = np.zeros((20, 20))
    draws = 4000
    for _ in range(draws):
        keys = np.random.randint(0, 2**63, 7, dtype=np.uint64)
        counts[np.arange(20), permute(np.arange(20), 20, keys)] += 1
    chi_squared = ((counts - draws / 20) ** 2 / (draws / 20)).sum()
    assert abs(chi_squared - 19 * 19) < 5 * np.sqrt(2 * 19 * 19) + 20


@pytest.mark.parametrize(("tokens", "block"), [(33, 32), (64, 32), (65, 32), (1000, 7), (5000, 64)])
def test_an_epoch_visits_disjoint_windows_each_once(tokens: int, block: int) -> None:
    per_epoch = max(1, (tokens - block) // block)
    for epoch in range(3):
        starts = training_starts(7, epoch * per_epoch, per_epoch, tokens, block)
        ordered = np.sort(starts)
        assert (np.diff(ordered) >= block).all()
        assert ordered[0] >= 0 and ordered[-1] + block + 1 <= tokens


def test_epochs_differ_in_offset_and_order() -> None:
    first, second = (training_starts(7, epoch * 77, 77, 5000, 64) for epoch in (0, 1))
    assert first[0] % 64 != second[0] % 64 or not np.array_equal(np.argsort(first), np.argsort(second))
    assert not np.array_equal(first, np.sort(first))


def test_sequences_depend_on_seed_and_number_alone_however_they_are_asked_for() -> None:
    whole = training_starts(3, 0, 500, 5000, 64)
    pieces = [training_starts(3, first, 20, 5000, 64) for first in range(0, 500, 20)]
    assert np.array_equal(whole, np.concatenate(pieces))
    assert not np.array_equal(whole, training_starts(4, 0, 500, 5000, 64))


@pytest.mark.parametrize("header", [0, 1024])
def test_windows_cross_the_borders_of_files(tmp_path: Path, header: int) -> None:
    split, ids = split_of(tmp_path, 50, 7, 1, 80, header=header)
    assert split.tokens == len(ids)
    for start in range(len(ids) - 20):
        assert np.array_equal(split.read(start, 20), ids[start : start + 20])


@pytest.mark.parametrize("tokens", [33, 64, 65, 66, 100])
def test_evaluation_predicts_every_token_but_the_first_once(tmp_path: Path, tokens: int) -> None:
    split, ids = split_of(tmp_path, tokens)
    windows = evaluation_windows(split, 32, None)
    for shares in (1, 2, 3):
        seen = []
        for share in range(shares):
            first, last = windows * share // shares, windows * (share + 1) // shares
            for inputs, targets in evaluation_batches(split, 32, windows, first, last, 2):
                assert np.array_equal(inputs[:, 1:], targets[:, :-1])
                seen.append(targets.reshape(-1))
        assert np.array_equal(np.concatenate(seen), ids[1:])


@pytest.mark.parametrize("windows", [1, 2, 3, 7, 20, 30])
@pytest.mark.parametrize("tokens", [33, 961, 1000])
def test_an_evaluation_of_some_windows_spreads_them_evenly_over_the_split(
    tmp_path: Path, tokens: int, windows: int
) -> None:
    split, _ = split_of(tmp_path, tokens)
    split._parts[0] = np.arange(tokens).astype("<u2")  # so that each id tells its place
    grid = evaluation_windows(split, 32, None)
    count = evaluation_windows(split, 32, windows)
    assert grid == -(-(tokens - 1) // 32) and count == min(windows, grid)
    whole = [row for batch, _ in evaluation_batches(split, 32, count, 0, count, 4) for row in batch]
    shared = [
        row
        for rank in range(3)
        for batch, _ in evaluation_batches(split, 32, count, count * rank // 3, count * (rank + 1) // 3, 4)
        for row in batch
    ]
    assert [row.tolist() for row in shared] == [row.tolist() for row in whole]
    starts = np.array([row[0] for row in whole])
    assert len(set(starts.tolist())) == count and (starts % 32 == 0).all()  # of the grid, none twice
    # Of the equal parts into which the split is cut, each has one window, in its middle.
    middles = (np.arange(count) + 0.5) * grid / count
    assert (np.abs(starts / 32 + 0.5 - middles) <= 0.5).all()


def test_prepared_text_reads_back_as_it_was(prepared: Path) -> None:
    data = open_dataset("topics", 32, prepared / "data")
    ids = np.concatenate([data.train.read(0, data.train.tokens), data.val.read(0, data.val.tokens)])
    assert data.tokenizer.decode(ids) == TEXT
    assert data.train.tokens == int(0.9 * len(TEXT))
    assert data.bytes_per_token(data.val) >= 1


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT[:5000])
    request = Request("a", [str(tmp_path / "a.txt")], "bytes")
    first = prepare(request, quiet, tmp_path / "data")
    before = {file.name: file.read_bytes() for file in first.iterdir()}
    prepare(request, quiet, tmp_path / "data")
    assert before == {file.name: file.read_bytes() for file in first.iterdir()} and len(before) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 99}, "format 99"),
        ({"dtype": "object"}, "uint16"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"vocab_size": 5}, "not its tokenizer's"),
        ({"files": []}, "files"),
        (
            {
                "files": [
                    {"path": "../../secret", "split": "train", "tokens": 1, "header_bytes": 0, "sha256": ""}
                ]
            },
            "inside",
        ),
        ({"tokenizer": {"kind": "pickle"}}, "unknown tokenizer"),
        ({"tokenizer": {"kind": "char", "characters": "aa"}}, "table is damaged"),
    ],
)
def test_a_meta_that_lies_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    folder = write_dataset("x", "abc" * 100, "char", 0.2, tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(UserError, match=said):
        open_dataset("x", 8, tmp_path)


def test_damaged_missing_and_short_files_are_named(tmp_path: Path) -> None:
    folder = write_dataset("x", "abc" * 100, "char", 0.2, tmp_path)
    content = bytearray((folder / "train.bin").read_bytes())
    content[10] ^= 1
    (folder / "train.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.bin is damaged"):
        open_dataset("x", 8, tmp_path)
    (folder / "train.bin").write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"479 bytes where its meta\.json says 480"):
        open_dataset("x", 8, tmp_path)
    (folder / "train.bin").unlink()
    with pytest.raises(UserError, match="missing"):
        open_dataset("x", 8, tmp_path)
    with pytest.raises(UserError, match=r"python prepare\.py nowhere --input FILE"):
        open_dataset("nowhere", 8, tmp_path)


def test_a_data_set_named_by_its_path_or_nearly_is_asked_for_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset("base", "abc" * 100, "char", 0.2)
    Path("link").symlink_to("data")
    for name in ("data/base", "data/base/", "base/", "./data/base", "link/base", str(tmp_path / "data/base")):
        with pytest.raises(UserError, match=rf"^{name} is a path.*; did you mean base\?$"):
            open_dataset(name, 8)
    with pytest.raises(UserError, match=r"did you mean shakespeare_char\?$"):
        open_dataset("data/shakespeare_char/", 8)
    for name, meant in (("bass", "base"), ("shakespear", "shakespeare"), ("open_webtext", "openwebtext")):
        with pytest.raises(UserError, match=rf"no data set data/{name} \(.*; did you mean {meant}\?"):
            open_dataset(name, 8)
    with pytest.raises(UserError, match=r"prepare\.py 'my text' --input FILE"):
        open_dataset("my text", 8)
    assert open_dataset("base", 8).train.tokens == 240
    assert open_dataset(str(tmp_path / "data/base"), 8, Path("elsewhere")).train.tokens == 240


WATCHED_TRAINING = """
import os, pathlib, runpy, sys

def watch(event, arguments):
    \"""Refuse what a read-only data/ would refuse.\"""
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.mkdir", "os.remove", "os.rename", "os.chmod", "os.truncate", "os.link"):
        paths = [path for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
        if any(pathlib.Path(os.fsdecode(path)).resolve().is_relative_to(DATA) for path in paths):
            raise OSError(30, "Read-only file system", str(arguments[0]))

script, *sys.argv[1:] = sys.argv[1:]
DATA = pathlib.Path("data").resolve()
sys.argv[0] = script
sys.path.insert(0, os.path.dirname(script))
sys.addaudithook(watch)
runpy.run_path(script, run_name="__main__")
"""


def test_training_writes_nothing_into_data(place: Path) -> None:
    run = [sys.executable, "-c", WATCHED_TRAINING]
    watched = {"cwd": place, "capture_output": True, "text": True}
    trained = subprocess.run([*run, str(ROOT / "train.py"), "tiny.py", "--max_iters=2"], **watched)
    assert trained.returncode == 0, trained.stderr
    (place / "more.txt").write_text(TEXT[:1000])
    refused = subprocess.run([*run, str(ROOT / "prepare.py"), "more.txt"], **watched)
    assert refused.returncode == 2 and "data/more cannot be made: Read-only file system" in refused.stderr


def test_a_split_shorter_than_a_window_is_one_line_under_torchrun_too(tmp_path: Path) -> None:
    write_dataset("short", "abcdefgh" * 10, "char", 0.1, tmp_path / "data")
    (tmp_path / "short.py").write_text(TINY.replace("topics", "short").replace("32", "8", 1))
    finished = torchrun(tmp_path, 2, "train.py", "short.py")
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert finished.returncode != 0 and len(lines) == 1 and "val split of data/short has 8 tokens" in lines[0]


def test_a_split_no_longer_than_a_block_is_refused(tmp_path: Path) -> None:
    write_dataset("x", "abc" * 100, "char", 0.2, tmp_path)
    assert open_dataset("x", 59, tmp_path).val.tokens == 60
    with pytest.raises(UserError, match=r"val split .* has 60 tokens"):
        open_dataset("x", 60, tmp_path)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    split, _ = split_of(tmp_path, 100)
    split.vocab_size = 1
    with pytest.raises(UserError, match="token id"):
        split.windows(np.array([0]), 32)
    with pytest.raises(UserError, match="token id"):
        list(evaluation_batches(split, 32, 1, 0, 1, 1))


def test_a_full_disk_leaves_the_older_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset("x", "abc" * 100, "char", 0.2, tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises((OSError, UserError)):
        write_dataset("x", "abcd" * 100, "char", 0.2, tmp_path)
    monkeypatch.undo()
    assert open_dataset("x", 8, tmp_path).train.tokens == 240
    assert sorted(file.name for file in folder.iterdir()) == ["meta.json", "train.bin", "val.bin"]
