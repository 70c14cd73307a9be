"""prepare.py: the same files for any workers and interruptions, honest counts, errors that change nothing."""

import hashlib
import json
import multiprocessing
import random
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from conftest import ROOT, TEXT, command

import prepare as script
from engine import pipeline, readers
from engine.dataset import open_dataset
from engine.errors import UserError
from engine.pipeline import Request, prepare
from engine.tokenizer import END_OF_TEXT

DOCUMENTS = [part for name in sorted(topics)[:40] for part in topics[name].split("\n\n") if part.strip()]


def quiet(_: str) -> None:
    """Say nothing."""


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with corpus.jsonl in it and pieces of a few documents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readers, "PIECE_BYTES", 5000)
    lines = [json.dumps({"text": text}) for text in [*DOCUMENTS, "", DOCUMENTS[3], "x<|endoftext|>y"]]
    Path("corpus.jsonl").write_text("\n".join(lines))
    return tmp_path


def made(**options: object) -> dict[str, bytes]:
    """All files of data/a, prepared as asked."""
    folder = prepare(Request("a", **options), quiet, Path("data"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_documents_come_back_from_the_tokens_each_in_its_split(corpus: Path) -> None:
    made(inputs=["corpus.jsonl"], tokenizer="bpe", vocab_size=300, val=0.2, dedup=True)
    data = open_dataset("a", 8)
    texts = {}
    for split in (data.train, data.val):
        ids = split.read(0, split.tokens)
        ends = np.flatnonzero(ids == data.tokenizer.end_of_text)
        assert ends[-1] == len(ids) - 1
        texts[split.name] = [data.tokenizer.decode(part[:-1]) for part in np.split(ids, ends + 1)[:-1]]
    wanted = list(dict.fromkeys([*DOCUMENTS, f"x{END_OF_TEXT}y"]))
    assert sorted(texts["train"] + texts["val"]) == sorted(wanted)
    share = {
        text: int.from_bytes(hashlib.sha256(text.encode()).digest()[-8:], "little") / 2**64 for text in wanted
    }
    assert texts["val"] == [text for text in wanted if share[text] < 0.2]
    meta = data.meta
    assert meta["dropped"] == {"duplicate": len(DOCUMENTS) + 2 - len(wanted), "empty": 1}
    for split, found in texts.items():
        assert meta["documents"][split] == len(found)
        assert meta["characters"][split] == sum(map(len, found))
        assert meta["text_bytes"][split] == sum(len(text.encode()) for text in found)
    assert meta["sources"] == [
        {"name": "corpus.jsonl", "sha256": hashlib.sha256(Path("corpus.jsonl").read_bytes()).hexdigest()}
    ]


def test_a_document_stays_in_its_split_when_others_are_added(corpus: Path) -> None:
    lines = Path("corpus.jsonl").read_text().split("\n")
    made(inputs=["corpus.jsonl"], tokenizer="bytes", val=0.3)
    before = open_dataset("a", 8)
    old = bytes(before.val.read(0, before.val.tokens).astype(np.uint8))
    random.Random(1).shuffle(lines)
    Path("more.jsonl").write_text("\n".join([json.dumps({"text": "something new"}), *lines]))
    made(inputs=["more.jsonl"], tokenizer="bytes", val=0.3)
    after = open_dataset("a", 8)
    new = bytes(after.val.read(0, after.val.tokens).astype(np.uint8))
    assert sorted(old.splitlines()) == sorted(line for line in new.splitlines() if line != b"something new")


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize("form", ["text", "documents"])
def test_any_number_of_workers_gives_the_same_files(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str, form: str
) -> None:
    monkeypatch.setattr(pipeline, "IN_ONE_PROCESS", 0)
    Path("corpus.txt").write_text("\n\n".join(DOCUMENTS))
    options = dict(
        inputs=[f"corpus.{'txt' if form == 'text' else 'jsonl'}"], tokenizer=tokenizer, vocab_size=400
    )
    options |= dict(dedup=form == "documents", shard_tokens=10_000)
    one, three = made(**options, workers=1), made(**options, workers=3)
    assert one == three and len(one) > 4


class Killed(BaseException):
    """What a test raises in place of a signal."""


@pytest.mark.parametrize(
    "options",
    [
        dict(inputs=["corpus.jsonl"], tokenizer="bpe", vocab_size=300, dedup=True, shard_tokens=7000),
        dict(inputs=["corpus.txt"], tokenizer="char"),
    ],
)
def test_a_preparation_that_is_interrupted_anywhere_goes_on_where_it_was(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    monkeypatch.setattr(pipeline, "SAVE_EVERY", 3)
    Path("corpus.txt").write_text("\n\n".join(DOCUMENTS))
    wanted = made(**options)
    made(inputs=["corpus.txt"], tokenizer="bytes")
    take, taken = pipeline.Preparation._take, []

    def take_some(self: pipeline.Preparation, *arguments: object) -> None:
        if len(taken) == allowed:
            raise Killed
        taken.append(arguments)
        take(self, *arguments)

    monkeypatch.setattr(pipeline.Preparation, "_take", take_some)
    again, allowed = 0, 8
    while True:
        taken.clear()
        try:
            found = made(**options)
            break
        except Killed:
            again += 1
            # The older data set is still there.
            assert open_dataset("a", 8).meta["tokenizer"] == {"kind": "bytes"}
            assert (corpus / "data/a/.partial/state.json").exists()
    assert again > 5 and found == wanted
    pieces = len(
        list(readers.pieces(readers.find_inputs(options["inputs"]), "text", "txt" in options["inputs"][0]))
    )
    assert again <= pieces / 6 + 1  # of 8 pieces done at each start, 6 or more were saved


def test_another_request_does_not_go_on_from_what_was_left(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SAVE_EVERY", 1)
    wanted = made(inputs=["corpus.jsonl"], tokenizer="bytes", val=0.2)
    take = pipeline.Preparation._take

    def take_some(self: pipeline.Preparation, found: object, state: pipeline.State, *rest: object) -> None:
        if state.number == 5:
            raise Killed
        take(self, found, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Preparation, "_take", take_some)
        with pytest.raises(Killed):
            made(inputs=["corpus.jsonl"], tokenizer="bytes", val=0.3)
    assert made(inputs=["corpus.jsonl"], tokenizer="bytes", val=0.2) == wanted


def test_one_text_in_pieces_gives_what_it_gives_whole(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n\n".join(DOCUMENTS) + " Élan — 語 "
    Path("corpus.txt").write_text(text)
    for tokenizer, val in (("char", 0.1), ("bytes", 0.23), ("bpe", 0.5)):
        made(inputs=["corpus.txt"], tokenizer=tokenizer, vocab_size=300, val=val)
        data = open_dataset("a", 8)
        border = int((1 - val) * len(text))
        assert data.train.read(0, data.train.tokens).tolist() == data.tokenizer.encode(text[:border]).tolist()
        assert data.val.read(0, data.val.tokens).tolist() == data.tokenizer.encode(text[border:]).tolist()


def test_validation_text_of_its_own_and_shards_and_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, text in enumerate(DOCUMENTS[:30]):
        (tmp_path / "in" / f"{number}.txt").write_text(text)
    (tmp_path / "val.csv").write_text('text\n"held, out"\n')
    arguments = (
        "mine",
        "--input",
        "in",
        "--val",
        "val.csv",
        "--tokenizer",
        "bytes",
        "--shard_tokens",
        "1000",
    )
    finished = command(tmp_path, "prepare.py", *arguments)
    assert finished.returncode == 0, finished.stderr
    data = open_dataset("mine", 4, tmp_path / "data")
    assert data.tokenizer.decode(data.val.read(0, data.val.tokens)) == "held, out\n"
    sizes = [file["tokens"] for file in data.meta["files"] if file["split"] == "train"]
    assert len(sizes) > 3 and all(size == 1000 for size in sizes[:-1])
    shown = command(tmp_path, "prepare.py", "--show", "mine")
    assert shown.returncode == 0 and "documents: 30 for train, 1 for val" in shown.stdout
    assert "commonest tokens: ' '" in shown.stdout
    verified = command(tmp_path, "prepare.py", "--verify", "mine")
    assert verified.returncode == 0 and "as they were made" in verified.stdout
    (tmp_path / "data/mine/train-000002.bin").write_bytes(bytes(2000))
    damaged = command(tmp_path, "prepare.py", "--verify", "mine")
    assert damaged.returncode == 2 and "train-000002.bin is damaged" in damaged.stderr


def test_standard_input_is_a_text(tmp_path: Path) -> None:
    process = [sys.executable, str(ROOT / "prepare.py"), "piped", "--input", "-", "--tokenizer", "bytes"]
    subprocess.run(process, cwd=tmp_path, input=TEXT.encode(), check=True, capture_output=True)
    data = open_dataset("piped", 8, tmp_path / "data")
    assert data.train.tokens + data.val.tokens == len(TEXT.encode())
    assert data.meta["sources"] == [
        {"name": "standard input", "sha256": hashlib.sha256(TEXT.encode()).hexdigest()}
    ]
    assert sorted(file.name for file in data.folder.iterdir()) == ["meta.json", "train.bin", "val.bin"]


BAD = [
    (["a", "--input", "empty.txt"], "the text is empty"),
    (["a", "--input", "blank.jsonl", "--tokenizer", "bytes"], r"the text is empty.*2 empty left out"),
    (["a", "--input", "bad.txt"], r"bad\.txt is not UTF-8 \(byte 6, line 2\).*--errors replace"),
    (["a", "--input", "bad.txt", "--errors", "drop"], "add --documents"),
    (["a", "--input", "good.txt", "--dedup"], "add --documents"),
    (["a", "--input", "good.jsonl", "--field", "body"], r"line 1 has no field 'body'.*'text'"),
    (["a", "--input", "broken.txt.gz"], r"broken\.txt\.gz is damaged"),
    (["a", "--input", "good.jsonl", "--val", "1e-9"], "none of the 9 documents is in the val split"),
    (["a", "--input", "good.jsonl", "--val", "7"], "--val is 7"),
    (["a", "--input", "good.jsonl", "--val", "none.txt"], r"none\.txt cannot be read"),
    (["a", "--input", "nowhere"], "nowhere cannot be read"),
    (["a", "--input", "good.jsonl", "--tokenizer", "nothing"], "invalid choice: 'nothing'"),
    (["a", "--input", "good.jsonl", "--tokenizer", "good.jsonl"], "expected a base64 word"),
    (["a", "--input", "good.jsonl", "--tokenizer", "bpe", "--vocab_size", "10"], "--vocab_size is 10"),
    (["a", "--input", "good.jsonl", "--workers", "0"], "--workers is 0"),
    (["../a", "--input", "good.jsonl"], "cannot name a data set"),
    (["shakespeare_char", "--tokenizer", "gpt2"], "give your own set a name"),
    (["unknown"], "no recipe for it"),
    ([], "name a data set"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
@pytest.mark.parametrize("older", [False, True], ids=["fresh", "older"])
def test_bad_input_is_one_line_and_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
    arguments: list[str],
    said: str,
    older: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_bytes(b"")
    Path("blank.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    Path("bad.txt").write_bytes(b"good\nb\xffd\n")
    Path("good.txt").write_text(TEXT[:1000])
    Path("good.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS[:9]))
    Path("broken.txt.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    if older:
        prepare(Request("a", ["good.txt"]), quiet)
    before = contents(Path("data"))
    assert re.search(said, fails(script.main, *arguments))
    assert contents(Path("data")) == before and len(before) == (3 if older else 0)
    assert older or not list(Path("data").rglob("*"))


def contents(folder: Path) -> dict[Path, bytes]:
    """The files under a folder, hidden ones too."""
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_disk_that_fills_leaves_the_older_data_set_and_the_same_command_goes_on(tmp_path: Path) -> None:
    stream = random.Random(2)
    with open(tmp_path / "large.jsonl", "w") as file:
        for _ in range(36_000):
            file.write(json.dumps({"text": "\n".join(stream.choices(DOCUMENTS, k=5))}) + "\n")
    (tmp_path / "small.txt").write_text(TEXT[:2000])
    assert command(tmp_path, "prepare.py", "a", "--input", "small.txt").returncode == 0
    before = contents(tmp_path / "data")
    run = [sys.executable, str(ROOT / "prepare.py"), "a", "--input", "large.jsonl", "--tokenizer", "bytes"]
    limit = 40_000_000  # bytes of one file: the operating system refuses more, as a full disk does
    finished = subprocess.run(
        run,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert finished.returncode == 2 and len(finished.stderr.splitlines()) == 1, finished.stderr
    assert "data/a cannot be written" in finished.stderr
    assert before.items() <= contents(tmp_path / "data").items()
    assert open_dataset("a", 8, tmp_path / "data").meta["tokenizer"]["kind"] == "char"
    again = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and "going on after" in again.stdout
    interrupted = contents(tmp_path / "data/a")
    assert subprocess.run(run, cwd=tmp_path, capture_output=True).returncode == 0
    assert interrupted == contents(tmp_path / "data/a") and len(interrupted) == 3


def test_a_worker_that_dies_is_reported_and_the_same_request_goes_on(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SAVE_EVERY", 2)
    wanted = made(inputs=["corpus.jsonl"], tokenizer="bytes")
    monkeypatch.setattr(pipeline, "IN_ONE_PROCESS", 0)
    take = pipeline.Preparation._take

    def kill_one(self: pipeline.Preparation, found: object, state: pipeline.State, *rest: object) -> None:
        if state.number == 5:
            multiprocessing.active_children()[0].kill()
        take(self, found, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Preparation, "_take", kill_one)
        with pytest.raises(UserError, match="a worker process has died"):
            made(inputs=["corpus.jsonl"], tokenizer="bytes", workers=2)
    said: list[str] = []
    prepare(Request("a", ["corpus.jsonl"], tokenizer="bytes", workers=2), said.append)
    assert "going on after" in said[0]
    assert {file.name: file.read_bytes() for file in Path("data/a").iterdir()} == wanted


def test_two_preparations_of_one_name_do_not_meet(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = pipeline.Preparation._take

    def meet(self: pipeline.Preparation, *arguments: object) -> None:
        with pytest.raises(UserError, match="another process is preparing"):
            prepare(Request("a", ["corpus.jsonl"]), quiet)
        take(self, *arguments)

    monkeypatch.setattr(pipeline.Preparation, "_take", meet)
    assert len(made(inputs=["corpus.jsonl"])) == 3
