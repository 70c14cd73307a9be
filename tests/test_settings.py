"""Settings: where they come from, what they may be, and what is said about those that may not."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import ROOT, command

from engine.command_line import read_settings
from engine.errors import UserError
from engine.settings import FROM_DATA, TrainSettings
from engine.shape import model_config
from model import GPTConfig


def settings(*arguments: str, on_cpu: bool = False) -> TrainSettings:
    return read_settings(TrainSettings, arguments, "").settings(on_cpu=on_cpu)


def test_defaults_then_file_then_cpu_part_then_command_line(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text("n_layer = 3\nn_head = 4\nn_embd = 64\ncpu = dict(n_head=2, n_embd=32)\n")
    assert settings(str(file)).n_layer == 3 and settings(str(file)).block_size == 1024
    assert (settings(str(file)).n_head, settings(str(file), on_cpu=True).n_head) == (4, 2)
    assert settings(str(file), "--n_embd=128", on_cpu=True).n_embd == 128


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--learning_rate=3e-4"], "learning_rate", 3e-4),
        (["--learning-rate", "1"], "learning_rate", 1.0),
        (["--weight_decay=1e0"], "weight_decay", 1.0),
        (["--max-iters", "500"], "max_iters", 500),
        (["--min_lr=none"], "min_lr", None),
        (["--eval_iters=None"], "eval_iters", None),
        (["--compile=False"], "compile", False),
        (["--compile=auto"], "compile", "auto"),
        (["--bias=true"], "bias", True),
        (["--out_dir=out/x"], "out_dir", "out/x"),
        (["--max_iters=1e4"], "max_iters", 10_000),
    ],
)
def test_values_on_the_command_line(arguments: list[str], name: str, value: object) -> None:
    found = getattr(settings(*arguments), name)
    assert found == value and type(found) is type(value)


def test_a_file_may_hold_code_and_private_names(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(
        "import math\n_width = 16\ndef double(x):\n    return 2 * x\nn_embd = double(_width) * 3\n"
    )
    assert settings(str(file)).n_embd == 96


def test_nanogpt_settings_without_a_place_here_are_accepted_with_a_remark(tmp_path: Path) -> None:
    file = tmp_path / "nano.py"
    file.write_text("always_save_checkpoint = False\nn_layer = 2\n")
    sources = read_settings(TrainSettings, [str(file), "--backend=nccl"], "")
    assert sources.settings(on_cpu=False).n_layer == 2
    assert len(sources.remarks) == 2 and "always_save_checkpoint" in " ".join(sources.remarks)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lerning_rate=1"], "did you mean learning_rate"),
        (["--lr=1"], "did you mean learning_rate"),
        (["--n_layer=two"], "whole number"),
        (["--n_layer=2.5"], "whole number"),
        (["--bias=maybe"], "True or False"),
        (["--learning_rate=nan"], "learning_rate"),
        (["--learning_rate=inf"], "finite"),
        (["--min_lr=1"], "above learning_rate"),
        (["--init_from=memory"], "it can be scratch, resume, auto, gpt2"),
        (["--eval_only=True"], "--init_from=resume"),
        (["stray", "words"], "no option"),
        (["missing.py"], "no configuration file"),
        (["--seed"], "expected one argument"),
    ],
)
def test_wrong_command_lines_are_one_sentence(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings(*arguments)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("lerning_rate = 1\n", "did you mean learning_rate"),
        ("n_layer = '2'\n", "n_layer must be a whole number"),
        ("n_layer = True\n", "n_layer must be a whole number"),
        ("compile = 1\n", "compile must be"),
        ("cpu = 3\n", "cpu must be a dictionary"),
        ("cpu = dict(n_layers=3)\n", "cpu part: n_layers"),
        ("cpu = dict(device='cpu')\n", "cannot stand in the cpu part"),
        ("n_layer = = 2\n", "does not run: SyntaxError"),
        ("raise RuntimeError('no')\n", "does not run: RuntimeError"),
    ],
)
def test_wrong_files_are_one_sentence_that_names_them(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(content)
    with pytest.raises(UserError, match=said) as error:
        settings(str(file))
    assert "wrong.py" in str(error.value) and "\n" not in str(error.value)


def test_every_configuration_that_ships_is_valid() -> None:
    files = sorted((ROOT / "configs").glob("*.py"))
    assert len(files) >= 3
    for file in files:
        for on_cpu in (True, False):
            assert settings(str(file), on_cpu=on_cpu).dataset


def test_settings_of_the_model_are_the_fields_of_its_configuration() -> None:
    """Names, types and defaults, though only the text of model.py is read; `--help` has its comments."""
    ours = {field.name: field for field in dataclasses.fields(TrainSettings)}
    fields = [field for field in dataclasses.fields(GPTConfig) if field.name not in FROM_DATA]
    assert len(fields) > 10
    for field in fields:
        assert (ours[field.name].type, ours[field.name].default) == (field.type, field.default)
    assert "number of blocks" in command(ROOT, "train.py", "--help").stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_head": 5}, "not divisible by n_head 5"),
        ({"dropout": 1.5}, "below 1"),
        ({"n_layer": 0}, "at least 1"),
    ],
)
def test_a_shape_that_no_model_has_is_one_sentence(change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        model_config(TrainSettings(**change), vocab_size=65)


def test_files_of_nanogpt_may_use_what_its_train_py_has(tmp_path: Path) -> None:
    """Its imports and its defaults, as its public configurations do; and floats that are whole."""
    file = tmp_path / "nano.py"
    file.write_text(
        "wandb_run_name = 'r-' + str(time.time())\nwarmup_iters = 0.01 * max_iters\nbias = False\n"
    )
    sources = read_settings(TrainSettings, [str(file)], "")
    found = sources.settings(on_cpu=False)
    assert found.wandb_run_name.startswith("r-") and found.warmup_iters == 6000
    assert [name in " ".join(sources.remarks) for name in ("time", "max_iters")] == [True, True]
    file.write_text("warmup_iters = 0.03 * 10466\nvocab_size = 328\ngrad_clip = 0.0\nmax_iters = 1e6\n")
    sources = read_settings(TrainSettings, [str(file)], "")
    found = sources.settings(on_cpu=False)
    assert (found.warmup_iters, found.max_iters, found.grad_clip) == (314, 1_000_000, 0.0)
    assert [word in " ".join(sources.remarks) for word in ("rounded to 314", "vocab_size is ignored")] == [
        True
    ] * 2
    file.write_text("experiment_name = out_dir = 'theirs'\n")
    with pytest.raises(UserError, match=r"experiment_name is not a setting.*begins with _"):
        settings(str(file))
    file.write_text("n_layer = nothing\n")
    with pytest.raises(UserError, match="name 'nothing' is not defined"):
        settings(str(file))


def test_a_file_beside_train_py_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings("configs/tiny.py").n_embd == 32


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_help_and_mistakes_are_answered_without_importing_torch(script: str) -> None:
    """By an import hook: torch is never asked for. Each option stands once, under a heading."""
    probe = f"""
import runpy, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] not in ("torch", "numpy"), name
sys.meta_path.insert(0, NoTorch())
sys.argv = [{str(ROOT / script)!r}, sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    for argument, status in (("--help", 0), ("--sed=3", 2)):
        line = [sys.executable, "-c", probe, argument]
        finished = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert finished.returncode == status, finished.stderr
        assert ("machine:" in finished.stdout and finished.stdout.count("\n  --seed ") == 1) or (
            "did you mean seed" in finished.stderr
        )
