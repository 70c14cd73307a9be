"""Supervised tuning: the assistant's words alone are learned, from the newest finished run."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import several
from support.random_models import save_run
from support.runs import losses, same, tensors
from support.talks import made, talks, written
from torch.nn import functional as F

import eval as eval_script
import train as train_script
from engine.data.dataset import Dataset
from engine.data.order import training_starts
from engine.text.characters import ByteTokenizer
from engine.text.roles import ChatTokenizer
from engine.text.tokenizer import with_roles
from engine.weights.checkpoint import load, newest_finished, open_checkpoint
from engine.weights.pretrained import read_pretrained
from engine.weights.saving import save_checkpoint
from model import GPT, GPTConfig

BLOCK = 96
TALK = ("tiny.py", "--dataset=talk", "--documents=aligned", f"--block_size={BLOCK}", "--sample_tokens=0")
EXACT = (*TALK, "--dtype=float64", "--dropout=0")
SHAPE = dict(block_size=BLOCK, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture
def talk(tmp_path: Path, place: Path) -> Dataset:
    """data/talk in the current folder."""
    (place / "data").unlink()
    (place / "data").mkdir()
    return made(written(talks(60)), val=0.2)[0]


def initial_model(data: Dataset) -> GPT:
    config = GPTConfig(data.tokenizer.vocab_size, separator=data.tokenizer.end_of_text, **SHAPE)
    model = GPT(config).double().eval()
    model.init_weights(1337)
    return model


def loss_of_conversations(
    model: GPT, ids: np.ndarray, flags: np.ndarray, begin: int, end: int
) -> tuple[torch.Tensor, int]:
    """The loss over the targets in ids[begin:end], each conversation computed by itself, and their number."""
    separator = model.config.separator
    begins = [place for place in range(begin, end) if ids[place] == separator]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for first, last in itertools.pairwise([*begins, end]):
        if last - first < 2:
            continue
        alone = torch.from_numpy(ids[first:last])
        logits = model(alone[None, :-1])[0]
        wanted = torch.from_numpy(flags[first + 1 : last])
        total = total + F.cross_entropy(logits[wanted], alone[1:][wanted], reduction="sum")
        count += int(wanted.sum())
    return total, count


def row_of(ids: np.ndarray, start: int, separator: int) -> tuple[int, int]:
    """Where the row of a window begins and ends, by the rule of docs/data.md."""
    seps = np.flatnonzero(ids == separator)
    begin = seps[(seps >= start) & (seps < start + BLOCK)]
    following = seps[(seps >= start + BLOCK) & (seps < start + 2 * BLOCK)]
    if not len(begin):
        return start, start
    end = begin[0] + BLOCK + 1
    return int(begin[0]), int(min(end, following[0] + 1 if len(following) else end, len(ids)))


def test_the_loss_and_the_update_are_those_of_each_conversation_alone(talk: Dataset, place: Path) -> None:
    """Step 1 in float64, against a loop over conversations; a mask of ones would give another loss."""
    assert train_script.main([*EXACT, "--out_dir=r", "--max_iters=1", "--grad_clip=0", "--seed=5"]) == 0
    ids = talk.train.read(0, talk.train.tokens)
    flags = talk.train.are_targets(0, len(ids))
    model = initial_model(talk)
    model.init_weights(5)
    total, count, all_total, all_count = torch.zeros(()), 0, torch.zeros(()), 0
    for start in training_starts(5, 0, 8, len(ids), BLOCK):
        rows = row_of(ids, int(start), model.config.separator or 0)
        loss, targets = loss_of_conversations(model, ids, flags, *rows)
        total, count = total + loss, count + targets
        loss, targets = loss_of_conversations(model, ids, np.ones_like(flags), *rows)
        all_total, all_count = all_total + loss, all_count + targets
    assert count > 50
    found = losses(place / "r")[1]
    assert found == pytest.approx(total.item() / count, rel=1e-12)
    assert found != pytest.approx(all_total.item() / all_count, rel=1e-6)
    (total / count).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    lines = [json.loads(line) for line in (place / "r/metrics.jsonl").read_text().splitlines()]
    (norm,) = (line["grad_norm"] for line in lines if line["kind"] == "train")
    assert norm == pytest.approx(gradient.norm().item(), rel=1e-10)


def test_the_validation_loss_is_the_mean_over_the_targets_of_all_windows(talk: Dataset, place: Path) -> None:
    assert train_script.main([*EXACT, "--out_dir=r", "--max_iters=0", "--eval_iters=None"]) == 0
    ids = talk.val.read(0, talk.val.tokens)
    flags = talk.val.are_targets(0, len(ids))
    model, total, count = initial_model(talk), torch.zeros(()), 0
    for start in range(0, len(ids) - 1, BLOCK):
        loss, targets = loss_of_conversations(
            model, ids, flags, *row_of(ids, start, model.config.separator or 0)
        )
        total, count = total + loss, count + targets
    assert losses(place / "r", "eval")[0] == pytest.approx(total.item() / count, rel=1e-12)


def test_the_weights_do_not_depend_on_micro_batches(talk: Dataset, place: Path) -> None:
    assert train_script.main([*EXACT, "--out_dir=one"]) == 0
    whole = ("--batch_size=8", "--gradient_accumulation_steps=1")
    assert train_script.main([*EXACT, *whole, "--out_dir=two"]) == 0
    one, two = tensors(place / "one"), tensors(place / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-12)


@pytest.mark.slow(reason="torchrun")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_weights_do_not_depend_on_the_number_of_processes(
    talk: Dataset, place: Path, parallel: str
) -> None:
    assert train_script.main([*EXACT, "--out_dir=one"]) == 0
    shared = ("--batch_size=2", "--gradient_accumulation_steps=4", f"--parallel={parallel}")
    finished = several(place, 2, "train.py", *EXACT, *shared, "--out_dir=two")
    assert finished.returncode == 0, finished.stderr
    one, two = tensors(place / "one"), tensors(place / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-12)
    for step, loss in losses(place / "one").items():
        assert losses(place / "two")[step] == pytest.approx(loss, rel=1e-12)


def test_a_tuning_run_that_is_resumed_ends_in_the_same_weights(talk: Dataset, place: Path) -> None:
    save_run(GPTConfig(vocab_size=256, **SHAPE), ByteTokenizer(), place / "base", 1)
    start = (*TALK, "--init_from=base")
    assert train_script.main([*start, "--out_dir=whole"]) == 0
    assert train_script.main([*start, "--out_dir=part", "--max_iters=10", "--lr_decay_iters=20"]) == 0
    assert train_script.main([*TALK, "--out_dir=part", "--init_from=resume"]) == 0
    assert same(tensors(place / "whole"), tensors(place / "part"))


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_added_tokens_are_the_mean_of_the_others(talk: Dataset, place: Path, tied: bool) -> None:
    base = save_run(GPTConfig(vocab_size=256, tied_head=tied, **SHAPE), ByteTokenizer(), place / "base", 1)
    assert train_script.main([*TALK, "--init_from=base", "--out_dir=r", "--max_iters=0"]) == 0
    model, tokenizer = load("r")
    assert isinstance(tokenizer, ChatTokenizer) and tokenizer.to_dict() == talk.tokenizer.to_dict()
    for name in ("token_embedding", "head"):
        old, new = (getattr(one, name).weight for one in (base, model))
        assert torch.equal(new[:256], old) and new.shape == (262, 32)
        torch.testing.assert_close(new[256:], old.mean(dim=0).expand(6, -1))


def test_rows_that_only_pad_a_vocabulary_become_those_of_added_tokens(place: Path) -> None:
    """A vocabulary of more than 1,024 has rows for the next multiple of 64, which nobody trained."""
    records = [{"text": talk["messages"][1]["content"]} for talk in talks(300)]
    vocabulary = "".join(chr(0x4E00 + number) for number in range(1020))
    records[0]["text"] += vocabulary
    (place / "data").unlink()
    text, _ = made(written(records), name="text", tokenizer="char", val=0.3)
    rows = -(-text.tokenizer.vocab_size // 64) * 64
    base = save_run(GPTConfig(vocab_size=rows, **SHAPE), text.tokenizer, place / "base", 1)
    wanted = with_roles(text.tokenizer)
    found = read_pretrained("base").with_roles_of(wanted)
    known = text.tokenizer.vocab_size
    assert found.config.vocab_size == rows >= wanted.vocab_size
    weight = found.tensors["token_embedding.weight"]
    assert torch.equal(weight[:known], base.token_embedding.weight[:known])
    torch.testing.assert_close(weight[known:], weight[:known].mean(dim=0).expand(rows - known, -1))


def test_a_tuned_model_is_tuned_again_as_it_is(talk: Dataset, place: Path) -> None:
    config = GPTConfig(vocab_size=262, **SHAPE)
    tuned = save_run(config, talk.tokenizer, place / "tuned", 1)
    assert train_script.main([*TALK, "--init_from=tuned", "--out_dir=r", "--max_iters=0"]) == 0
    assert torch.equal(load("r")[0].token_embedding.weight, tuned.token_embedding.weight)


def test_weights_of_another_vocabulary_cannot_be_tuned(
    talk: Dataset, place: Path, fails: Callable[..., str]
) -> None:
    made(written(talks(60)), name="letters", tokenizer="char")
    save_run(GPTConfig(vocab_size=256, **SHAPE), ByteTokenizer(), place / "base", 1)
    said = fails(train_script.main, *TALK, "--dataset=letters", "--init_from=base")
    assert "data/letters is written in another vocabulary than base reads" in said


def test_conversations_are_read_aligned_or_not_at_all(
    talk: Dataset, place: Path, fails: Callable[..., str]
) -> None:
    for documents in ("joined", "masked"):
        said = fails(train_script.main, "tiny.py", "--dataset=talk", f"--documents={documents}")
        assert "data/talk holds conversations" in said and "--documents=aligned" in said
    assert train_script.main([*TALK, "--out_dir=r", "--max_iters=1"]) == 0
    said = fails(eval_script.main, "r", "--device=cpu")
    assert "holds conversations" in said and "--eval_only=True" in said


def test_a_conversation_longer_than_the_block_is_said(
    talk: Dataset, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = talk.meta["conversations"]["longest"]
    assert train_script.main([*TALK, "--out_dir=r", "--max_iters=1"]) == 0
    assert f"note: the longest conversation has {longest} tokens" in capsys.readouterr().out
    assert train_script.main([*TALK, f"--block_size={longest}", "--out_dir=s", "--max_iters=1"]) == 0
    assert "note: the longest" not in capsys.readouterr().out


def test_evaluations_answer_a_question_of_the_validation_split(
    talk: Dataset, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_script.main([*TALK, "--out_dir=r", "--max_iters=0", "--sample_tokens=20"]) == 0
    output = capsys.readouterr().out
    assert "    <|endoftext|><|system|>Number " in output and "<|end|><|assistant|>" in output


# ------------------------------------------------------------------------------------------------------------
# the run that a stage starts from


def a_run(name: str, step: int, seconds: int, **settings: object) -> Path:
    """out/NAME with one checkpoint, last changed so many seconds after the others."""
    folder = Path("out") / name
    save_run(GPTConfig(vocab_size=256, **SHAPE), ByteTokenizer(), folder, step)
    checkpoint = open_checkpoint(folder, "last")
    meta = dict(checkpoint.meta) | {"step": step, "settings": {"max_iters": 20, "patience": None} | settings}
    save_checkpoint(folder, meta, {"model": checkpoint.tensors("model")})
    (folder / "config.json").write_text("{}")
    for path in (folder / "config.json", *(folder / "checkpoints").iterdir()):
        os.utime(path, (1000 + seconds, 1000 + seconds))
    return folder


def test_a_stage_starts_from_the_newest_finished_run_and_says_which(
    talk: Dataset, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run("base", 20, 0)
    a_run("base-2", 20, 20)
    a_run("base-3", 20, 10)
    a_run("baseline", 20, 30)
    assert train_script.main([*TALK, "--init_from=run:base", "--out_dir=r", "--max_iters=0"]) == 0
    assert "model: out/base-2, " in capsys.readouterr().out
    expected = open_checkpoint(Path("out/base-2"), "last").tensors("model")["final_norm.weight"]
    assert torch.equal(load("r")[0].final_norm.weight, expected)


@pytest.mark.parametrize("kind", ["unfinished", "without a checkpoint"])
def test_a_newer_run_that_is_not_finished_is_never_passed_over(
    talk: Dataset, place: Path, fails: Callable[..., str], kind: str
) -> None:
    a_run("base", 20, 0)
    if kind == "unfinished":
        a_run("base-2", 10, 10)
    else:
        Path("out/base-2").mkdir()
        Path("out/base-2/config.json").write_text("{}")
    said = fails(train_script.main, *TALK, "--init_from=run:base")
    assert "out/base-2 is the newest run of base, and it is not finished" in said
    assert "--init_from=out/NAME" in said


def test_a_run_that_lost_its_patience_is_finished(place: Path) -> None:
    run = a_run("base", 10, 0, patience=2)
    with pytest.raises(Exception, match="not finished"):
        newest_finished("base")
    checkpoint = open_checkpoint(run, "last")
    meta = dict(checkpoint.meta) | {"evaluations_without_gain": 2}
    save_checkpoint(run, meta, {"model": checkpoint.tensors("model")})
    assert newest_finished("base") == run


def test_where_there_is_no_run_to_start_from_the_command_that_trains_it_is_said(
    talk: Dataset, place: Path, fails: Callable[..., str]
) -> None:
    said = fails(train_script.main, *TALK, "--init_from=run:base")
    assert "there is no run out/base to start from; train it: python train.py configs/base.py" in said
