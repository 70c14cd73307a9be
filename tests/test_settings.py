"""Settings: where they come from, what they may be, and what is said about those that may not."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import ROOT, command

from engine.command_line import read_settings
from engine.errors import UserError
from engine.settings import TrainSettings


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
        (["--lerning_rate=1"], "learning_rate"),
        (["--n_layer=two"], "whole number"),
        (["--n_layer=2.5"], "whole number"),
        (["--bias=maybe"], "True, False"),
        (["--dropout=1.5"], "below 1"),
        (["--learning_rate=nan"], "learning_rate"),
        (["--learning_rate=inf"], "finite"),
        (["--n_head=5"], "n_embd 768 is not divisible by n_head 5"),
        (["--min_lr=1"], "above learning_rate"),
        (["--init_from=memory"], "it can be scratch, resume, auto, gpt2"),
        (["--eval_only=True"], "--init_from=resume"),
        (["stray", "words"], "no setting"),
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


def test_help_lists_every_setting_without_importing_torch() -> None:
    finished = command(ROOT, "train.py", "--help")
    assert finished.returncode == 0
    for name in TrainSettings.__dataclass_fields__:
        assert f"--{name}" in finished.stdout
    probe = "import sys, train\ntry: train.main(['--help'])\nexcept SystemExit: pass\n"
    probe += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True).returncode == 0
