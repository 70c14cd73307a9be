"""explore.py and its server: what it answers, whom it refuses, what it survives; and plot.py --attention."""

import base64
import http.client
import json
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import ROOT
from support.explorers import make_explorer

import convert
import explore
import plot
from engine.explore.explorer import Explorer
from engine.web.server import MAX_BODY, build_page, make_server
from engine.weights.checkpoint import save_checkpoint


def save_run(explorer: Explorer, run: Path) -> Path:
    """The explorer's model as a run with one checkpoint."""
    meta = {"step": 1, "model": vars(explorer.model.config), "tokenizer": explorer.tokenizer.to_dict()}
    save_checkpoint(run, meta, {"model": dict(explorer.model.named_parameters())})
    return run


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Explorer, int]]:
    """An explorer, and the port at which it answers."""
    explorer = make_explorer()
    server = make_server(explorer, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield explorer, server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def send(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """A request as the page makes it, but for the headers given (an empty one is left out)."""
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
    status, content = send(port, "POST", path, json.dumps(question).encode())
    return status, json.loads(content)


def test_an_answer_holds_the_models_own_numbers(served: tuple[Explorer, int]) -> None:
    explorer, port = served
    status, seen = ask(port, "/inspect", {"text": "To be, or not"})
    assert status == 200
    ids = torch.from_numpy(explorer.tokenizer.encode("To be, or not"))
    assert seen["ids"] == ids.tolist()
    logits = np.frombuffer(base64.b64decode(seen["logits"]), dtype="<f4")
    expected = explorer.model(ids[None])[0][0, -1].detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    weights = np.frombuffer(base64.b64decode(seen["attention"]), dtype="<u2").reshape(2, 2, -1) / 65535
    T = len(ids)
    assert weights.shape[-1] == T * (T + 1) // 2
    rows = [weights[..., i * (i + 1) // 2 : (i + 1) * (i + 2) // 2].sum(axis=-1) for i in range(T)]
    np.testing.assert_allclose(rows, 1, atol=T / 65535)


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    run = save_run(make_explorer(), tmp_path / "run")
    command = [
        sys.executable,
        str(ROOT / "explore.py"),
        str(run),
        "--no-open",
        "--device=cpu",
        "--prompt",
        "To be",
    ]
    ends_on_interrupt = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # not so behind a shell's "&"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=ends_on_interrupt, **pipes) as process:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/#To%20be", line)
        assert found, line
        assert send(int(found[1]), "GET", "/")[0] == 200
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and errors == ""


def test_a_reader_that_leaves_early_is_let_go(served: tuple[Explorer, int], capfd) -> None:
    _, port = served
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            # Close with a reset.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    assert send(port, "GET", "/")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_full_context_drops_its_older_half_as_sampling_does(served: tuple[Explorer, int]) -> None:
    explorer, port = served
    ids = [index % explorer.n_tokens for index in range(33)]
    _, seen = ask(port, "/inspect", {"ids": ids})
    assert seen["ids"] == ids[-16:] and seen["dropped"] == ids[:17]
    logits = np.frombuffer(base64.b64decode(seen["logits"]), dtype="<f4")
    prompt = torch.tensor([ids[:32]])
    with torch.no_grad():
        drawn = explorer.model.generate(prompt, 2, temperature=0)[0, -2:].tolist()
        _, seen = ask(port, "/inspect", {"ids": [*ids[:32], drawn[0]]})
        logits = np.frombuffer(base64.b64decode(seen["logits"]), dtype="<f4")
    assert int(logits.argmax()) == drawn[1]


def test_layers_and_neighbours_answer(served: tuple[Explorer, int]) -> None:
    _, port = served
    status, answer = ask(port, "/layers", {"ids": [1, 2, 3], "position": 2})
    assert status == 200 and [len(row) for row in answer["layers"]] == [5, 5, 5]
    status, answer = ask(port, "/neighbours", {"id": 7})
    assert status == 200 and 7 not in [index for index, _ in answer["neighbours"]]


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
    served, headers: dict[str, str], status: int
) -> None:
    _, port = served
    found, content = send(port, "POST", "/inspect", b'{"text": "hello"}', **headers)
    assert found == status and json.loads(content)["error"]
    if "Host" in headers:
        assert send(port, "GET", "/", **headers)[0] == 403


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"text": ""}',
        b'{"text": 5}',
        b'{"text": "\\ud800"}',
        '{"text": "漢"}'.encode(),
        b'{"ids": []}',
        b'{"ids": [true]}',
        b'{"ids": [-1]}',
        b'{"ids": [1.5]}',
        b'{"ids": [99999]}',
        b'{"ids": "abc"}',
        b'{"ids": {"0": 1}}',
        json.dumps({"ids": [1] * 5000}).encode(),
    ],
)
def test_what_is_wrong_with_a_question_is_said_in_a_sentence(
    served: tuple[Explorer, int], body: bytes
) -> None:
    _, port = served
    status, content = send(port, "POST", "/inspect", body)
    assert status == 400 and len(json.loads(content)["error"]) > 10
    assert ask(port, "/inspect", {"text": "still here"})[0] == 200


@pytest.mark.parametrize(
    ("path", "question"),
    [
        ("/layers", {"ids": [1, 2], "position": 2}),
        ("/layers", {"ids": [1] * 33, "position": 0}),
        ("/layers", {"ids": [1, 2]}),
        ("/neighbours", {}),
        ("/neighbours", {"id": -1}),
    ],
)
def test_questions_beyond_the_text_are_refused(
    served: tuple[Explorer, int], path: str, question: dict
) -> None:
    assert ask(served[1], path, question)[0] == 400


def test_noise_on_the_socket_does_not_end_the_server(served: tuple[Explorer, int]) -> None:
    _, port = served
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
    assert send(port, "GET", "/../model.py")[0] == 404
    assert ask(port, "/elsewhere", {})[0] == 404


def test_the_page_is_one_file_and_names_its_script_by_hash(served: tuple[Explorer, int]) -> None:
    status, content = send(served[1], "GET", "/")
    page = content.decode()
    assert status == 200
    assert (
        not re.search(r"(src|href)=[\"']?(https?:|//|/)", page)
        and "@import" not in page
        and "innerHTML" not in page
    )
    assert page.count("<script") == 2 and "script-src 'sha256-" in page


def test_text_of_the_model_cannot_leave_its_element() -> None:
    page, _ = build_page({"model": {"tokens": ["</script><script>alert(1)</script>", "<!--", "\u2028"]}})
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    assert json.loads(data)["model"]["tokens"][0] == "</script><script>alert(1)</script>"
    assert page.count("<script") == 2


def test_the_page_as_a_file_holds_all_answers_about_its_prompt(tmp_path: Path) -> None:
    run = save_run(make_explorer(), tmp_path / "run")
    explore.main([str(run), "--html", str(tmp_path / "page.html"), "--prompt", "To be", "--device", "cpu"])
    page = (tmp_path / "page.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert len(data["answers"]["layers"]) == 5 and len(data["answers"]["inspect"]["ids"]) == 5
    assert set(data["answers"]["neighbours"]) == {str(index) for index in data["answers"]["inspect"]["ids"]}


def test_wrong_commands_get_one_line(tmp_path: Path, fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no run in out/" in fails(explore.main)
    assert "holds no checkpoint" in fails(explore.main, "nowhere")
    run = str(save_run(make_explorer(), tmp_path / "run"))
    assert "--prompt: " in fails(explore.main, run, "--html", "page.html", "--prompt", "漢")
    assert "cannot be written" in fails(explore.main, run, "--html", "no/such/folder/page.html")
    assert "port 99999 cannot be used" in fails(explore.main, run, "--port", "99999")
    assert "--attention needs a text" in fails(plot.main, run, "--attention", "")


def test_a_folder_in_hugging_faces_layout_is_explored_like_the_run_that_it_came_from(tmp_path: Path) -> None:
    run = save_run(make_explorer(), tmp_path / "run")
    convert.main([str(run), "--to", "hf", str(tmp_path / "folder")])
    ours, theirs = (explore.open_explorer(str(tmp_path / name), "best", "cpu") for name in ("run", "folder"))
    assert ours.describe()["tokens"] == theirs.describe()["tokens"][: ours.n_tokens]
    question = {"text": "To be, or not"}
    mine, other = (explorer.answer("/inspect", question) for explorer in (ours, theirs))
    assert mine["ids"] == other["ids"] and mine["surprise"] == pytest.approx(other["surprise"])


def test_plot_draws_the_attention_of_every_head(tmp_path: Path) -> None:
    from matplotlib import image

    run = save_run(make_explorer(), tmp_path / "run")
    plot.main([str(run), "--attention", "To be, or <b>not</b>"])
    picture = image.imread(run / "attention.png")
    assert picture.ndim == 3 and min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05


def test_gpt2s_shape_and_a_padded_vocabulary_are_answered_without_the_padding() -> None:
    explorer = make_explorer(vocab_size=128, n_layer=12, n_head=12, n_embd=24, block_size=1024)
    assert explorer.n_tokens == explorer.tokenizer.vocab_size < 128
    seen = explorer.answer("/inspect", {"text": "to be " * 60})
    assert len(seen["ids"]) == 256 and len(base64.b64decode(seen["logits"])) == 4 * explorer.n_tokens
    assert len(base64.b64decode(seen["attention"])) == 2 * 144 * 256 * 257 // 2
