"""A web server for one page and its requests, on the loopback address, for that page only.

    server = make_server(page, answer, port=0)
    print(f"http://127.0.0.1:{server.server_port}/")
    server.serve_forever()

GET returns the page. The JSON body of a POST goes to `answer(path, question)`, which returns a dictionary,
sent as JSON, or a generator of dictionaries, sent one line of JSON each as they come. It refuses by
`raise Refused(400, "the prompt is empty")`. Requests are handled in parallel, each in its own thread.

Host and Origin must be the server's own: this keeps out scripts of other sites and DNS rebinding. A body has
at most MAX_BODY bytes.
"""

import contextlib
import json
from collections.abc import Callable, Generator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from engine.errors import UserError
from engine.web.page import Page

MAX_BODY = 100_000  # bytes of a question
MAX_SKIPPED = 100 * MAX_BODY  # bytes of a longer one that are read after its refusal
SECONDS_TO_SEND = 30  # that a client may take to send what it announced, or to take what it is sent

Answers = Generator[dict[str, Any], None, None]
Answer = Callable[[str, Any], dict[str, Any] | Answers]


class Refused(Exception):
    """A refused request: an HTTP status, and a sentence for the person at the page."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def make_server(page: Page, answer: Answer, port: int) -> ThreadingHTTPServer:
    """A server at `port` (0: any free one, see its `server_port`), not yet serving.

    Raises UserError for a port that cannot be had.
    """
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(PageHandler, page, answer))
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be used ({error}); choose another with --port") from error


class PageHandler(BaseHTTPRequestHandler):
    """Handles one request, in its constructor, as `socketserver` requires."""

    timeout = SECONDS_TO_SEND

    def __init__(self, page: Page, answer: Answer, *connection: Any) -> None:
        self.page, self.answer = page, answer
        super().__init__(*connection)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the page was closed while its answer was on the way
            super().handle()

    def do_GET(self) -> None:
        try:
            self._check_host()
            if self.path not in ("/", "/index.html"):
                raise Refused(404, f"there is no {self.path[:50]}")
        except Refused as refused:
            self._send_json(refused.status, {"error": str(refused)})
        else:
            self._send(200, "text/html; charset=utf-8", self.page.html.encode())

    def do_POST(self) -> None:
        try:
            self._check_host()
            self._check_origin()
            answer = self.answer(self.path, self._read_question())
        except Refused as refused:
            self._send_json(refused.status, {"error": str(refused)})
            if refused.status == 413:
                self._skip_body()
        else:
            if isinstance(answer, dict):
                self._send_json(200, answer)
            else:
                self._send_lines(answer)

    def _check_host(self) -> None:
        """Raise Refused for a request to another host name (DNS rebinding)."""
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            raise Refused(403, f"ask for http://127.0.0.1:{port}/")

    def _check_origin(self) -> None:
        """Raise Refused for a POST from another site's page, or without an Origin."""
        if self.headers.get("Origin") != f"http://{self.headers['Host']}":
            raise Refused(403, "only the page itself may ask")

    def _read_question(self) -> Any:
        """The request's body, read as JSON. Raises Refused."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "a question says how long it is")
        if int(length[:20]) > MAX_BODY:
            raise Refused(413, f"a question has at most {MAX_BODY:,} bytes; shorten the prompt")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(400, "a question is JSON") from error

    def _skip_body(self) -> None:
        """Read the rest of the body: the answer is lost if the connection closes before."""
        for _ in range(0, MAX_SKIPPED, MAX_BODY):
            if not self.rfile.read(MAX_BODY):
                return

    def _send_json(self, status: int, answer: dict[str, Any]) -> None:
        self._send(status, "application/json", _as_json(answer))

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self._send_head(status, content_type, {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _send_lines(self, answers: Answers) -> None:
        """Send each answer as a line; closing the connection ends the response (HTTP/1.0).

        A refusal in mid-stream becomes the last line, {"error": …}. If the page disconnects, the generator is
        closed.
        """
        self._send_head(200, "application/x-ndjson")
        with contextlib.closing(answers):
            try:
                for answer in answers:
                    self.wfile.write(_as_json(answer) + b"\n")
            except Refused as refused:
                self.wfile.write(_as_json({"error": str(refused)}) + b"\n")

    def _send_head(self, status: int, content_type: str, more: dict[str, str] | None = None) -> None:
        headers = {
            "Content-Type": content_type,
            "Content-Security-Policy": self.page.policy + "; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        self.send_response(status)
        for name, value in (headers | (more or {})).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the terminal should show the address, not each request."""


def _as_json(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, allow_nan=False).encode()
