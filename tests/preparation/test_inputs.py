"""Readers: the same documents from every format, from every place on, and damage that is named."""

import bz2
import csv
import gzip
import json
import lzma
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import UserError
from engine.preparation import inputs as readers
from engine.preparation.compression import UNPACK, zstd
from engine.preparation.encoding import Job, start_worker, survey, texts_of
from engine.preparation.inputs import character_cut, find_inputs, format_of, pieces, safe_cut
from engine.text.byte_pairs import OwnBytePairTokenizer

DOCUMENTS = [part for name in sorted(topics)[:12] for part in topics[name].split("\n\n") if part.strip()][
    :150
]
DOCUMENTS += ["Élan vital — 語 🙂", "tabs\tand, commas", 'a "quoted"\r\nline', "last"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few documents, so that there are many of them."""
    monkeypatch.setattr(readers, "PIECE_BYTES", 2000)
    start_worker(Job())


def written(folder: Path, name: str) -> Path:
    """DOCUMENTS in a file of the format and compression that its name tells."""
    path = folder / name
    plain = path.with_suffix("") if path.suffix in (".gz", ".xz", ".bz2", ".zst") else path
    if plain.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="the optional package pyarrow is not installed")
        table = pyarrow.table({"n": range(len(DOCUMENTS)), "text": DOCUMENTS})
        pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=40)
        return path
    if plain.suffix in (".csv", ".tsv"):
        with open(plain, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if plain.suffix == ".tsv" else ",")
            writer.writerows([["n", "text"], *enumerate(DOCUMENTS)])
    elif plain.suffix == ".json":
        plain.write_text(json.dumps([{"text": text} for text in DOCUMENTS], indent=1))
    else:
        lines = [
            json.dumps({"text": text}, ensure_ascii=bool(number % 2)) for number, text in enumerate(DOCUMENTS)
        ]
        plain.write_text("\n".join([lines[0], "", *lines[1:]]), encoding="utf-8")
    if path != plain:
        path.write_bytes(compressed(path.suffix, plain.read_bytes()))
    return path


def compressed(suffix: str, content: bytes) -> bytes:
    """In two members or frames, as parallel compressors write them."""
    if suffix == ".zst":
        options = {zstd.CompressionParameter.checksum_flag: 1}  # as the command zstd does
        return b"".join(zstd.compress(part, options=options) for part in (content[:5000], content[5000:]))
    compress = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[suffix]
    return compress(content[:5000]) + compress(content[5000:])


def read(inputs: list[readers.Input], **options) -> list[str]:
    """All texts of the inputs."""
    found = pieces(inputs, "text", False, **options)
    return [text.text for piece in found for text in texts_of(piece, Counter())]


def bare(found: Iterable[readers.Piece]) -> list[readers.Piece]:
    """The pieces without the share that they were read at: a file is read ahead."""
    return [[part._replace(share=0.0) for part in piece] for piece in found]


PLAIN = ["d.jsonl", "d.ndjson", "d.json", "d.csv", "d.tsv", "d.parquet"]


@pytest.mark.parametrize("name", [*PLAIN, "d.jsonl.gz", "d.csv.xz", "d.json.bz2", "d.jsonl.zst"])
def test_every_format_gives_the_same_documents_from_every_place_on(tmp_path: Path, name: str) -> None:
    inputs = find_inputs([str(written(tmp_path, name))])
    assert read(inputs) == DOCUMENTS
    found = list(pieces(inputs, "text", False))
    assert len(found) > 10
    shares = [part.share for piece in found for part in piece]
    assert shares == sorted(shares) and 0 < shares[-1] <= 1
    for number, piece in enumerate(found):
        assert bare(pieces(inputs, "text", False, piece[-1].next)) == bare(found[number + 1 :])


def test_folders_and_patterns_come_in_the_order_of_names_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "a.txt", ".git/x.txt", "b/.hidden", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(find_inputs([str(tmp_path)])) == ["a.txt", "b/1.txt", "b/2.txt", "c.txt"]
    assert read(find_inputs([str(tmp_path / "**" / "*.txt")])) == ["a.txt", "b/1.txt", "b/2.txt", "c.txt"]
    assert read(find_inputs([str(tmp_path / "c.txt"), str(tmp_path / "b")])) == [
        "c.txt",
        "b/1.txt",
        "b/2.txt",
    ]


def test_files_as_documents_go_on_from_every_place_and_long_ones_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(readers.LONGEST, "file", 3000)
    texts = [DOCUMENTS[0], "word " * 2000, "ä" * 4000, "whole " * 500, *DOCUMENTS[1:20]]
    for number, text in enumerate(texts):
        (tmp_path / f"{number:03}.txt").write_text(text, encoding="utf-8")
    inputs = find_inputs([str(tmp_path)])
    found = list(pieces(inputs, "text", False))
    assert "".join(read(inputs)) == "".join(texts)
    assert max(len(text.encode()) for text in read(inputs)) <= 3000 and "whole " * 500 in read(inputs)
    for number, piece in enumerate(found):
        assert bare(pieces(inputs, "text", False, piece[-1].next)) == bare(found[number + 1 :])


def test_one_text_is_cut_without_a_loss_and_goes_on_from_every_place(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(
            "\n\n".join(DOCUMENTS[number * 50 :]), encoding="utf-8", newline=""
        )
    inputs = find_inputs([str(tmp_path / f"{number}.txt") for number in range(3)])
    found = list(pieces(inputs, "text", True))
    assert len(found) > 20
    assert b"".join(part.contents[0] for (part,) in found) == b"".join(
        Path(item.path).read_bytes() for item in inputs
    )
    for number, (part,) in enumerate(found):
        assert bare(pieces(inputs, "text", True, part.next)) == bare(found[number + 1 :])
        before = Path(inputs[part.start.index].path).read_bytes()[: part.start.offset]
        assert part.start.line == before.count(b"\n")


PAIRS = OwnBytePairTokenizer(
    [bytes([byte]) for byte in range(256)]
    + [b"  ", b" a", b"\n\n", b"ab", b"a ", b"\n ", b"'s", b"  a", "é".encode()]
)


@given(st.text(st.sampled_from("ab's1.,é語\u00a0\u2003\x1c\t\r\n  "), min_size=1, max_size=80))
@settings(max_examples=300, deadline=None)
def test_a_safe_cut_changes_no_token(text: str) -> None:
    content = text.encode()
    cut = safe_cut(content)
    if cut is not None:
        parts = [content[:cut].decode(), content[cut:].decode()]
        assert all(parts)
        assert [id_ for part in parts for id_ in PAIRS.encode(part)] == PAIRS.encode(text).tolist()


@given(st.text(min_size=2).map(str.encode))
def test_a_character_cut_leaves_characters_whole(content: bytes) -> None:
    cut = character_cut(content)
    if cut > 1:
        assert content[:cut].decode() + content[cut:].decode() == content.decode()


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_a_compressed_file_that_was_cut_short_or_damaged_is_named(tmp_path: Path, suffix: str) -> None:
    stream = random.Random(3)
    whole = written(tmp_path, f"d.jsonl{suffix}").read_bytes()
    for number in range(20):
        path = tmp_path / f"broken{number}.jsonl{suffix}"
        damaged = bytearray(whole)
        damaged[stream.randrange(len(whole) // 4, len(whole))] ^= 0xFF
        path.write_bytes(whole[: stream.randrange(20, len(whole) - 20)] if number % 2 else bytes(damaged))
        try:
            found = read(find_inputs([str(path)]))
        except UserError as error:
            assert path.name in str(error)
        else:  # cut between two members, or a byte of the header's that means nothing
            assert found == DOCUMENTS[: len(found)]


def test_zstd_files_that_refer_far_back_are_read(tmp_path: Path) -> None:
    options = {zstd.CompressionParameter.window_log: 28}  # zstd --long=28; the library's own limit is 27
    compressor = zstd.ZstdCompressor(options=options)
    content = compressor.compress(b"a word\n" * 1000) + compressor.flush()
    (tmp_path / "a.txt.zst").write_bytes(content)
    assert read(find_inputs([str(tmp_path / "a.txt.zst")])) == ["a word\n" * 1000]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"one\ntwo\n\xff", r"a.txt is not UTF-8 \(byte 8, line 3\)"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": "\xe4"}\n',
            r"a.jsonl, line 2 is not UTF-8 \(byte 10\)",
        ),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', r"a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y", "n": 1}\n', r"line 2 has no field 'text'.*'body'"),
        ("a.jsonl", b'{"text": ["x"]}\n', "line 1: its field 'text' holds no text"),
        ("a.jsonl", b"[1]\n", "line 1 is neither an object nor a text"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', r"line 1 holds \\ud83d \(byte 0\): half of a pair"),
        ("a.csv", b"text\n\xed\xa0\xbd\n", r"record 1 holds \\ud83d \(byte 0\): half of a pair"),
        ("a.json", b'[{"text": "x"}', "a.json is not JSON"),
        ("a.json", b'[{"text": "x"}, 3]', "record 2 is neither"),
        ("a.csv", b"id,body\n1,x\n", r"no column 'text'.*'body'"),
        ("a.csv", b"text,n\nx,1\ny\n", "line 3: 1 columns where the head has 2"),
        ("a.csv", b'text\n"x\n', "a.csv, line 2: not a table"),
        ("a.csv", b"text\n\xff\n", "a.csv, record 1 is not UTF-8"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz is damaged"),
        ("a.txt.xz", b"no xz", "a.txt.xz is damaged"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read(find_inputs([str(tmp_path / name)]))


def test_a_table_without_the_column_and_a_damaged_table_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "d.parquet")
    with pytest.raises(UserError, match=r"no column 'body'.*'text'"):
        list(pieces(find_inputs([str(path)]), "body", False))
    with pytest.raises(UserError, match="'n' holds int64, not text"):
        list(pieces(find_inputs([str(path)]), "n", False))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"d\.parquet cannot be read as Parquet"):
        list(pieces(find_inputs([str(path)]), "text", False))


def test_errors_replace_goes_on_and_drop_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "good"}\n{"text": "b\xff"}\n{"text": "\\ud800"}\n{"text": null}\n'
    )
    inputs = find_inputs([str(tmp_path / "a.jsonl")])
    start_worker(Job(errors="replace"))
    assert read(inputs) == ["good", "b\ufffd", "\ufffd" * 3]
    start_worker(Job(errors="drop"))
    dropped: Counter[str] = Counter()
    texts = [text.text for piece in pieces(inputs, "text", False) for text in texts_of(piece, dropped)]
    assert texts == ["good"] and dropped == {"not UTF-8": 2, "empty": 1}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'[{"text": "x"}]', "line 1 is neither an object nor a text, but an array"),
        ("a.jsonl", b'[\n {"text": "x"}\n]\n', "line 1 is neither an object nor a text, but an array"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "y"} {"text": "z"}\n', "line 2 holds more than one object"),
        ("a.jsonl", b'{\n "text": "x"\n}\n', "line 1 ends within an object"),
        ("a.jsonl", b'{"n": 1,\n "text": "x"}\n', "line 1 ends within an object"),
        ("a.json", b'{"text": "x"}{"text": "y"}', r"one object after the other \(line 1\)"),
        ("a.json", b'{\n "text": "x"\n}\n{\n "text": "y"\n}\n', r"one object after the other \(line 4\)"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "line 1 is a conversation .*'messages'"),
        ("a.json", b'[{"conversations": []}]', "record 1 is a conversation .*'conversations'"),
        (
            "a.csv",
            b"A sentence that is long enough to be no name.,3\n",
            "has no column 'text': its first line",
        ),
        ("a.csv", b"one;two\n1;2\n", r"no column 'text'.*'one', 'two'"),
        ("a.csv", "text\nx\n".encode("utf-16"), "a.csv is not UTF-8, but UTF-16"),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16"), "a.jsonl is not UTF-8, but UTF-16"),
        ("a.txt", "Élan".encode("utf-16"), "a.txt is not UTF-8, but UTF-16"),
        ("a.txt", "plain".encode("utf-16-le"), "a.txt is not UTF-8, but UTF-16LE"),
        ("a.txt", "plain".encode("utf-16-be"), "a.txt is not UTF-8, but UTF-16BE"),
        ("a.txt", "plain".encode("utf-32"), "a.txt is not UTF-8, but UTF-32"),
        ("a.json", '["Ein Café"]'.encode("cp1252"), r"\(byte 9\); convert it: iconv -f CP1252"),
        ("a.csv", "text\nEin Café".encode("cp1252"), r"record 1 is not UTF-8 \(byte 7\), and seems to be"),
        ("a.txt", "Ein Café".encode("cp1252"), r"\(byte 7, line 1\), and seems to be CP1252"),
        ("a.txt", b"plain " * 500 + b"caf\xe9", r"\(byte 3003, line 1\), and seems to be CP1252"),
        ("a.txt", b"plain " * 500 + "Привет".encode("cp1251"), r"line 1\); convert it: iconv -f ENCODING"),
        ("a.txt", "situações".encode("cp1252"), r"line 1\), and seems to be CP1252"),
        ("a.txt", "Привет, мир".encode("cp1251"), r"\(byte 0, line 1\); convert it: iconv -f ENCODING"),
        ("a.txt", "Café ".encode() + b"caf\xe9", r"\(byte 9, line 1\), though the text before is"),
    ],
)
def test_what_people_have_instead_is_named_with_the_next_step(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        read(find_inputs([str(tmp_path / name)]))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


WRONG = [
    ("a b.txt", "Ein Café\n".encode("cp1252"), ["Ein Café\n"]),
    ("a.txt.gz", "Ein Café\n".encode("cp1252"), ["Ein Café\n"]),
    ("a.txt", "Élan 語\n".encode("utf-16"), ["Élan 語\n"]),
    ("a.csv", "text\nÉlan\n".encode("utf-16"), ["Élan"]),
    ("it's.jsonl", b'[{"text": "x"}, {"text": "y"}]', ["x", "y"]),
    ("a.jsonl.xz", b'[\n {"text": "x"}]', ["x"]),
    ("a b.csv", b"1,A sentence that is long enough to be no name.\n2,y\n", ["A sentence that", "y"]),
    (
        "a.csv.bz2",
        b"The first sentence has more than 40 characters.\nshort\n",
        ["The first", "short"],
    ),
    ("a.jsonl", b'{"text": "x"}{\n"text": "y"\n}', ["x", "y"]),
    ("a.json", b'{"text": "x"}{\n"text": "y"\n}', ["x", "y"]),
]


@pytest.mark.parametrize(("name", "content", "wanted"), WRONG, ids=[name for name, _, _ in WRONG])
def test_the_command_that_a_message_gives_makes_a_file_that_can_be_read(
    tmp_path: Path, name: str, content: bytes, wanted: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(compressed(path.suffix, content) if path.suffix in UNPACK else content)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError) as raised:
        read(find_inputs([str(path)]))
    line = re.search(r": ((?:\(echo|iconv|jq|mv|gzip|xz|bzip2) .*?)(?:; or go on|$)", str(raised.value))
    if line is None or shutil.which("bash") is None or ("jq" in line[1] and shutil.which("jq") is None):
        assert line is not None, raised.value
        pytest.skip("this machine has no bash, or no jq")
    subprocess.run(["bash", "-c", line[1]], check=True)
    (made,) = set(tmp_path.iterdir()) - before
    found = read(find_inputs([str(made)]))
    assert len(found) == len(wanted) and all(map(str.startswith, found, wanted))


def test_a_byte_order_mark_is_left_out_and_positions_count_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number, text in enumerate(("one", "\ufefftwo", "three\ufeff", "\ufefffour")):
        (tmp_path / "a" / f"{number}.txt").write_text(text, encoding="utf-8")
    (piece,) = pieces(find_inputs([str(tmp_path / "a")]), "text", False)
    assert [Path(part.file).name for part in piece if part.marked] == ["1.txt", "3.txt"]
    assert read(find_inputs([str(tmp_path / "a")])) == ["one", "two", "three\ufeff", "four"]
    for name in ("b.txt", "c.txt.gz", "b.jsonl", "b.json", "b.csv"):
        text = {"b.jsonl": '{"text": "x"}\n', "b.json": '{"text": "x"}', "b.csv": "text\nx\n"}.get(name, "x")
        content = text.encode("utf-8-sig")
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        assert read(find_inputs([str(tmp_path / name)])) == ["x"]
    bad = b"\xef\xbb\xbfone\nb\xff"
    (tmp_path / "a/1.txt").write_bytes(bad)
    for one_text, file in ((True, tmp_path / "a/1.txt"), (False, tmp_path / "a")):
        with pytest.raises(UserError, match=r"1\.txt is not UTF-8 \(byte 8, line 2\)"):
            list(map(survey, pieces(find_inputs([str(file)]), "text", one_text)))


def test_lines_and_bytes_are_exact_in_the_later_parts_of_a_long_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(readers.LONGEST, "file", 3000)
    content = b"some words\n" * 1000 + b"caf\xe9"
    (tmp_path / "a.txt").write_bytes(content)
    for one_text in (True, False):
        with pytest.raises(UserError, match=r"\(byte 11003, line 1001\)"):
            list(map(survey, pieces(find_inputs([str(tmp_path / "a.txt")]), "text", one_text)))


@pytest.mark.parametrize("separator", ",;\t")
def test_the_head_of_a_table_tells_what_separates_its_columns(tmp_path: Path, separator: str) -> None:
    rows = [["n", "text", "a,b;c"], ["1", 'one, "two"; three', "x"], ["2", "four", ""]]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    assert read(find_inputs([str(tmp_path / "a.csv")])) == ['one, "two"; three', "four"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.txt cannot be read: there is no such file"):
        find_inputs([str(tmp_path / "nowhere.txt")])
    with pytest.raises(UserError, match="hf:some/thing"):
        find_inputs(["some/thing"])
    with pytest.raises(UserError, match="holds no files"):
        find_inputs([str(tmp_path)])


def test_a_data_set_of_the_hub_is_streamed_from_every_record_on(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    (tmp_path / "corpus").mkdir()
    written(tmp_path / "corpus", "d.jsonl")
    (item,) = find_inputs([f"hf:{tmp_path / 'corpus'}"])
    assert item.format == "hub" and read([item]) == DOCUMENTS
    second = list(pieces([item], "text", False))[1]
    assert next(pieces([item], "text", False, second[0].start)) == second
    with pytest.raises(UserError, match="cannot be read from the Hugging Face hub"):
        read([replace(item, path=str(tmp_path / "nothing"))])


def test_formats_follow_from_names() -> None:
    assert [format_of(name) for name in ("a.TXT", "a.md", "a.JSONL.GZ", "a.csv.zst", "a.parquet", "a")] == [
        "text", "text", "jsonl", "csv", "parquet", "text"
    ]  # fmt: skip
