"""prepare.py: the same files for any workers and interruptions, honest counts, errors that change nothing."""

import hashlib
import json
import multiprocessing
import random
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import ROOT, TEXT, command
from support.datasets import write_dataset

import prepare as script
from engine.data.dataset import KNOWN, open_dataset
from engine.errors import UserError
from engine.preparation import inputs as readers
from engine.preparation import pipeline
from engine.preparation.pipeline import prepare
from engine.preparation.recipes import LARGE, RECIPES
from engine.preparation.request import Request, State
from engine.text.byte_pairs import END_OF_TEXT, learn_vocabulary

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
        dict(inputs=["talk.jsonl"], tokenizer="bytes", shard_tokens=7000),
    ],
)
def test_a_preparation_that_is_interrupted_anywhere_goes_on_where_it_was(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    monkeypatch.setattr(pipeline, "SAVE_EVERY", 3)
    Path("corpus.txt").write_text("\n\n".join(DOCUMENTS))
    talks = [{"prompt": text[:20], "completion": text[20:900] or "?"} for text in DOCUMENTS if text.strip()]
    Path("talk.jsonl").write_text("\n".join(map(json.dumps, talks)))
    wanted = made(**options)
    made(inputs=["corpus.txt"], tokenizer="bytes")
    write, taken = pipeline.Preparation._write, []

    def write_some(self: pipeline.Preparation, *arguments: object) -> None:
        if len(taken) == allowed:
            raise Killed
        taken.append(arguments)
        write(self, *arguments)

    monkeypatch.setattr(pipeline.Preparation, "_write", write_some)
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
        list(readers.pieces(readers.find_inputs(options["inputs"]), None, "txt" in options["inputs"][0]))
    )
    assert again <= pieces / 6 + 1  # of 8 pieces done at each start, 6 or more were saved


def test_another_request_does_not_go_on_from_what_was_left(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SAVE_EVERY", 1)
    wanted = made(inputs=["corpus.jsonl"], tokenizer="bytes", val=0.2)
    write = pipeline.Preparation._write

    def write_some(
        self: pipeline.Preparation, piece: object, found: object, state: State, *rest: object
    ) -> None:
        if state.number == 5:
            raise Killed
        write(self, piece, found, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Preparation, "_write", write_some)
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


def test_standard_input_is_named_as_such(tmp_path: Path) -> None:
    process = [sys.executable, str(ROOT / "prepare.py"), "piped", "--input", "-"]
    for content, said in ((b"caf\xe9", "standard input is not UTF-8 (byte 3,"), (b"", "in standard input")):
        finished = subprocess.run(process, cwd=tmp_path, input=content, capture_output=True)
        assert finished.returncode == 2 and said in finished.stderr.decode()
        assert not (tmp_path / "data").exists()


BAD = [
    (["a", "--input", "empty.txt"], "the text is empty"),
    (["a", "--input", "blank.jsonl", "--tokenizer", "bytes"], r"the text is empty.*2 empty left out"),
    (["a", "--input", "bad.txt"], r"bad\.txt is not UTF-8 \(byte 6, line 2\).*--errors replace"),
    (["a", "--input", "bad.txt", "--errors", "drop"], "add --documents"),
    (["a", "--input", "good.txt", "--dedup"], "add --documents"),
    (["a", "--input", "good.jsonl", "--field", "body"], r"line 1 has no field 'body'.*'text'"),
    (["a", "--input", "broken.txt.gz"], r"broken\.txt\.gz is damaged"),
    (["a", "--input", "good.txt", "--val", "1e-9"], "the val split of a has [01] of the 2 tokens"),
    (["a", "--input", "good.txt", "--val", "0.9999"], "the train split of a has 0 of the 2 tokens"),
    (["a", "--input", "tiny.txt"], "the val split of a has 1 of the 2 tokens"),
    (["a", "--input", "good.txt", "--val", "empty.txt"], "the val split of a has 0 of the 2 tokens"),
    (["a", "--input", "one.jsonl"], "there is one document"),
    (["a", "--input", "same.jsonl"], "the 2 documents are all the same"),
    (["a", "--input", "good.txt", "--vocab_size", "300"], "add --tokenizer bpe"),
    (["a", "--input", "good.txt", "--tokenizer", "numbers"], r"numbers is for token files \(\.bin\)"),
    (["a", "--input", "bins", "--dedup"], "--dedup is about text"),
    (["--show", "nope"], r"python prepare\.py nope --input FILE"),
    (["--show", "shakespeare"], r"make it: python prepare\.py shakespeare$"),
    (["a", "--input", "good.jsonl", "--val", "7"], "--val: it is 7"),
    (["a", "--input", "good.jsonl", "--val", "none.txt"], r"none\.txt cannot be read"),
    (["a", "--input", "nowhere"], "nowhere cannot be read"),
    (["a", "--input", "good.jsonl", "--tokenizer", "nothing"], "invalid choice: 'nothing'"),
    (["a", "--input", "good.jsonl", "--tokenizer", "good.jsonl"], "expected a base64 word"),
    (["a", "--input", "good.jsonl", "--tokenizer", "bpe", "--vocab_size", "10"], "--vocab_size is 10"),
    (["a", "--input", "good.jsonl", "--workers", "0"], "--workers: it is 0"),
    (["../a", "--input", "good.jsonl"], "cannot name a data set"),
    (["shakespeare_char", "--tokenizer", "gpt2"], "give your own set a name"),
    (["shakespeare_char", "--val", "0.2"], "give your own set a name"),
    (["a", "--input", "utf16.txt"], "utf16.txt is not UTF-8, but UTF-16; convert it: iconv -f UTF-16"),
    (["a", "--input", "rows.jsonl"], r"line 1 is neither .* an array; .*: mv rows\.jsonl rows\.json$"),
    (["a", "--input", "half.jsonl"], r"line 1 holds \\ud83d .* half of a pair"),
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
    Path("tiny.txt").write_text("abc")
    Path("one.jsonl").write_text('{"text": "alone"}')
    Path("same.jsonl").write_text('{"text": "as one"}\n' * 2)
    Path("bins").mkdir()
    Path("bins/train.bin").write_bytes(bytes(100))
    Path("blank.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    Path("bad.txt").write_bytes(b"good\nb\xffd\n")
    Path("good.txt").write_text(TEXT[:1000])
    Path("utf16.txt").write_text("Élan", encoding="utf-16")
    Path("rows.jsonl").write_text('[{"text": "x"}]')
    Path("half.jsonl").write_text('{"text": "\\ud83d"}')
    Path("good.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS[:9]))
    Path("broken.txt.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    if older:
        prepare(Request("a", ["good.txt"]), quiet)
    before = contents(Path("data"))
    assert re.search(said, fails(script.main, *arguments))
    assert contents(Path("data")) == before and len(before) == (3 if older else 0)
    assert older or not list(Path("data").rglob("*"))


@pytest.mark.parametrize(("val", "empty"), [(1e-6, "val"), (1 - 1e-6, "train")])
@pytest.mark.parametrize("tokenizer", ["bytes", "char", "bpe"])
def test_of_few_documents_the_nearest_fills_the_split_that_would_be_empty(
    corpus: Path, val: float, empty: str, tokenizer: str
) -> None:
    texts = [f"{number}: {text}" for number, text in enumerate(DOCUMENTS[:9])]
    Path("few").mkdir()
    for number, text in enumerate(texts):
        (Path("few") / f"{number}.txt").write_text(text)
    said: list[str] = []
    prepare(Request("a", ["few"], tokenizer=tokenizer, vocab_size=300, val=val), said.append)
    lots = {text: hashlib.sha256(text.encode()).digest()[-8:][::-1] for text in texts}
    alone = (min if empty == "val" else max)(texts, key=lots.__getitem__)
    data = open_dataset("a", 1)
    split = getattr(data, empty)
    end = "<|endoftext|>" if tokenizer == "bpe" else "" if alone.endswith("\n") else "\n"
    assert data.tokenizer.decode(split.read(0, split.tokens)) == alone + end
    assert data.meta["documents"] == {"train": 8, "val": 8} | {empty: 1}
    assert any(f"none of the 9 documents is for the {empty} split by its hash" in line for line in said)
    if tokenizer == "bpe":  # what is for validation has taught the vocabulary nothing
        learned = learn_vocabulary([text for text in texts if (text == alone) == (empty == "train")], 300)
        assert data.tokenizer.to_dict() == learned.to_dict()


def test_a_split_filled_so_survives_an_interruption(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SAVE_EVERY", 2)
    options = dict(inputs=["corpus.jsonl"], tokenizer="bpe", vocab_size=300, val=1e-9, dedup=True)
    wanted = made(**options)
    assert open_dataset("a", 8).meta["documents"]["val"] == 1
    pieces = len(list(readers.pieces(readers.find_inputs(["corpus.jsonl"]), "text", False)))
    write = pipeline.Preparation._write
    for allowed in (pieces - 1, pieces + 1, pieces + 4, 2 * pieces - 1):  # in one pass, and in the other
        turns = iter(range(allowed))

        def write_some(self: pipeline.Preparation, *arguments: object, turns: Iterator[int] = turns) -> None:
            if next(turns, None) is None:
                raise Killed
            write(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(pipeline.Preparation, "_write", write_some)
            with pytest.raises(Killed):
                made(**options)
        assert made(**options) == wanted


def test_a_folder_of_one_file_is_one_text_and_needs_no_option(tmp_path: Path) -> None:
    (tmp_path / "novel").mkdir()
    (tmp_path / "novel" / "all.txt").write_text(TEXT[:5000])
    for name in ("novel", "novel", "novel/"):
        finished = command(tmp_path, "prepare.py", name)
        assert finished.returncode == 0, finished.stderr
    data = open_dataset("novel", 8, tmp_path / "data")
    assert data.tokenizer.decode(data.train.read(0, data.train.tokens)) == TEXT[:4500]
    assert "documents" not in data.meta


def test_characters_hold_the_line_break_that_ends_a_document(tmp_path: Path) -> None:
    (tmp_path / "two.jsonl").write_text('{"text": "one"}\n{"text": "another"}\n')
    prepare(Request("a", [str(tmp_path / "two.jsonl")], val=0.5), quiet, tmp_path / "data")
    data = open_dataset("a", 1, tmp_path / "data")
    assert data.tokenizer.to_dict()["characters"] == "\naehnort"


def test_empty_files_and_short_splits_are_remarked_upon(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"{number}.txt").touch()
    (tmp_path / "in" / "text.txt").write_text(TEXT[:100])
    (tmp_path / "in" / "more.txt").write_text(TEXT[100:1000])
    said: list[str] = []
    prepare(Request("a", [str(tmp_path / "in")]), said.append, tmp_path / "data")
    assert re.search(r"nothing is in \S+/in/0\.txt, \S+/1\.txt, \S+/2\.txt and 2 more$", said[0])
    assert (
        "the train split has 101 tokens, so a model of it can have a --block_size of 100 at most" in said[-2]
    )
    assert "left out: 5 empty" in said[-1]
    said.clear()
    files = [str(tmp_path / "in" / name) for name in ("more.txt", "0.txt")]
    prepare(Request("b", files), said.append, tmp_path / "data")
    assert re.search(r"nothing is in \S+/0\.txt$", said[0])


def test_a_file_of_lines_may_begin_with_the_mark_that_windows_writes(corpus: Path) -> None:
    Path("marked.jsonl").write_text(Path("corpus.jsonl").read_text(), encoding="utf-8-sig")
    one, other = (made(inputs=[name], tokenizer="bytes") for name in ("corpus.jsonl", "marked.jsonl"))
    assert one["train.bin"] == other["train.bin"] and one["val.bin"] == other["val.bin"]


def test_what_windows_puts_into_text_is_said_once_with_what_to_do(corpus: Path) -> None:
    Path("the text.txt").write_text("\ufeff" + "one\r\ntwo\r\n" * 2000, encoding="utf-8", newline="")
    Path("other.txt").write_text("\ufeff" + "three\r\n" * 2000, encoding="utf-8", newline="")
    said: list[str] = []
    prepare(Request("a", ["the text.txt", "other.txt"]), said.append)
    about = [line for line in said if "note" in line]
    assert len(about) == 2 and "mark at the beginning of the text.txt and of 1 more is left out" in about[0]
    assert "holds 6,000 carriage returns" in about[1] and "the first in the text.txt" in about[1]
    assert open_dataset("a", 8).tokenizer.to_dict()["characters"] == "\n\rehnortw"
    command = about[1].split("without them: ")[1]
    assert command == r"tr -d '\r' < 'the text.txt' > 'the text.unix.txt'"
    if shutil.which("bash"):
        subprocess.run(["bash", "-c", command], check=True)
        said.clear()
        prepare(Request("b", ["the text.unix.txt"]), said.append)
        assert open_dataset("b", 8).tokenizer.to_dict()["characters"] == "\nenotw"
        assert not any("carriage" in line for line in said)


def test_notes_about_the_text_survive_an_interruption(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SAVE_EVERY", 1)
    Path("in").mkdir()
    for number, text in enumerate(DOCUMENTS):
        (Path("in") / f"{number:03}.txt").write_text("\ufeff" + text + "\r\n", encoding="utf-8", newline="")
    whole: list[str] = []
    request = Request("a", ["in"], tokenizer="bytes")
    prepare(request, whole.append)
    write = pipeline.Preparation._write

    def write_some(
        self: pipeline.Preparation, piece: object, found: object, state: State, *rest: object
    ) -> None:
        if state.number == 3:
            raise Killed
        write(self, piece, found, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Preparation, "_write", write_some)
        with pytest.raises(Killed):
            prepare(request, quiet)
    again: list[str] = []
    prepare(request, again.append)
    assert "going on after" in again[0] and again[1:] == whole
    assert f"and of {len(DOCUMENTS) - 1:,} more is left out" in whole[0]
    assert f"holds {len(DOCUMENTS):,} carriage returns" in whole[1]


def test_the_last_line_is_the_command_that_trains(tmp_path: Path) -> None:
    (tmp_path / "my text's.txt").write_text(TEXT[:5000])
    finished = command(tmp_path, "prepare.py", "my text's.txt")
    last = finished.stdout.splitlines()[-1]
    assert finished.returncode == 0 and last.startswith("next: ")
    line = shlex.split(last.removeprefix("next: "))
    assert line == ["python", str(ROOT / "train.py"), "--dataset=my text's"]
    small = ("--max_iters=1", "--n_layer=1", "--n_embd=32", "--eval_iters=1", "--sample_tokens=0")
    trained = command(tmp_path, line[1], line[2], *small, "--device=cpu", "--threads=1", "--compile=False")
    assert trained.returncode == 0, trained.stderr


def test_the_command_that_trains_is_short_where_train_py_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert script.training_command("web") == "python train.py --dataset=web"


def test_what_is_missing_is_said_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(KNOWN) == set(RECIPES) | set(LARGE)
    assert "(there is none yet)" in fails(script.main, "--show", "nope")
    for name in ("one", "two"):
        write_dataset(name, "abcd" * 200, "char", 0.5)
    for arguments in (["one"], ["data/one"], ["data/one/"]):
        assert re.search("data/one is there, .* add --input FILE", fails(script.main, *arguments))
    for arguments in (["--show", "data/one"], ["--verify", "one/"]):
        assert fails(script.main, *arguments).endswith("did you mean one?")
    for arguments in (["--show", "nope"], ["--verify", "nope"], ["nope"]):
        assert "there is no data set data/nope (there are: one, two)" in fails(script.main, *arguments)


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
    write = pipeline.Preparation._write

    def kill_one(
        self: pipeline.Preparation, piece: object, found: object, state: State, *rest: object
    ) -> None:
        if state.number == 5:
            multiprocessing.active_children()[0].kill()
        write(self, piece, found, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Preparation, "_write", kill_one)
        with pytest.raises(UserError, match="a worker process has died"):
            made(inputs=["corpus.jsonl"], tokenizer="bytes", workers=2)
    said: list[str] = []
    prepare(Request("a", ["corpus.jsonl"], tokenizer="bytes", workers=2), said.append)
    assert "going on after" in said[0]
    assert {file.name: file.read_bytes() for file in Path("data/a").iterdir()} == wanted


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.txt"])
def test_an_input_that_changes_while_it_is_read_is_named(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Path("corpus.txt").write_text("\n\n".join(DOCUMENTS))
    write = pipeline.Preparation._write

    def change(self: pipeline.Preparation, *arguments: object) -> None:
        write(self, *arguments)
        with open(name, "a") as file:
            file.write("\n")

    monkeypatch.setattr(pipeline.Preparation, "_write", change)
    with pytest.raises(UserError, match=f"{name} has changed while it was read"):
        made(inputs=[name], tokenizer="bytes")
    assert not Path("data/a/meta.json").exists()


@given(st.lists(st.integers(0, 20), min_size=1).filter(any), st.floats(0.001, 0.999))
def test_validation_begins_after_the_share_of_the_characters(characters: list[int], val: float) -> None:
    number, before = pipeline.find_border(characters, val)
    assert sum(characters[:number]) + before == int((1 - val) * sum(characters))
    assert 0 <= before < characters[number]


def test_two_preparations_of_one_name_do_not_meet(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = pipeline.Preparation._write

    def meet(self: pipeline.Preparation, *arguments: object) -> None:
        with pytest.raises(UserError, match="another process is preparing"):
            prepare(Request("a", ["corpus.jsonl"]), quiet)
        write(self, *arguments)

    monkeypatch.setattr(pipeline.Preparation, "_write", meet)
    assert len(made(inputs=["corpus.jsonl"])) == 3
