"""Files from strangers: nothing in them runs, and only the project's own kind of error comes out of them."""

import ast
import dataclasses
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.checkpoints import CONFIG, reseal, save_one
from support.commands import ROOT
from support.datasets import write_dataset
from support.listing import listing

import plot
import sample
import train
from engine.command_line import read_settings, retired
from engine.data.dataset import open_dataset
from engine.errors import UserError
from engine.settings import SampleSettings, TrainSettings
from engine.text.tokenizer import tokenizer_from_dict
from engine.weights import checkpoint as checkpoints

SOURCES = [
    path
    for part in ("*.py", "configs/*.py", "docs/*.py", "engine/**/*.py", "lessons/**/*.py")
    for path in ROOT.glob(part)
]
FULL = os.environ.get("FUZZ_EXAMPLES")
EXAMPLES = int(FULL or 200)  # of each of the five kinds; the torture run takes 2,000
fuzz = hypothesis_settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call in a source file, with the dotted name of what is called."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            found.append((ast.unparse(node.func), node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_text_or_unpickles_or_calls_a_shell(path: Path) -> None:
    for name, call in calls(path):
        assert name not in ("exec", "eval", "compile", "__import__", "os.system", "os.popen"), ast.unparse(
            call
        )
        assert not name.startswith(("pickle.", "marshal.", "shelve.", "dill.", "joblib.")), ast.unparse(call)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("shell", "False") == "False", ast.unparse(call)
        assert keywords.get("allow_pickle", "False") == "False", ast.unparse(call)
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", ast.unparse(call)
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
    }
    assert not imported & {"pickle", "marshal", "shelve", "dill", "joblib"}


class Payload:
    """Unpickling this makes a folder."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("it-ran",)


@pytest.fixture
def trained(place: Path) -> Path:
    """A folder with a run in r and a data set of its own, not shared with other tests."""
    train.main(["tiny.py", "--out_dir=r", "--max_iters=10", "--sample_tokens=0"])
    shared = (place / "data").resolve()
    (place / "data").unlink()
    shutil.copytree(shared, place / "data")
    return place


READ = [
    "data/topics/meta.json",
    "data/topics/train.bin",
    "data/topics/val.bin",
    "r/last",
    "r/best",
    "r/metrics.jsonl",
]
READ += [
    f"r/checkpoints/step-00000010/{name}"
    for name in ("meta.json", "model.safetensors", "optimizer.safetensors")
]


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_in_the_place_of_any_file_does_not_run(trained: Path, name: str, kind: str) -> None:
    if kind == "pickle":
        (trained / name).write_bytes(pickle.dumps(Payload()))
    else:
        torch.save({"weights": Payload()}, trained / name)
    for script, arguments in (
        (train, ["tiny.py", "--out_dir=r", "--init_from=resume", "--max_iters=11", "--sample_tokens=0"]),
        (sample, ["--out_dir=r", "--device=cpu", "--max_new_tokens=2", "--num_samples=1"]),
        (plot, ["r"]),
    ):
        try:
            script.main(arguments)
        except UserError as error:
            assert "\n" not in str(error)
    assert not (trained / "it-ran").exists()


def llm_c_shard(ids: np.ndarray) -> bytes:
    """Tokens behind the header that llm.c writes: 256 integers, of which the first three mean something."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(ids)
    return header.tobytes() + ids.astype("<u2").tobytes()


def change_meta(place: Path, **change: object) -> None:
    """Change entries of the data set's meta.json."""
    path = place / "data/topics/meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def change_file(place: Path, **change: object) -> None:
    """Change entries of its first token file in meta.json."""
    meta = json.loads((place / "data/topics/meta.json").read_text())
    meta["files"][0] |= change
    change_meta(place, files=meta["files"])


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    """Something that replaces a file."""
    return lambda place: (place / name).write_bytes(content) and None


def honest_bin(place: Path, ids: np.ndarray) -> None:
    """Put ids into train.bin and everything that meta.json says of it right."""
    import hashlib

    content = ids.astype("<u2").tobytes()
    (place / "data/topics/train.bin").write_bytes(content)
    change_file(place, tokens=len(ids), sha256=hashlib.sha256(content).hexdigest())


MODEL = dataclasses.asdict(CONFIG)
STEP = "r/checkpoints/step-00000010"
MALFORMED: dict[str, Callable[[Path], None]] = {
    "meta is empty": overwrite("data/topics/meta.json", b""),
    "meta is no JSON": overwrite("data/topics/meta.json", b"{"),
    "meta is not UTF-8": overwrite("data/topics/meta.json", b"\xff\xfe"),
    "meta is a list": overwrite("data/topics/meta.json", b"[]"),
    "meta is null": overwrite("data/topics/meta.json", b"null"),
    "meta nests without end": overwrite("data/topics/meta.json", b"[" * 100_000),
    "meta has a huge number": overwrite("data/topics/meta.json", b'{"format": ' + b"9" * 5000 + b"}"),
    "format is missing": lambda place: change_meta(place, format=None),
    "format is later": lambda place: change_meta(place, format=2),
    "dtype is another": lambda place: change_meta(place, dtype="uint32"),
    "dtype is unknown": lambda place: change_meta(place, dtype="float64"),
    "dtype is a list": lambda place: change_meta(place, dtype=["uint16"]),
    "vocab_size is text": lambda place: change_meta(place, vocab_size="65"),
    "vocab_size is true": lambda place: change_meta(place, vocab_size=True),
    "vocab_size is negative": lambda place: change_meta(place, vocab_size=-1),
    "vocab_size is another": lambda place: change_meta(place, vocab_size=7),
    "tokenizer is missing": lambda place: change_meta(place, tokenizer=None),
    "tokenizer is unknown": lambda place: change_meta(place, tokenizer={"kind": "words"}),
    "tokenizer has no table": lambda place: change_meta(place, tokenizer={"kind": "char"}),
    "table repeats": lambda place: change_meta(place, tokenizer={"kind": "char", "characters": "aab"}),
    "table is a number": lambda place: change_meta(place, tokenizer={"kind": "char", "characters": 5}),
    "table has half a pair": lambda place: change_meta(
        place, tokenizer={"kind": "char", "characters": "a\ud800"}
    ),
    "files is missing": lambda place: change_meta(place, files=None),
    "files is empty": lambda place: change_meta(place, files=[]),
    "files holds text": lambda place: change_meta(place, files=["train.bin"]),
    "text_bytes is text": lambda place: change_meta(place, text_bytes="many"),
    "text_bytes is negative": lambda place: change_meta(place, text_bytes={"val": -5}),
    "path leads out": lambda place: change_file(place, path="../../../etc/passwd"),
    "path is absolute": lambda place: change_file(place, path="/etc/passwd"),
    "path is empty": lambda place: change_file(place, path=""),
    "path has a zero byte": lambda place: change_file(place, path="a\0b"),
    "path is a number": lambda place: change_file(place, path=3),
    "path is missing": lambda place: change_file(place, path="nowhere.bin"),
    "path is a folder": lambda place: change_file(place, path="."),
    "split is unknown": lambda place: change_file(place, split="test"),
    "tokens is text": lambda place: change_file(place, tokens="many"),
    "tokens is too large": lambda place: change_file(place, tokens=10**30),
    "tokens is one more": lambda place: change_file(place, tokens=108_001),
    "header is negative": lambda place: change_file(place, header_bytes=-2),
    "header is not there": lambda place: change_file(place, header_bytes=1024),
    "hash is missing": lambda place: change_file(place, sha256=None),
    "bin is empty": overwrite("data/topics/train.bin", b""),
    "bin has an odd length": overwrite("data/topics/train.bin", b"\0" * 12_345),
    "bin is of another type": overwrite("data/topics/train.bin", np.zeros(108_000, dtype="<u4").tobytes()),
    "bin has a foreign header": overwrite(
        "data/topics/train.bin", llm_c_shard(np.zeros(108_000, dtype=np.uint16))
    ),
    "bin has other ids": overwrite("data/topics/train.bin", np.ones(108_000, dtype="<u2").tobytes()),
    "ids are beyond the vocabulary": lambda place: honest_bin(place, np.full(108_000, 60_000)),
    "bin is shorter than a block": lambda place: honest_bin(place, np.zeros(20)),
    "checkpoint meta is empty": overwrite(f"{STEP}/meta.json", b""),
    "checkpoint meta is a list": overwrite(f"{STEP}/meta.json", b"[]"),
    "checkpoint meta nests": overwrite(f"{STEP}/meta.json", b"[" * 100_000),
    "weights are empty": overwrite(f"{STEP}/model.safetensors", b""),
    "weights have a huge header": overwrite(f"{STEP}/model.safetensors", struct.pack("<Q", 2**62)),
    "optimizer is missing": lambda place: (place / STEP / "optimizer.safetensors").unlink(),
    "checkpoint is of a later format": lambda place: reseal(place / STEP, format=2),
    "model is missing": lambda place: reseal(place / STEP, model=None),
    "model has another shape": lambda place: reseal(place / STEP, model=MODEL),
    "model is endless": lambda place: reseal(place / STEP, model=MODEL | {"n_layer": 10**12}),
    "model has text for a number": lambda place: reseal(place / STEP, model=MODEL | {"n_embd": "32"}),
    "step is text": lambda place: reseal(place / STEP, step="10"),
    "files lead out": lambda place: reseal(place / STEP, files={"../../x.safetensors": "0"}),
    "settings are missing": lambda place: reseal(place / STEP, settings=None),
    "settings are wrong": lambda place: reseal(place / STEP, settings={"n_layer": "two"}),
    "choices are missing": lambda place: reseal(place / STEP, choices=None),
    "choices are wrong": lambda place: reseal(place / STEP, choices={"device": 3}),
    "progress is missing": lambda place: reseal(place / STEP, sequences=None),
    "data is missing": lambda place: reseal(place / STEP, data=None),
    "scaler is missing": lambda place: reseal(place / STEP, scaler=None),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_one_line_and_write_nothing(
    trained: Path, fails: Callable[..., str], case: str
) -> None:
    shutil.rmtree(trained / "r/checkpoints/step-00000000")
    MALFORMED[case](trained)
    before = listing(trained)
    fails(train.main, "tiny.py", "--out_dir=r", "--init_from=resume", "--max_iters=12", "--sample_tokens=0")
    assert listing(trained) == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def mutated(draw: st.DrawFn, value: object) -> object:
    """The value with one of its parts, at any depth, replaced by something else."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: mutated(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], mutated(draw, value[index]), *value[index + 1 :]]
    return draw(JSON)


def is_one_sentence(error: UserError) -> bool:
    """Whether an error is a line that says something, and no more than one."""
    return bool(str(error).strip()) and "\n" not in str(error)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in data/x and a checkpoint in run."""
    folder = tmp_path_factory.mktemp("small")
    write_dataset("x", "abcd" * 100, "char", 0.2, folder / "data")
    save_one(folder / "run", 1)
    return folder


@fuzz
@given(data=st.data())
def test_fuzzed_meta_of_a_data_set(small: Path, data: st.DataObject) -> None:
    path = small / "data/x/meta.json"
    original = path.read_text()
    path.write_text(json.dumps(mutated(data.draw, json.loads(original))))
    try:
        open_dataset("x", 8, small / "data")
    except UserError as error:
        assert is_one_sentence(error)
    finally:
        path.write_text(original)


@fuzz
@given(data=st.data())
def test_fuzzed_meta_of_a_checkpoint(small: Path, data: st.DataObject) -> None:
    folder = small / "run/checkpoints/step-00000001"
    original = (folder / "meta.json").read_text()
    change = mutated(data.draw, json.loads(original))
    if isinstance(change, dict):
        reseal(folder, **change)
    else:
        (folder / "meta.json").write_text(json.dumps(change))
    try:
        checkpoints.load(small / "run")
    except UserError as error:
        assert is_one_sentence(error)
    finally:
        (folder / "meta.json").write_text(original)


@fuzz
@given(position=st.integers(0, 2000), content=st.binary(min_size=1, max_size=40))
def test_fuzzed_header_of_the_weights(small: Path, position: int, content: bytes) -> None:
    """With the hash made right again, so that the reader itself is what stands between file and program."""
    import hashlib

    folder = small / "run/checkpoints/step-00000001"
    original, meta = (folder / "model.safetensors").read_bytes(), (folder / "meta.json").read_text()
    position = min(position, len(original) - 1)
    damaged = original[:position] + content + original[position + len(content) :]
    (folder / "model.safetensors").write_bytes(damaged)
    files = json.loads(meta)["files"] | {"model.safetensors": hashlib.sha256(damaged).hexdigest()}
    reseal(folder, files=files)
    try:
        checkpoints.load(small / "run")
    except UserError as error:
        assert is_one_sentence(error)
    finally:
        (folder / "model.safetensors").write_bytes(original)
        (folder / "meta.json").write_text(meta)


@fuzz
@given(
    name=st.sampled_from(sorted(TrainSettings.__dataclass_fields__)) | st.text(min_size=1, max_size=8),
    text=st.text(max_size=8)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(["none", "True", "auto"]),
)
def test_fuzzed_settings(name: str, text: str) -> None:
    for kind in (TrainSettings, SampleSettings):
        try:
            settings = read_settings(kind, [f"--{name}={text}"], "").settings(on_cpu=False)
            known = {*vars(settings), *retired(kind)}
            assert name.replace("-", "_") in known  # whatever passes is a setting
        except UserError as error:
            assert is_one_sentence(error)
        except SystemExit:
            assert name in ("h", "help")  # which prints and leaves


@fuzz
@given(JSON | st.builds(lambda characters: {"kind": "char", "characters": characters}, JSON | st.text()))
def test_fuzzed_tokenizer_tables(description: object) -> None:
    try:
        tokenizer = tokenizer_from_dict(description)
        assert tokenizer.decode(tokenizer.encode(tokenizer.decode([0]))) == tokenizer.decode([0])
    except UserError as error:
        assert is_one_sentence(error)


@pytest.mark.torture
def test_the_fuzzing_in_full_length() -> None:
    import subprocess
    import sys

    finished = subprocess.run(
        [sys.executable, "-m", "pytest", str(Path(__file__)), "-k", "test_fuzzed", "-p", "no:cacheprovider"],
        cwd=ROOT, env=os.environ | {"FUZZ_EXAMPLES": "2000"}, capture_output=True, text=True,
    )  # fmt: skip
    print(f"5 × 2,000 mutated files, settings and tables: {finished.stdout.splitlines()[-1]}")
    assert finished.returncode == 0, finished.stdout
