"""A web server for pages and programs on this machine, on the loopback address.

    server = make_server({"/": page}, answer, port=0)
    serve(server, "the page", "", open_browser=True)

GET returns a page. Anything else goes to `answer(path, question)`, from a thread for each request: the JSON
body of a POST as the question, None for a GET. It returns a dictionary, sent as JSON, or a generator of them,
sent as server-sent events as they come. It refuses by `raise Refused(400, "the prompt is empty")`.

Host and Origin must be the server's own: this keeps out scripts of other sites and DNS rebinding. Programs,
which send no Origin, are answered where `programs` says so. A body has at most MAX_BODY bytes.
"""

import contextlib
import json
import webbrowser
from collections.abc import Callable, Generator, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any

from engine.errors import UserError
from engine.web.page import Page

MAX_BODY = 100_000  # bytes of a question
MAX_SKIPPED = 100 * MAX_BODY  # bytes of a longer one that are read after its refusal
NOTHING = "default-src 'none'"  # the policy of what is no page
SECONDS_TO_SEND = 30  # that a client may take to send what it announced, or to take what it is sent

Answers = Generator[dict[str, Any], None, None]
Answer = Callable[[str, Any], dict[str, Any] | Answers]


class Refused(Exception):
    """A refused request: an HTTP status, a sentence for people, and a code for programs."""

    def __init__(self, status: int, sentence: str, code: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.code = status, code

    def content(self) -> dict[str, Any]:
        """The refusal as OpenAI's servers write theirs."""
        error = {"message": str(self), "type": "invalid_request_error", "param": None, "code": self.code}
        return {"error": error}


def make_server(
    pages: Mapping[str, Page], answer: Answer, port: int, programs: bool = False
) -> ThreadingHTTPServer:
    """A server at `port` (0: any free one), not yet serving. Raises UserError."""
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, pages, answer, programs))
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be used ({error}); choose another with --port") from error


def serve(server: HTTPServer, name: str, place: str, open_browser: bool) -> None:
    """Print where `name` is and answer until Ctrl-C. `place` follows the server's address."""
    address = f"http://127.0.0.1:{server.server_port}/{place}"
    print(f"{name} is at {address} (Ctrl-C ends)", flush=True)
    if open_browser:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Handles one request, in its constructor, as `socketserver` requires."""

    timeout = SECONDS_TO_SEND

    def __init__(self, pages: Mapping[str, Page], answer: Answer, programs: bool, *connection: Any) -> None:
        self.pages, self.answer, self.programs = pages, answer, programs
        super().__init__(*connection)

    def handle(self) -> None:
        """Answer the request, unless its connection breaks."""
        with contextlib.suppress(ConnectionError):  # the page was closed while its answer was on the way
            super().handle()

    def do_GET(self) -> None:
        """Send a page, or what `answer` has to say."""
        page = self.pages.get("/" if self.path == "/index.html" else self.path)
        self._respond(lambda: page or self.answer(self.path, None))

    def do_POST(self) -> None:
        """Answer a question."""
        self._respond(lambda: self.answer(self.path, self._read_question()))

    def _respond(self, find: Callable[[], Page | dict[str, Any] | Answers]) -> None:
        try:
            self._check_host()
            found = find()
        except Refused as refused:
            self._send(refused.status, "application/json", _as_json(refused.content()))
            if refused.status == 413:
                self._skip_body()
            return
        if isinstance(found, Page):
            self._send(200, "text/html; charset=utf-8", found.html.encode(), found.policy)
        elif isinstance(found, dict):
            self._send(200, "application/json", _as_json(found))
        else:
            self._send_events(found)

    def _check_host(self) -> None:
        """Raise Refused for a request to another host name (DNS rebinding)."""
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            raise Refused(403, f"ask for http://127.0.0.1:{port}/")

    def _read_question(self) -> Any:
        """A POST's body, read as JSON. Raises Refused.

        Pages of other sites may not ask, nor programs where `programs` does not say so.
        """
        origin = self.headers.get("Origin")
        if origin != f"http://{self.headers['Host']}" and not (self.programs and origin is None):
            raise Refused(403, "only the page itself may ask")
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

    def _send(self, status: int, content_type: str, body: bytes, policy: str = NOTHING) -> None:
        self._send_head(status, content_type, policy, len(body))
        self.wfile.write(body)

    def _send_events(self, answers: Answers) -> None:
        """Send each answer as an event, and [DONE]; closing the connection ends the response (HTTP/1.0).

        A refusal becomes the last event. If the reader disconnects, the generator is closed.
        """
        self._send_head(200, "text/event-stream", NOTHING)
        with contextlib.closing(answers):
            end = b"[DONE]"
            try:
                for answer in answers:
                    self.wfile.write(b"data: " + _as_json(answer) + b"\n\n")
            except Refused as refused:
                end = _as_json(refused.content())
            self.wfile.write(b"data: " + end + b"\n\n")

    def _send_head(self, status: int, content_type: str, policy: str, length: int | None = None) -> None:
        headers = {
            "Content-Type": content_type,
            "Content-Security-Policy": policy + "; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        self.send_response(status)
        if length is not None:
            headers["Content-Length"] = str(length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the terminal should show the address, not each request."""


def _as_json(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, allow_nan=False).encode()
