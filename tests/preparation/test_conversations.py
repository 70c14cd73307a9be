"""prepare.py with conversations: known by their fields; every token says whether it is a target."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.commands import command
from support.talks import made, some, talks, written

import prepare as script
from engine.conversation.messages import read_conversation
from engine.conversation.template import encode_conversation
from engine.data.dataset import NO_TARGET, Dataset, Split, open_dataset
from engine.errors import UserError
from engine.preparation import inputs as readers
from engine.preparation import pipeline
from engine.preparation.pipeline import prepare
from engine.preparation.request import Request
from engine.text.roles import ChatTokenizer


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readers, "PIECE_BYTES", 2000)
    return tmp_path


def content(split: Split) -> tuple[np.ndarray, np.ndarray]:
    return split.read(0, split.tokens), split.are_targets(0, split.tokens)


def expected(data: Dataset, records: list[dict]) -> list[tuple[list[int], list[bool]]]:
    assert isinstance(data.tokenizer, ChatTokenizer)
    found = [encode_conversation(data.tokenizer, read_conversation(record, "")) for record in records]
    return sorted((one.ids.tolist(), one.targets.tolist()) for one in found)


def found_in(data: Dataset) -> list[tuple[list[int], list[bool]]]:
    """The conversations of both splits, cut where they begin."""
    found = []
    for split in (data.train, data.val):
        ids, targets = content(split)
        begins = np.flatnonzero(ids == data.separator("aligned"))
        assert begins[0] == 0
        found += [
            (part.tolist(), flags.tolist())
            for part, flags in zip(np.split(ids, begins[1:]), np.split(targets, begins[1:]), strict=True)
        ]
    return sorted(found)


@pytest.mark.parametrize("options", [{}, {"shard_tokens": 777}, {"tokenizer": "char"}, {"tokenizer": "bpe"}])
def test_every_conversation_comes_back_with_its_targets(place: Path, options: dict) -> None:
    records = talks(80)
    data, _ = made(written(records), val=0.2, vocab_size=300, **options)
    assert found_in(data) == expected(data, records)
    assert data.train.is_masked and "text_bytes" not in data.meta
    for start in random.choices(range(data.train.tokens - 40), k=50):  # at any bit, across files
        assert np.array_equal(data.train.are_targets(start, 40), content(data.train)[1][start : start + 40])


def test_any_number_of_workers_writes_the_same_tokens_and_masks(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "IN_ONE_PROCESS", 0)
    files = []
    inputs = written(talks(60))
    for workers in (1, 3):
        made(inputs, workers=workers, dedup=True)
        files.append({file.name: file.read_bytes() for file in Path("data/talk").iterdir()})
    assert files[0] == files[1] and {"train.mask.bin", "val.mask.bin"} <= files[0].keys()


@pytest.mark.parametrize("form", ["json", "parquet", "lines.json", "hub"])
def test_conversations_are_known_by_their_fields_in_every_file_of_records(place: Path, form: str) -> None:
    records = talks(30)
    if form == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = arrow.table({"id": list(range(30)), "messages": [record["messages"] for record in records]})
        parquet.write_table(table, "talk.parquet")
        inputs = ["talk.parquet"]
    elif form == "hub":
        pytest.importorskip("datasets", reason="the optional package datasets is not installed")
        Path("corpus").mkdir()
        written(records, "corpus/talk.jsonl")
        inputs = [f"hf:{Path('corpus').absolute()}"]
    elif form == "json":
        Path("talk.json").write_text(json.dumps(records))
        inputs = ["talk.json"]
    else:
        inputs = written(records, "talk.json")
    data, _ = made(inputs)
    assert found_in(data) == expected(data, records)


def test_a_record_with_the_field_of_a_text_is_a_document(place: Path) -> None:
    records = [record | {"text": some(9)} for record in talks(30)]
    data, _ = made(written(records))
    assert not data.train.is_masked
    data, _ = made(written([{"prompt": some(3), "completion": some(3)} for _ in range(30)]), field="prompt")
    assert not data.train.is_masked


def test_a_bad_conversation_is_named_by_its_line(place: Path, fails: Callable[..., str]) -> None:
    records = talks(3)
    records[1]["messages"][2] = {"role": "user", "content": "again"}
    written(records)
    said = fails(script.main, "talk", "--input", "talk.jsonl", "--tokenizer", "bytes")
    assert "talk.jsonl, line 2, turn 3: two user turns in a row" in said


def test_what_is_longer_than_the_block_is_cut_or_left_out_and_counted(place: Path) -> None:
    records = talks(40, longest=8)
    long = {"prompt": "x" * 300, "completion": "y"}
    data, said = made(written([*records, long]), block_size=200)
    lengths = [len(ids) for ids, _ in found_in(data)]
    whole = [len(ids) for ids, _ in expected(data, records)]
    assert max(lengths) <= 200 < max(whole) and len(lengths) == 40
    cut = sum(length > 200 for length in whole)
    assert data.meta["conversations"] == {"longest": max(lengths), "cut": cut}
    assert f"talk: {cut} conversations are longer than 200 tokens, and are cut" in said
    assert data.meta["dropped"]["longer than the block"] == 1
    assert "1 longer than the block" in said[-1]


def test_a_duplicate_in_another_form_is_left_out_with_its_targets(place: Path) -> None:
    pairs = [{"prompt": some(5), "completion": some(5)} for _ in range(30)]
    turns = [
        {
            "conversations": [
                {"from": "human", "value": one["prompt"]},
                {"from": "gpt", "value": one["completion"]},
            ]
        }
        for one in pairs
    ]
    data, _ = made(written([*pairs, *turns]), dedup=True)
    assert data.meta["dropped"]["duplicate"] >= 30
    unique = [dict(text) for text in {tuple(one.items()) for one in pairs}]
    assert found_in(data) == expected(data, unique)


@pytest.mark.parametrize("damage", ["bit", "missing", "short", "entry"])
def test_a_mask_that_is_lost_or_damaged_is_named(place: Path, damage: str) -> None:
    made(written(talks(30)))
    mask, meta = Path("data/talk/train.mask.bin"), Path("data/talk/meta.json")
    found = mask.read_bytes()
    if damage == "entry":
        fields = json.loads(meta.read_text())
        del fields["files"][0]["mask"]
        meta.write_text(json.dumps(fields))
    elif damage == "missing":
        mask.unlink()
    else:
        mask.write_bytes(bytes([found[0] ^ 1]) + found[1:] if damage == "bit" else found[:-1])
    with pytest.raises(UserError, match="mask"):
        open_dataset("talk", 4)


def test_other_targets_are_another_data_set(place: Path) -> None:
    data, _ = made(written(talks(30)))
    mask, path = data.folder / "train.mask.bin", data.folder / "meta.json"
    ones = b"\xff" * len(mask.read_bytes())
    mask.write_bytes(ones)
    meta = json.loads(path.read_text())
    meta["files"][0]["mask_sha256"] = hashlib.sha256(ones).hexdigest()
    path.write_text(json.dumps(meta))
    assert open_dataset("talk", 4).fingerprint != data.fingerprint


def test_a_row_learns_nothing_of_a_conversation_that_begins_before_it(place: Path) -> None:
    """Every target of a row has its conversation's beginning in the row; all are targets of the data."""
    records = talks(60, longest=4)
    data, _ = made(written(records), val=0.1)
    ids, targets = content(data.train)
    separator = data.separator("aligned")
    assert separator is not None
    for block_size in (40, 100, 700):
        covered = np.zeros(len(ids), dtype=bool)
        for start in range(0, len(ids) - block_size, block_size):
            (row,), (wanted,) = data.train.aligned_windows(np.array([start]), block_size, separator)
            places = np.flatnonzero(wanted != NO_TARGET)
            if not len(places):
                continue
            begin = next(place for place in range(start, start + block_size) if ids[place] == separator)
            assert row[0] == separator
            assert np.array_equal(wanted[places], ids[begin + 1 + places])
            assert targets[begin + 1 + places].all() and not covered[begin + 1 + places].any()
            covered[begin + 1 + places] = True
        assert covered.sum() > 0.5 * targets.sum() or block_size == 40


def test_the_command_line_makes_and_shows_conversations(place: Path) -> None:
    written(talks(40))
    finished = command(place, "prepare.py", "talk", "--input", "talk.jsonl", "--tokenizer", "bytes")
    assert finished.returncode == 0, finished.stderr
    assert "train.py --dataset=talk --documents=aligned" in finished.stdout
    shown = command(place, "prepare.py", "--show", "talk").stdout
    assert "conversations: the longest has" in shown and "are targets" in shown
    assert command(place, "prepare.py", "--verify", "talk").returncode == 0


def test_the_tokenizer_of_another_set_of_conversations_is_taken_as_it_is(place: Path) -> None:
    first, _ = made(written(talks(40)), tokenizer="char")
    prepare(Request("more", written(talks(20)), tokenizer="data/talk"), lambda _: None)
    assert open_dataset("more", 4).meta["tokenizer"] == first.meta["tokenizer"]
