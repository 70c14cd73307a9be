"""A page's server on a thread, and requests to it as the page makes them."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer


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
