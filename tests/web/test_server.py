"""engine/web: whom the server answers, what it survives, what a page may hold."""

import json
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.serving import ask, send, serving

from engine.errors import UserError
from engine.web.page import Page, build_page
from engine.web.server import MAX_BODY, Refused, make_server

PAGES = {"/": Page("<!doctype html><p>hello", "default-src 'none'"), "/two": Page("second", "")}
ENDED = threading.Event()  # set when a stream's generator ends, however it does


def answer(path: str, question: Any) -> Any:
    """A server's answers: the question back, lines that come one by one, or a refusal."""
    match path:
        case "/echo":
            return {"question": question}
        case "/lines":
            return lines(question)
        case "/list" if question is None:
            return {"list": []}
    raise Refused(404, f"there is no {path}")


def lines(count: int) -> Iterator[dict[str, Any]]:
    """So many numbers and then a refusal, or the end for less than none; numbers without end for 0."""
    number = 0
    try:
        while True:
            number += 1
            if number > -count > 0:
                return
            if number > count > 0:
                raise Refused(400, "that was all")
            yield {"number": number}
    finally:
        ENDED.set()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(make_server(PAGES, answer, 0)) as port:
        yield port


def refusal(sentence: str) -> dict[str, Any]:
    """How a refusal is sent."""
    error = {"message": sentence, "type": "invalid_request_error", "param": None, "code": None}
    return {"error": error}


def make_page(folder: Path, data: dict[str, Any]) -> Page:
    """A page of two scripts."""
    (folder / "page.html").write_text(
        '<meta content="@@POLICY@@"><style>@@STYLE@@</style>'
        '<script type="application/json" id="data">@@DATA@@</script><script>@@SCRIPT@@</script>'
    )
    (folder / "page.css").write_text("p { color: red; }")
    (folder / "first.js").write_text("const one = 1;")
    (folder / "second.js").write_text("const two = one + one;")
    return build_page(folder, ("first.js", "second.js"), data)


def test_the_page_and_answers_are_sent(port: int) -> None:
    assert send(port, "GET", "/") == (200, b"<!doctype html><p>hello")
    assert ask(port, "/echo", {"text": "naïve 漢 </script>"}) == (
        200,
        {"question": {"text": "naïve 漢 </script>"}},
    )
    assert send(port, "GET", "/two") == (200, b"second") and send(port, "GET", "/list") == (
        200,
        b'{"list": []}',
    )
    assert ask(port, "/elsewhere", {}) == (404, refusal("there is no /elsewhere"))
    assert send(port, "GET", "/../model.py")[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "attacker.example"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Content_Length": ""}, 411),
        ({"Content_Length": "-5"}, 411),
        ({"Content_Length": "many"}, 411),
        ({"Content_Length": str(MAX_BODY + 1)}, 413),
        ({"Content_Length": "9" * 5000}, 413),
    ],
)
def test_only_the_pages_own_well_formed_requests_are_answered(
    port: int, headers: dict[str, str], status: int
) -> None:
    found, content = send(port, "POST", "/echo", b'{"text": "hello"}', **headers)
    assert found == status and json.loads(content)["error"]["message"]
    if "Host" in headers:
        assert send(port, "GET", "/", **headers)[0] == 403


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 50_000, b"9" * 5000])
def test_what_is_not_json_is_refused(port: int, body: bytes) -> None:
    status, content = send(port, "POST", "/echo", body)
    assert status == 400 and json.loads(content) == refusal("a question is JSON")
    assert ask(port, "/echo", "still here")[0] == 200


def test_a_question_that_is_too_long_is_told_so(port: int) -> None:
    """Also while it is still being sent, as when a large text is pasted into the page."""
    assert ask(port, "/echo", "x" * (MAX_BODY - 2))[0] == 200
    for size in (MAX_BODY, 30 * MAX_BODY):
        status, refused = ask(port, "/echo", "x" * size)
        assert status == 413 and "at most 100,000 bytes" in refused["error"]["message"]


def events(content: bytes) -> list[str]:
    """The data of server-sent events."""
    *found, rest = content.decode().split("\n\n")
    assert not rest and all(event.startswith("data: ") for event in found)
    return [event.removeprefix("data: ") for event in found]


def test_events_come_one_by_one_and_a_refusal_is_the_last(port: int) -> None:
    status, content = send(port, "POST", "/lines", b"5")
    assert status == 200
    assert [json.loads(event) for event in events(content)] == [
        *({"number": number} for number in range(1, 6)),
        refusal("that was all"),
    ]
    assert events(send(port, "POST", "/lines", b"-3")[1]) == [
        *(json.dumps({"number": number}) for number in range(1, 4)),
        "[DONE]",
    ]


def test_programs_send_no_origin_and_are_answered_where_that_is_allowed() -> None:
    with serving(make_server({}, answer, 0, programs=True)) as port:
        assert send(port, "POST", "/echo", b"1", Origin="")[0] == 200
        assert send(port, "GET", "/")[0] == 404
        for headers in ({"Origin": "http://attacker.example"}, {"Origin": "null"}, {"Host": "other.example"}):
            assert send(port, "POST", "/echo", b"1", **headers)[0] == 403


def test_a_stream_ends_when_its_reader_leaves(port: int) -> None:
    ENDED.clear()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        host = f"127.0.0.1:{port}"
        head = f"POST /lines HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nContent-Length: 1\r\n\r\n0"
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.0 200")
        assert not ENDED.is_set()
    assert ENDED.wait(timeout=30)


def test_a_reader_that_leaves_early_is_let_go(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            # Close with a reset.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    assert send(port, "GET", "/")[0] == 200
    assert capfd.readouterr().err == ""


def test_noise_on_the_socket_does_not_end_the_server(port: int) -> None:
    for noise in (
        b"\r\n\r\n",
        random.randbytes(200) + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW / HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert send(port, "GET", "/")[0] == 200


def test_a_port_that_is_taken_is_named(port: int) -> None:
    for taken in (port, 99_999):
        with pytest.raises(UserError, match=f"port {taken} cannot be used .* choose another with --port"):
            make_server({}, answer, taken)


def test_the_page_holds_its_parts_and_names_its_script_by_hash(tmp_path: Path) -> None:
    page = make_page(tmp_path, {"words": ["one"]})
    assert "const one = 1;\nconst two = one + one;" in page.html and "p { color: red; }" in page.html
    assert page.policy in page.html and "@@" not in page.html
    assert re.search(r"script-src 'sha256-[\w+/]{43}='; style-src 'sha256-[\w+/]{43}='", page.policy)


def test_text_cannot_leave_its_element(tmp_path: Path) -> None:
    words = ["</script><script>alert(1)</script>", "<!--", "\u2028", "@@SCRIPT@@"]
    page = make_page(tmp_path, {"words": words})
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.html, re.S)
    assert data is not None and json.loads(data[1])["words"] == words
    assert page.html.count("<script") == 2 and page.html.count("const one") == 1
