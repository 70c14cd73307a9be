"""A page's server on a thread, and requests to it as the page makes them."""

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import HTTPServer

from support.commands import HANG, ROOT


@contextmanager
def serving(server: HTTPServer) -> Iterator[int]:
    """The port at which a server answers, until the end of the block."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def command_serving(script: str, *arguments: str) -> Iterator[str]:
    """The first line that a script of the project prints while it serves; Ctrl-C ends it without a word."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments],
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's "&" has it ignored
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline()
        finally:
            process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=HANG)[1]
    assert process.returncode == 0 and errors == ""


def send(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Status and content of the answer to a request with the page's headers, but for those given.

    A header that is given as "" is left out.
    """
    host = f"127.0.0.1:{port}"
    wanted = {"Host": host, "Origin": f"http://{host}", "Content-Length": str(len(body))} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in wanted.items():
        if value:
            connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def ask(port: int, path: str, question: object) -> tuple[int, dict]:
    """Status and answer to a question."""
    status, content = send(port, "POST", path, json.dumps(question).encode())
    return status, json.loads(content)
