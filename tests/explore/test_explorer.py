"""explore.py and what it stands on: the explorer's answers, its command, its page as a file."""

import base64
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.explorers import GatedMLP, NoAttention, make_explorer, save_run
from support.serving import ask, command_serving, send, serving

import convert
import explore
from engine import shape
from engine.errors import UserError
from engine.explore.explorer import Explorer
from engine.explore.pages import explorer_server, open_explorer, page_with_answers, short_name
from engine.generation import Sampling, generate
from model import GPT, CausalSelfAttention, GPTConfig


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Explorer, int]]:
    """An explorer, and the port at which it answers."""
    explorer = make_explorer()
    with serving(explorer_server(explorer, 0)) as port:
        yield explorer, port


def test_an_answer_holds_the_models_own_numbers(served: tuple[Explorer, int]) -> None:
    explorer, port = served
    status, seen = ask(port, "/inspect", {"text": "To be, or not"})
    assert status == 200
    ids = torch.from_numpy(explorer.tokenizer.encode("To be, or not"))
    assert seen["ids"] == ids.tolist()
    logits = np.frombuffer(base64.b64decode(seen["logits"]), dtype="<f4")
    expected = explorer.model(ids[None])[0, -1].detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    weights = np.frombuffer(base64.b64decode(seen["attention"]), dtype="<u2").reshape(2, 2, -1) / 65535
    T = len(ids)
    assert weights.shape[-1] == T * (T + 1) // 2
    rows = [weights[..., i * (i + 1) // 2 : (i + 1) * (i + 2) // 2].sum(axis=-1) for i in range(T)]
    np.testing.assert_allclose(rows, 1, atol=T / 65535)


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    run = save_run(make_explorer(), tmp_path / "run")
    options = ["--no-open", "--device=cpu", "--prompt", "To be"]
    with command_serving("explore.py", str(run), *options) as line:
        found = re.fullmatch(r"run is at http://127\.0\.0\.1:(\d+)/#To%20be \(Ctrl-C ends\)\n", line)
        assert found, line
        assert send(int(found[1]), "GET", "/")[0] == 200


def test_a_full_context_drops_its_older_half_as_sampling_does(served: tuple[Explorer, int]) -> None:
    explorer, port = served
    ids = [index % explorer.n_tokens for index in range(33)]
    _, seen = ask(port, "/inspect", {"ids": ids})
    assert seen["ids"] == ids[-16:] and seen["dropped"] == ids[:17]
    prompt = torch.tensor([ids[:32]])
    with torch.no_grad():
        drawn = generate(explorer.model, prompt, 2, Sampling(temperature=0))[0, -2:].tolist()
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
    "body",
    [
        b"[]",
        b"{",
        b'{"text": ""}',
        b'{"text": 5}',
        b'{"text": "half a character: \\ud800"}',
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
    assert status == 400 and len(json.loads(content)["error"]["message"]) > 10
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


def data_of(page: str) -> dict[str, Any]:
    """What a page's script reads."""
    found = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_page_as_a_file_holds_all_answers_about_its_prompt(tmp_path: Path) -> None:
    run = save_run(make_explorer(), tmp_path / "run")
    explore.main([str(run), "--html", str(tmp_path / "page.html"), "--prompt", "To be", "--device", "cpu"])
    data = data_of((tmp_path / "page.html").read_text())
    assert data["model"]["name"] == "run"  # not the machine's path
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
    assert "--prompt is not UTF-8" in fails(explore.main, run, "--prompt", "caf\udce9")


def test_a_model_is_called_by_its_folder_without_the_path_to_it(tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "out/my run"
    run.mkdir(parents=True)
    (run / "ckpt.pt").touch()
    monkeypatch.chdir(run)
    for source in (str(run), ".", str(run / "ckpt.pt"), "../my run/"):
        assert short_name(source) == "my run"
    assert short_name("gpt2") == "gpt2"
    assert short_name("owner/name@0123") == "owner/name@0123"


def test_a_folder_in_hugging_faces_layout_is_explored_like_the_run_that_it_came_from(tmp_path: Path) -> None:
    run = save_run(make_explorer(), tmp_path / "run")
    convert.main([str(run), "--to", "hf", str(tmp_path / "folder")])
    ours, theirs = (open_explorer(str(tmp_path / name), "best", "cpu") for name in ("run", "folder"))
    assert ours.describe()["tokens"] == theirs.describe()["tokens"][: ours.n_tokens]
    question = {"text": "To be, or not"}
    mine, other = (explorer.answer("/inspect", question) for explorer in (ours, theirs))
    assert mine["ids"] == other["ids"] and mine["surprise"] == pytest.approx(other["surprise"])


def test_gpt2s_shape_and_a_padded_vocabulary_are_answered_without_the_padding() -> None:
    explorer = make_explorer(vocab_size=128, n_layer=12, n_head=12, n_embd=24, block_size=1024)
    assert explorer.n_tokens == explorer.tokenizer.vocab_size < 128
    seen = explorer.answer("/inspect", {"text": "to be " * 60})
    assert len(seen["ids"]) == 256 and len(base64.b64decode(seen["logits"])) == 4 * explorer.n_tokens
    assert len(base64.b64decode(seen["attention"])) == 2 * 144 * 256 * 257 // 2


def changed(change: Callable[[GPT], object]) -> Explorer:
    """The explorer of a model that was changed."""
    explorer = make_explorer()
    change(explorer.model)
    return Explorer("changed", explorer.model, explorer.tokenizer)


def test_a_model_with_parameters_of_its_own_is_explored_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_explorer().describe()["parameters"]
    monkeypatch.setattr("model.MLP", GatedMLP)
    shape.count_parameters.cache_clear()  # of what the code was before
    explorer = make_explorer()
    counted = explorer.describe()["parameters"]
    assert counted == plain | {"other": 2 * 16 * 16}
    assert sum(counted.values()) == sum(parameter.numel() for parameter in explorer.model.parameters())
    answers = data_of(page_with_answers(explorer, "To be"))["answers"]
    assert answers["inspect"]["attention"] and len(answers["layers"][0]["layers"]) == 3


@pytest.mark.parametrize(("without", "layers"), [([0], (1, 2)), ([0, 1], (0, 0))])
def test_layers_without_attention_are_left_out(without: list[int], layers: tuple[int, int]) -> None:
    def take_attention_out(model: GPT) -> None:
        for index in without:
            model.blocks[index].attention = NoAttention()

    explorer = changed(take_attention_out)
    described = explorer.describe()
    assert (described["layers"], described["heads"]) == layers and described["blocks"] == 2
    seen = explorer.answer("/inspect", {"text": "To be"})
    assert len(base64.b64decode(seen["attention"])) == 2 * layers[0] * layers[1] * 15
    assert len(explorer.answer("/layers", {"ids": [1, 2], "position": 1})["layers"]) == 3


def test_what_cannot_be_shown_is_said_when_the_model_is_opened() -> None:
    def more_heads(model: GPT) -> None:
        model.blocks[1].attention = CausalSelfAttention(GPTConfig(n_embd=16, n_head=8))

    with pytest.raises(UserError, match="layers have 2 and 8 heads"):
        changed(more_heads)
    with pytest.raises(UserError, match="changed predicts numbers that are not finite"):
        changed(lambda model: model.final_norm.weight.data.fill_(math.nan))
