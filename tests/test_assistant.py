"""The stages of an assistant, by their real configuration files, in a tiny setting."""

import json
import re
from pathlib import Path

import pytest
from support.commands import ROOT, command
from support.random_assistants import write_preferences

import chat
import eval as eval_script
import train as train_script
import tune as tune_script
from engine.data.dataset import open_dataset
from engine.preparation import recipes
from engine.weights.checkpoint import open_checkpoint

BASE, CHAT, PREFERENCE, REWARD_MODEL, PPO, REWARD = (
    str(ROOT / "configs" / f"assistant_{stage}.py")
    for stage in ("base", "chat", "preference", "reward_model", "ppo", "reward")
)
FEW = (
    "--device=cpu",
    "--threads=1",
    "--max_iters=3",
    "--eval_iters=1",
    "--batch_size=4",
    "--sample_tokens=5",
)
TINY = ("--n_layer=1", "--n_head=2", "--n_embd=16")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; the texts that are made in it are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipes, "PROSE_LINES", 2000)
    monkeypatch.setattr(recipes, "CONVERSATIONS", 1500)
    return tmp_path


def test_every_stage_runs_from_the_one_before(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_script.main([BASE, *FEW, *TINY]) == 0
    assert train_script.main([CHAT, *FEW]) == 0
    output = capsys.readouterr().out
    assert "model: out/assistant_base, " in output and "<|assistant|>" in output
    config = open_checkpoint(Path("out/assistant_chat"), "last").model_config()
    assert (config.vocab_size, config.n_embd, config.block_size, config.separator) == (262, 16, 256, 256)

    tasks = ["arithmetic", "calculator", "unknown"]
    options = ["--limit=6", "--device=cpu", "--threads=1"]
    eval_script.main(["out/assistant_chat", "--tasks", *tasks, *options, "--output=figures.json"])
    figures = json.loads(Path("figures.json").read_text())
    assert {name: figures[name]["problems"] for name in tasks} == dict.fromkeys(tasks, 6)
    eval_script.main(["out/assistant_base", "--tasks", "arithmetic", "facts", *options])
    assert len(re.findall(r"arithmetic +ended +\d", capsys.readouterr().out)) == 2

    lines = iter(["2 + 2?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    chat.main(["--device=cpu", "--max_new_tokens=4"])
    assert capsys.readouterr().out.startswith("out/assistant_chat: ")


def test_every_stage_of_tuning_runs_from_the_one_before(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_script.main([BASE, *FEW, *TINY]) == 0
    assert train_script.main([CHAT, *FEW]) == 0
    pairs = f"--preferences={write_preferences(40)}"
    few = ("--device=cpu", "--threads=1", "--max_iters=2", "--prompts=3", "--eval_prompts=4")
    for stage, options in (
        (PREFERENCE, [pairs]),
        (REWARD_MODEL, [pairs]),
        (PPO, ["--group=2"]),
        (REWARD, ["--group=2"]),
    ):
        assert tune_script.main([stage, *few, *options]) == 0
    output = capsys.readouterr().out
    for stage, before in (
        ("preference", "chat"),
        ("reward_model", "chat"),
        ("ppo", "chat"),
        ("reward", "chat"),
    ):
        assert f"run: out/assistant_{stage}\nmodel: out/assistant_{before}, " in output

    eval_script.main(
        ["out/assistant_reward", "--tasks", "arithmetic", "--limit=3", "--device=cpu", "--threads=1"]
    )
    lines = iter(["2 + 2?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    chat.main(["--device=cpu", "--max_new_tokens=4"])
    assert "out/assistant_reward: " in capsys.readouterr().out


def test_a_base_is_not_asked_what_only_an_assistant_can_answer(small: Path) -> None:
    assert train_script.main([BASE, *FEW, *TINY, "--max_iters=1"]) == 0
    finished = command(small, "eval.py", "out/assistant_base", "--tasks", "calculator", "--device=cpu")
    assert finished.returncode == 2 and "calculator is a task for assistants" in finished.stderr


def test_the_data_sets_of_the_assistant_are_the_same_at_every_call(small: Path) -> None:
    prints = []
    for folder in ("one", "two"):
        for name in ("assistant_base", "assistant_chat"):
            recipes.prepare_recipe(name, lambda _: None, small / folder)
            prints.append(open_dataset(name, 256, small / folder).fingerprint)
    assert prints[:2] == prints[2:]
    data = open_dataset("assistant_chat", 256, small / "one")
    assert data.meta["conversations"]["longest"] <= 256 and data.meta["conversations"]["cut"] == 0
