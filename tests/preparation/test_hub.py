"""The recipes over files of the hub, against a local server: listing, download, interruption, damage."""

import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pydoc_data.topics import topics
from threading import Thread

import pytest

import prepare as script
from engine.data.dataset import open_dataset
from engine.download import Unreachable, reach_hub
from engine.errors import UserError
from engine.preparation import hub
from engine.preparation.recipes import LARGE, prepare_recipe

pyarrow = pytest.importorskip("pyarrow", reason="the optional package pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "datasets/Skylion007/openwebtext"
FOLDER = f"{REPOSITORY}/resolve/{COMMIT}/plain_text"


class Hub(BaseHTTPRequestHandler):
    """Lists `files` two a page, and sends them, whole or from an offset, as the hub's own server does."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    requests: list[str] = []  # noqa: RUF012
    cut_once: set[str] = set()  # noqa: RUF012
    ranges = True

    def do_HEAD(self) -> None:
        """What is known of a file."""
        self.answer(body=False)

    def do_GET(self) -> None:
        """The repository, a listing, or a file."""
        self.requests.append(f"{self.path} {self.headers.get('Range') or ''}".strip())
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path, _, query = self.path.partition("?")
        page = re.search(r"page=(\d+)", query)
        if path == f"/api/{REPOSITORY}":
            self.send_json({"id": REPOSITORY.removeprefix("datasets/"), "sha": COMMIT})
        elif path == f"/api/{REPOSITORY}/tree/{COMMIT}/plain_text":
            self.send_listing(path, int(page[1]) if page else 0)
        elif path.removeprefix(f"/{FOLDER}/") in self.files:
            self.send_file(path.removeprefix(f"/{FOLDER}/"), body)
        else:
            self.send_error(404)

    def send_json(self, content: object, link: str | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if link is not None:
            self.send_header("Link", link)
        self.end_headers()
        self.wfile.write(body)

    def send_listing(self, path: str, page: int) -> None:
        names = sorted(self.files)[page * 2 :]
        entries = [
            {
                "type": "file",
                "path": f"plain_text/{name}",
                "size": len(self.files[name]),
                "oid": "0" * 40,
                "lfs": {
                    "oid": hashlib.sha256(self.files[name]).hexdigest(),
                    "size": len(self.files[name]),
                    "pointerSize": 134,
                },
            }
            for name in names[:2]
        ]
        address = f"http://127.0.0.1:{self.server.server_port}{path}?page={page + 1}"
        self.send_json(entries, f'<{address}>; rel="next"' if len(names) > 2 else None)

    def send_file(self, name: str, body: bool) -> None:
        """The file, or what the header Range asks for; the first time cut off, where a test wants that."""
        content = self.files[name]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        offset = int(asked[1]) if asked and self.ranges else 0
        self.send_response(206 if offset else 200)
        self.send_header("Content-Length", str(len(content) - offset))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not body:
            return
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
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between a library's attempts
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
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{running.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
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


def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no network could be reached."""

    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_files_of_the_hub_give_what_a_mirror_gives(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = run()
    sources = open_dataset("openwebtext", 8).meta["sources"]
    assert [source["sha256"] for source in sources] == [
        hashlib.sha256(server.files[name]).hexdigest() for name in sorted(server.files)
    ]
    for source, name in zip(sources, sorted(server.files), strict=True):
        assert source["address"].endswith(f"/{FOLDER}/{name}")
    monkeypatch.setenv("PLAINGPT_MIRROR", "mirror")
    cut_off(monkeypatch)
    assert run() == downloaded


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # what it keeps at least
    wanted = run()
    server.ranges = ranges
    server.cut_once = {"train-00001-of-00005.parquet", "train-00004-of-00005.parquet"}
    server.requests.clear()
    assert run() == wanted
    half = len(server.files["train-00001-of-00005.parquet"]) // 2 // 1000 * 1000
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
    send_file = server.send_file

    def refuse(self: Hub, asked: str, body: bool) -> None:
        self.send_error(503) if asked == name else send_file(self, asked, body)

    with monkeypatch.context() as patch:
        patch.setattr(server, "send_file", refuse)
        said = fails(script.main, "openwebtext", "--tokenizer", "bytes", "--val", "0.1")
        assert f"{FOLDER}/{name} cannot be downloaded" in said and "the same command goes on" in said
    server.requests.clear()
    assert run() == wanted
    files = {request.split("/")[-1].split()[0] for request in server.requests if "resolve" in request}
    assert name in files and not files & set(sorted(server.files)[:2])  # the last one may have come before


def test_a_repository_or_folder_that_is_not_there_is_named(
    server: type[Hub], fails: Callable[..., str]
) -> None:
    assert "HuggingFaceFW/fineweb cannot be listed" in fails(script.main, "fineweb", "--tokenizer", "bytes")
    server.files = {}
    assert "has no Parquet files" in fails(script.main, "openwebtext", "--tokenizer", "bytes")
    assert not list(Path("data").rglob("*"))


def test_without_a_network_the_answer_is_one_line_after_one_attempt(
    server: type[Hub], monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    pauses: list[float] = []
    cut_off(monkeypatch)
    monkeypatch.setattr("time.sleep", pauses.append)
    said = fails(script.main, "openwebtext", "--tokenizer", "bytes")  # which lets no second line pass
    assert "cannot be listed: https://huggingface.co/Skylion007/openwebtext" in said
    assert "Name or service not known" in said and not pauses and not list(Path("data").rglob("*"))
    said = fails(script.main, "mine", "--input", "hf:some/thing")
    assert "some/thing cannot be read from the Hugging Face hub" in said and not pauses
    with pytest.raises(Unreachable, match=r"openai-community/gpt2: .*Name or service not known"):
        reach_hub("openai-community/gpt2", "model")


def test_training_does_not_start_a_long_download(tmp_path: Path) -> None:
    for name in LARGE:
        with pytest.raises(UserError, match=rf"python prepare\.py {name}"):
            prepare_recipe(name, print, tmp_path)
