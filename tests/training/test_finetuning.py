"""Training that starts from GPT-2's kind of weights: the real commands, with tiny stand-ins."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.commands import ROOT, TEXT, command
from support.random_models import random_gpt2, save_nanogpt, save_run
from transformers import AutoModelForCausalLM

import convert
import train
from engine.text.characters import CharTokenizer
from engine.weights.checkpoint import load, open_checkpoint
from engine.weights.pretrained import read_pretrained
from model import GPTConfig

TOPICS = CharTokenizer.of_text(TEXT)
SHAPE = dict(block_size=64, n_layer=2, n_head=2, n_embd=16, bias=True, activation="gelu_tanh")
CONFIG = str(ROOT / "configs" / "finetune_shakespeare.py")
SMALL = ("--dataset=topics", "--device=cpu", "--block_size=48", "--threads=1")
FEW = ("--eval_iters=2", "--sample_tokens=8", "--max_iters=6")


@pytest.fixture
def folder(place: Path) -> Path:
    """A tiny GPT-2 in Hugging Face's layout, with the data set's characters for a vocabulary."""
    save_run(GPTConfig(vocab_size=TOPICS.vocab_size, **SHAPE), TOPICS, place / "seed", 1)
    convert.main(["seed", "--to", "hf", "gpt"])
    return place / "gpt"


def test_finetuning_runs_end_to_end_and_leaves_for_transformers(folder: Path, place: Path) -> None:
    tuned = command(place, "train.py", CONFIG, *SMALL, *FEW, f"--init_from={folder}", "--learning_rate=1e-2")
    assert tuned.returncode == 0, tuned.stderr
    losses = [float(loss) for loss in re.findall(r"validation loss (\d+\.\d+)", tuned.stdout)]
    assert losses[-1] < losses[0] - 0.1
    config = open_checkpoint(Path("out/finetune_shakespeare"), "last").model_config()
    expected = SHAPE | dict(vocab_size=TOPICS.vocab_size, block_size=48, dropout=0.1, tied_head=True)
    assert config == GPTConfig(**expected)

    train.main([CONFIG, *SMALL, *FEW, "--init_from=resume", "--max_iters=7"])
    assert open_checkpoint(Path("out/finetune_shakespeare"), "last").meta["step"] == 7

    convert.main(["out/finetune_shakespeare", "--checkpoint=last", "--to", "hf", "tuned"])
    model, tokenizer = load("out/finetune_shakespeare", checkpoint="last")
    ids = torch.from_numpy(tokenizer.encode("The import statement"))[None]
    theirs = AutoModelForCausalLM.from_pretrained("tuned").eval()
    with torch.no_grad():
        assert (model(ids) - theirs(ids).logits).abs().max() < 1e-5


def test_evaluation_of_weights_is_the_mean_loss_in_transformers(
    folder: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--eval_only=True", "--eval_iters=3", "--batch_size=4", "--dtype=float64"]
    train.main([CONFIG, *SMALL, *options, f"--init_from={folder}"])
    printed = float(re.search(r"validation loss (\d+\.\d+)", capsys.readouterr().out)[1])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = torch.from_numpy(TOPICS.encode(TEXT[int(0.9 * len(TEXT)) :]))
    grid = -(-(len(ids) - 1) // 48)
    starts = [(2 * number + 1) * grid // (2 * 12) * 48 for number in range(12)]  # evenly over the split
    rows = torch.stack([ids[start : start + 49] for start in starts])
    with torch.no_grad():
        logits = theirs(rows[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    assert printed == pytest.approx(expected.item(), abs=1e-4)
    assert not Path("out").exists()


def test_a_nanogpt_checkpoint_and_a_run_are_starting_points_too(place: Path) -> None:
    reference = random_gpt2(2, vocab_size=TOPICS.vocab_size, n_positions=48, activation_function="gelu")
    save_nanogpt(reference, place / "ckpt.pt")
    options = [
        "tiny.py",
        "--n_embd=16",
        "--bias=True",
        "--max_iters=0",
        "--sample_tokens=0",
        "--out_dir=first",
    ]
    train.main([*options, "--init_from=ckpt.pt", "--block_size=48"])
    start = read_pretrained("ckpt.pt")
    for name, parameter in load("first", checkpoint="last")[0].named_parameters():
        assert torch.equal(parameter, start.tensors[name])
    train.main(["--init_from=first", *SMALL[:2], "--max_iters=0", "--sample_tokens=0", "--out_dir=second"])
    assert open_checkpoint(Path("second"), "last").model_config().block_size == 48


def test_settings_and_data_that_contradict_the_weights_are_named(
    folder: Path, place: Path, fails: Callable[..., str]
) -> None:
    def refused(*arguments: str) -> str:
        return fails(train.main, CONFIG, *SMALL, f"--init_from={folder}", *arguments)

    assert "n_layer is 3, but" in refused("--n_layer=3")
    assert "64 positions" in refused("--block_size=65")
    (place / "other.txt").write_text(TEXT.replace("a", "\N{GREEK SMALL LETTER ALPHA}"))
    assert command(place, "prepare.py", "other.txt").returncode == 0
    assert "data/other is written in another vocabulary" in refused("--dataset=other")
    assert "did you mean gpt2-medium?" in fails(train.main, CONFIG, "--init_from=gpt2-medum")
    assert "the path of a folder" in fails(train.main, CONFIG, "--init_from=./nowhere")


def test_a_file_gives_way_to_the_weights_in_positions_and_biases_and_it_is_said(
    folder: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "own.py").write_text("dataset = 'topics'\nblock_size = 512\nbias = False\nmax_iters = 0\n")
    quick = ["--device=cpu", "--eval_iters=1", "--sample_tokens=0", "--out_dir=run"]
    train.main(["own.py", f"--init_from={folder}", *quick])
    said = capsys.readouterr().out
    assert f"note: block_size is cut from 512 to the 64 of {folder}\n" in said
    assert f"note: bias=False is ignored: {folder} has biases, and keeps them\n" in said
    config = open_checkpoint(Path("run"), "last").model_config()
    assert (config.block_size, config.bias) == (64, True)


def test_what_has_no_training_state_is_not_resumed(
    folder: Path, place: Path, fails: Callable[..., str]
) -> None:
    convert.main([str(folder), "--to", "run", "out/gpt"])
    said = fails(train.main, "tiny.py", "--init_from=resume", "--out_dir=out/gpt")
    assert "no training state; start from them: --init_from=out/gpt" in said
    save_nanogpt(random_gpt2(3), place / "out-old" / "ckpt.pt")
    said = fails(train.main, "tiny.py", "--init_from=resume", "--out_dir=out-old")
    assert "--init_from=out-old/ckpt.pt" in said
    assert json.loads(Path("gpt/config.json").read_text())["model_type"] == "gpt2"
