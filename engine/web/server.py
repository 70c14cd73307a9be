"""A local web server for one page: loopback only, host and origin checked."""

import base64
import hashlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from engine.errors import UserError

PAGE = Path(__file__).resolve().parents[1] / "explore/page"
SCRIPTS = ("sampling.js", "attention.js", "page.js", "events.js")
MAX_BODY = 100_000  # bytes of a request


class Refused(Exception):
    """A request that is not answered: HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def build_page(data: dict[str, Any]) -> tuple[str, str]:
    """The page as one HTML text that needs nothing else, and its Content-Security-Policy.

    `data` travels as JSON that cannot end its element; only our own script and style, named by hash, may run.
    """
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    parts = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{parts}\n}})();\n'
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    text = (PAGE / "page.html").read_text(encoding="utf-8")
    content = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")
    for mark, part in (("POLICY", policy), ("STYLE", style), ("SCRIPT", script), ("DATA", content)):
        before, after = text.split(f"@@{mark}@@")
        text = before + part + after
    return text, policy


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def make_server(explorer: Any, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 (`port` 0: any free one), not yet serving. Raises UserError for a taken port."""
    page, policy = build_page({"model": explorer.describe()})
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler_of(explorer, page.encode(), policy))
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be used ({error}); choose another with --port") from error
    server.daemon_threads = True
    return server


def handler_of(explorer: Any, page: bytes, policy: str) -> Callable[..., BaseHTTPRequestHandler]:
    """The class that answers each request."""

    class Handler(BaseHTTPRequestHandler):
        """GET is answered with the page, POST with the explorer's answer."""

        timeout = 30  # seconds that a client may take to send what it announced

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                self.close_connection = True  # the page was closed while its answer was on the way

        def do_GET(self) -> None:
            self._respond(self._page)

        def do_POST(self) -> None:
            self._respond(self._question)

        def _page(self) -> tuple[str, bytes]:
            if self.path not in ("/", "/index.html"):
                raise Refused(404, f"there is no {self.path[:50]}")
            return "text/html; charset=utf-8", page

        def _question(self) -> tuple[str, bytes]:
            host = self.headers.get("Host", "")
            if self.headers.get("Origin") != f"http://{host}":
                raise Refused(403, "only the page itself may ask")
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()):
                raise Refused(411, "a question says how long it is")
            if int(length[:20]) > MAX_BODY:
                raise Refused(413, f"a question has at most {MAX_BODY:,} bytes; shorten the prompt")
            try:
                question = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError) as error:
                raise Refused(400, "a question is JSON") from error
            return "application/json", json.dumps(explorer.answer(self.path, question)).encode()

        def _respond(self, answer: Callable[[], tuple[str, bytes]]) -> None:
            """Send the answer, or the reason why there is none."""
            status = 200
            try:
                port = self.server.server_address[1]
                if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
                    raise Refused(403, f"ask for http://127.0.0.1:{port}/")
                kind, body = answer()
            except Refused as refused:
                status, kind, body = (
                    refused.status,
                    "application/json",
                    json.dumps({"error": str(refused)}).encode(),
                )
                self.close_connection = True  # what is left of the request stays unread
            self.send_response(status)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("Content-Security-Policy", policy + "; frame-ancestors 'none'"),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"),
                ("Cache-Control", "no-store"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing: the terminal shows the address, not every slider's move."""

    return Handler
