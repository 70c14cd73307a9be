"""The recipes over files of the hub, against a local server: listing, download, interruption, damage."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pydoc_data.topics import topics
from threading import Thread

import pytest

import prepare as script
from engine.data.dataset import open_dataset
from engine.errors import UserError
from engine.preparation import hub

pyarrow = pytest.importorskip("pyarrow", reason="the optional package pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

FOLDER = "datasets/Skylion007/openwebtext/resolve/main/plain_text"


class Hub(BaseHTTPRequestHandler):
    """Lists `files` two a page, and sends them, whole or from an offset."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    requests: list[str] = []  # noqa: RUF012
    cut_once: set[str] = set()  # noqa: RUF012
    ranges = True

    def do_GET(self) -> None:
        """Answer a listing or a file."""
        self.requests.append(f"{self.path} {self.headers.get('Range') or ''}".strip())
        path, _, page = self.path.partition("?page=")
        if path == "/api/datasets/Skylion007/openwebtext/tree/main/plain_text":
            names = sorted(self.files)[int(page or 0) * 2 :]
            entries = [
                {
                    "type": "file",
                    "path": f"plain_text/{name}",
                    "size": len(self.files[name]),
                    "lfs": {"oid": hashlib.sha256(self.files[name]).hexdigest()},
                }
                for name in names[:2]
            ]
            self.send_response(200)
            if len(names) > 2:
                address = f"http://127.0.0.1:{self.server.server_port}{path}?page={int(page or 0) + 1}"
                self.send_header("Link", f'<{address}>; rel="next"')
            self.end_headers()
            self.wfile.write(json.dumps(entries).encode())
        elif self.path.removeprefix(f"/{FOLDER}/") in self.files:
            self.send_file(self.path.removeprefix(f"/{FOLDER}/"))
        else:
            self.send_error(404)

    def send_file(self, name: str) -> None:
        """The file, or what the header Range asks for; the first time cut off, where a test wants that."""
        content = self.files[name]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        offset = int(asked[1]) if asked and self.ranges else 0
        self.send_response(206 if offset else 200)
        self.send_header("Content-Length", str(len(content) - offset))
        self.end_headers()
        if name in self.cut_once:
            self.cut_once.remove(name)
            self.wfile.write(content[offset : len(content) // 2])
        else:
            self.wfile.write(content[offset:])

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine with five files of documents, which lie in mirror/openwebtext too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
    documents = [topics[name] for name in sorted(topics)]
    folder = Path("mirror/openwebtext")
    folder.mkdir(parents=True)
    for number in range(5):
        table = pyarrow.table({"text": documents[number::5]})
        parquet.write_table(table, folder / f"train-{number:05}-of-00005.parquet")
    Hub.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    Hub.requests, Hub.cut_once, Hub.ranges = [], set(), True
    running = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.delenv("PLAINGPT_MIRROR", raising=False)
    yield Hub
    running.shutdown()
    running.server_close()


def run() -> tuple[bytes, bytes]:
    """Prepare openwebtext with the real command; the token files."""
    script.main(["openwebtext", "--tokenizer", "bytes", "--val", "0.1"])
    folder = Path("data/openwebtext")
    assert sorted(file.name for file in folder.iterdir()) == ["meta.json", "train.bin", "val.bin"]
    return (folder / "train.bin").read_bytes(), (folder / "val.bin").read_bytes()


def test_files_of_the_hub_give_what_a_mirror_gives(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = run()
    sources = open_dataset("openwebtext", 8).meta["sources"]
    assert [source["sha256"] for source in sources] == [
        hashlib.sha256(server.files[name]).hexdigest() for name in sorted(server.files)
    ]
    assert all(
        source["address"].endswith(name) for source, name in zip(sources, sorted(server.files), strict=True)
    )
    monkeypatch.setenv("PLAINGPT_MIRROR", "mirror")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run() == downloaded


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on(server: type[Hub], ranges: bool) -> None:
    wanted = run()
    server.ranges = ranges
    server.cut_once = {"train-00001-of-00005.parquet", "train-00004-of-00005.parquet"}
    server.requests.clear()
    assert run() == wanted
    half = len(server.files["train-00001-of-00005.parquet"]) // 2
    assert f"/{FOLDER}/train-00001-of-00005.parquet bytes={half}-" in server.requests


def test_a_file_that_is_not_what_the_hub_lists_is_refused(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    listed = hub.list_parquet

    def changed(*arguments: object) -> list:
        found = listed(*arguments)
        name = sorted(server.files)[2]
        server.files[name] = server.files[name][:-1] + b"?"
        return found

    monkeypatch.setattr("engine.preparation.pipeline.list_parquet", changed)
    said = fails(script.main, "openwebtext", "--tokenizer", "bytes")
    assert "train-00002-of-00005.parquet arrived damaged" in said and not list(Path("data").rglob("*"))


def test_an_interrupted_preparation_downloads_only_what_it_still_needs(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    wanted = run()
    monkeypatch.setattr("engine.preparation.pipeline.SAVE_EVERY", 1)
    name = sorted(server.files)[3]
    sent = server.send_file
    with monkeypatch.context() as patch:
        refuse = lambda self, asked: self.send_error(503) if asked == name else sent(self, asked)  # noqa: E731
        patch.setattr(server, "send_file", refuse)
        assert "cannot be downloaded" in fails(
            script.main, "openwebtext", "--tokenizer", "bytes", "--val", "0.1"
        )
    server.requests.clear()
    assert run() == wanted
    files = {request.split("/")[-1].split()[0] for request in server.requests if "resolve" in request}
    assert name in files and not files & set(sorted(server.files)[:2])  # the last one may have come before


def test_a_hub_that_cannot_be_reached_and_a_folder_without_tables_are_named(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    # This server has it not.
    assert "cannot be listed" in fails(script.main, "fineweb", "--tokenizer", "bytes")
    server.files = {}
    assert "has no Parquet files" in fails(script.main, "openwebtext", "--tokenizer", "bytes")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be listed" in fails(script.main, "openwebtext", "--tokenizer", "bytes")
    assert not list(Path("data").rglob("*"))


def test_training_does_not_start_a_long_download(tmp_path: Path) -> None:
    from engine.preparation.recipes import LARGE, prepare_recipe

    for name in LARGE:
        with pytest.raises(UserError, match=rf"python prepare\.py {name}"):
            prepare_recipe(name, print, tmp_path)
