"""docs/from-nanogpt.md, row by row: what worked with nanoGPT works here, or says how it is spelled now."""

import ast
import dataclasses
import io
import re
import shlex
from pathlib import Path

import pytest
import torch
from support.commands import ROOT
from support.random_models import random_gpt2, save_nanogpt

import sample
import train
from engine.command_line import read_settings
from engine.errors import UserError
from engine.preparation.recipes import RECIPES
from engine.settings import SampleSettings, TrainSettings
from engine.text.characters import CharTokenizer

PAGE = (ROOT / "docs" / "from-nanogpt.md").read_text(encoding="utf-8")

# nanoGPT's settings, by script.
TRAIN = """
out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint init_from wandb_log
wandb_project
wandb_run_name dataset gradient_accumulation_steps batch_size block_size n_layer n_head n_embd dropout bias
learning_rate max_iters weight_decay beta1 beta2 grad_clip decay_lr warmup_iters lr_decay_iters min_lr
backend device dtype compile
"""
SAMPLE = "init_from out_dir start num_samples max_new_tokens temperature top_k seed device dtype compile"


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its two header lines."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(cell: str) -> str:
    return re.fullmatch(r"`(.*)`", cell)[1]


SETTINGS = [
    (kind, *row)
    for kind, heading in ((TrainSettings, "Settings of train.py"), (SampleSettings, "Settings of sample.py"))
    for row in rows(heading)
]


def test_the_tables_hold_every_setting_of_nanogpt() -> None:
    for kind, names in ((TrainSettings, TRAIN), (SampleSettings, SAMPLE)):
        assert [code(row[1]) for row in SETTINGS if row[0] is kind] == names.split()


@pytest.mark.parametrize(
    ("kind", "name", "theirs", "ours", "difference"),
    SETTINGS,
    ids=[f"{row[0].__name__}-{row[1]}" for row in SETTINGS],
)
def test_a_setting_has_the_documented_default_and_takes_nanogpts_value(
    kind: type, name: str, theirs: str, ours: str, difference: str, tmp_path: Path
) -> None:
    name, value = code(name), ast.literal_eval(code(theirs))
    on_command_line = read_settings(kind, [f"--{name}={value}"], "")
    if ours == "ignored":
        assert difference and on_command_line.remarks[0].startswith(f"{name} is ignored: ")
        assert on_command_line.settings(on_cpu=False) == kind()
    else:
        default = {field.name: field.default for field in dataclasses.fields(kind)}[name]
        assert default == ast.literal_eval(code(ours))
        assert default == value or difference
        assert getattr(on_command_line.settings(on_cpu=False), name) == value
    if kind is TrainSettings:
        (tmp_path / "theirs.py").write_text(f"import time\n_started = time.time()\n{name} = {value!r}\n")
        from_file = read_settings(kind, [str(tmp_path / "theirs.py")], "")
        assert from_file.settings(on_cpu=False) == on_command_line.settings(on_cpu=False)


def parsed(command: str) -> tuple[str, list[str]]:
    """A script and its arguments, without what launches it."""
    words = shlex.split(command)
    position = next(index for index, word in enumerate(words) if word.endswith(".py"))
    assert words[0] in ("python", "torchrun") and all(word.startswith("--") for word in words[1:position])
    return words[position], words[position + 1 :]


COMMANDS = [(code(theirs), code(ours)) for theirs, ours in rows("Commands")]


@pytest.mark.parametrize(("theirs", "ours"), COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_of_nanogpt_works_or_gives_its_new_spelling(
    theirs: str, ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    script, arguments = parsed(ours)
    if script == "prepare.py":
        assert arguments[0] in RECIPES and parsed(theirs)[0] == f"data/{arguments[0]}/prepare.py"
        return
    kind = {"train.py": TrainSettings, "sample.py": SampleSettings}[script]
    expected = read_settings(kind, arguments, "").settings(on_cpu=False)
    old_script, old_arguments = parsed(theirs)
    assert old_script == script
    if any(word.startswith("config/") for word in old_arguments):
        with pytest.raises(UserError) as error:
            read_settings(kind, old_arguments, "")
        spelled = [
            word
            for word in arguments
            if word.startswith("configs/") or "init_from" in word or "eval_only" in word
        ]
        assert str(error.value).endswith(f"python train.py {' '.join(spelled)}")
    else:
        assert read_settings(kind, old_arguments, "").settings(on_cpu=False) == expected


def test_a_configuration_file_in_nanogpts_manner_trains(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "theirs.py").write_text(
        "import time\nout_dir = 'out-topics'\neval_interval = 2\neval_iters = 2\n"
        "log_interval = 1\nalways_save_checkpoint = False\n"
        "wandb_log = False\nwandb_project = 'topics'\nwandb_run_name = 'mini-' + str(time.time())\n"
        "dataset = 'topics'\ngradient_accumulation_steps = 1\nbatch_size = 4\nblock_size = 16\n"
        "n_layer = 1\nn_head = 2\nn_embd = 8\nlearning_rate = 1e-3\nmax_iters = 2\n"
        "lr_decay_iters = 2\nmin_lr = 1e-4\nwarmup_iters = 1\nbackend = 'gloo'\n"
    )
    train.main(["theirs.py", "--device=cpu", "--compile=False"])
    output = capsys.readouterr().out
    assert "theirs.py: backend is ignored" in output and "done: 2 steps" in output
    assert (place / "out-topics" / "last").is_file()


def test_sampling_from_nanogpts_folder_finds_its_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    characters = CharTokenizer.of_text("\n !abcdefghijklmnopqrstuvwxyz")
    reference = random_gpt2(1, vocab_size=characters.vocab_size, activation_function="gelu")
    save_nanogpt(reference, tmp_path / "out-letters" / "ckpt.pt", prefix="_orig_mod.")
    (tmp_path / "data" / "letters").mkdir(parents=True)
    (tmp_path / "data" / "letters" / "input.txt").write_text(characters.characters)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdout", output := io.StringIO())
    options = ["--temperature=0", "--num_samples=1", "--max_new_tokens=8", "--device=cpu", "--dtype=float64"]
    sample.main(["--out_dir=out-letters", "--start=\ufeffabc", "--compile=False", *options])
    ids = torch.from_numpy(characters.encode("abc"))[None]
    expected = reference.double().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert output.getvalue().strip("\n") == characters.decode(expected[0].tolist()).strip("\n")


def test_a_constant_learning_rate_is_constant_from_the_first_step() -> None:
    from engine.training.optimizer import learning_rate_factor

    settings = TrainSettings(decay_lr=False, warmup_iters=2000, learning_rate=3e-5)
    assert {learning_rate_factor(step, settings) for step in (0, 1, 1999, 600_000)} == {1.0}
