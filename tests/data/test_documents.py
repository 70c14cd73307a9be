"""Documents kept apart: each is read as if it stood alone, in training, in evaluation, and in generation."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import TINY, command, several
from support.models import MODERN, SMALL, both, random_ids, random_model
from support.runs import losses, same, tensors
from torch.nn import functional as F

import train as train_script
from engine.data.dataset import NO_TARGET, open_dataset
from engine.data.order import training_starts
from engine.explore.inspection import inspect
from engine.generation import KVCache, Sampling, generate
from engine.kernels import install
from model import GPT, GPTConfig

SEPARATOR = 7


def apart(config: GPTConfig) -> GPTConfig:
    return dataclasses.replace(config, separator=SEPARATOR)


def ids_with_documents(batch: int, length: int) -> torch.Tensor:
    """Random ids in which about every sixth token begins a document."""
    ids = random_ids(batch, length)
    ids[ids == SEPARATOR] = 0
    return ids.masked_fill(torch.rand(batch, length) < 0.16, SEPARATOR)


def pieces(row: torch.Tensor) -> list[torch.Tensor]:
    """The documents of a row (T,), each with its separator at the beginning."""
    begins = [0, *(t for t in range(1, len(row)) if row[t] == SEPARATOR), len(row)]
    return [row[begin:end] for begin, end in itertools.pairwise(begins)]


@both
@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
def test_logits_and_gradients_equal_a_loop_over_documents(config: GPTConfig, kernel: str) -> None:
    joined = random_model(config)
    masked = GPT(apart(config)).double().eval()
    masked.load_state_dict(joined.state_dict())
    install(masked, kernel)
    ids, targets = ids_with_documents(3, 24), random_ids(3, 24)
    logits, loss = masked(ids), masked(ids, targets)
    alone = torch.stack([torch.cat([joined(piece[None])[0] for piece in pieces(row)]) for row in ids])
    torch.testing.assert_close(logits, alone, rtol=0, atol=1e-12)
    loss.backward()
    F.cross_entropy(alone.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    for mine, theirs in zip(masked.parameters(), joined.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-12)


@both
def test_the_cache_knows_where_documents_begin(config: GPTConfig) -> None:
    """Prompts of different lengths, padded on the left, read in one pass, in pieces, and token by token."""
    model = random_model(apart(config))
    ids = ids_with_documents(4, 20)
    for lengths in ([20] * 4, [20, 3, 11, 1]):
        starts = torch.tensor([20 - length for length in lengths])
        alone = [model(row[start:][None])[0] for row, start in zip(ids, starts.tolist(), strict=True)]
        for cuts in ([20], list(range(1, 21)), [5, 12, 20]):
            cache, seen = KVCache(model, 4, starts), []
            with torch.no_grad():
                for begin, end in itertools.pairwise([0, *cuts]):
                    seen.append(model.head(model.features(ids[:, begin:end], cache)))
                    cache.length = end
            logits = torch.cat(seen, dim=1)
            for row, expected in enumerate(alone):
                torch.testing.assert_close(logits[row, starts[row] :], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [SMALL, MODERN], ids=["gpt2", "modern"])
def test_generation_sees_the_last_document_alone(config: GPTConfig) -> None:
    """Also where the text outgrows `block_size`, whose window then moves."""
    model, greedy = random_model(apart(config)), Sampling(temperature=0)
    before, document = ids_with_documents(1, 9), torch.tensor([[SEPARATOR, 1, 2, 3]])
    model.head.weight.data[SEPARATOR] = 0  # with the loud random weights, never the most probable token
    short = generate(model, document, 10, greedy)
    assert torch.equal(generate(model, torch.cat((before, document), dim=1), 10, greedy)[:, 9:], short)
    text, first = document, 0
    for _ in range(60):
        if text.shape[1] - first > config.block_size:  # the older half goes when the block is full
            first = text.shape[1] - config.block_size // 2
        text = torch.cat((text, model(text[:, first:])[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(generate(model, document, 60, greedy), text)


def test_inspection_sees_no_weight_across_documents() -> None:
    ids = torch.tensor([1, 2, SEPARATOR, 3, 4])
    attention = inspect(random_model(apart(SMALL)), ids).attention
    assert attention[:, :, 2:, :2].abs().max() == 0 and (attention[:, :, 4, 2:] > 0).all()
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention.sum(-1)))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/notes: documents of very different lengths in an own byte-pair vocabulary."""
    folder = tmp_path_factory.mktemp("documents")
    generator = np.random.default_rng(np.random.randint(2**31))
    words = np.array(["sun", "moon", "rain", "snow", "wind", "cloud", "storm", "fog"])
    lines = [" ".join(generator.choice(words, generator.integers(1, 90))) for _ in range(500)]
    (folder / "notes.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    finished = command(
        folder, "prepare.py", "notes", "--input", "notes.jsonl", "--tokenizer=bpe", "--vocab_size=300"
    )
    assert finished.returncode == 0, finished.stderr
    (folder / "tiny.py").write_text(TINY.replace("topics", "notes"))
    return folder


def test_aligned_sequences_begin_with_documents_and_repeat_no_target(documents: Path) -> None:
    data = open_dataset("notes", 32, documents / "data")
    separator, whole = data.separator("aligned"), data.train.read(0, data.train.tokens)
    per_epoch = (data.train.tokens - 32) // 32
    starts = training_starts(5, 0, per_epoch, data.train.tokens, 32)
    rows, targets = data.train.aligned_windows(starts, 32, separator)
    counts = (targets != NO_TARGET).sum(axis=1)
    times = np.zeros(data.train.tokens, dtype=np.int64)
    for start, row, wanted, count in zip(starts, rows, targets, counts, strict=True):
        inside = np.flatnonzero(whole[start : start + 32] == separator)
        begin = start + (inside[0] if len(inside) else 0)
        assert 1 <= count <= 32 and np.array_equal(row[:count], whole[begin : begin + count])
        assert np.array_equal(wanted[:count], whole[begin + 1 : begin + count + 1])
        times[begin + 1 : begin + count + 1] += 1
    assert times.max() == 1 and times.mean() > 0.7  # 0.85 on average here, see docs/data.md


@pytest.mark.slow(reason="torchrun")
def test_the_loss_is_the_mean_over_all_targets_on_one_process_and_two(
    documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with different numbers of targets, accumulated and shared out: float64 weights to 1e-12."""
    monkeypatch.chdir(documents)
    exact = ("tiny.py", "--documents=aligned", "--dtype=float64", "--dropout=0", "--sample_tokens=0")
    assert train_script.main([*exact, "--out_dir=one"]) == 0
    finished = several(
        documents, 2, "train.py", *exact, "--out_dir=two", "--batch_size=2", "--gradient_accumulation_steps=4"
    )
    assert finished.returncode == 0, finished.stderr
    one, two = tensors(documents / "one"), tensors(documents / "two")
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=0, atol=1e-12)
    assert losses(documents / "one") == pytest.approx(losses(documents / "two"), rel=1e-12)

    data = open_dataset("notes", 32)
    separator = data.separator("aligned")
    model = GPT(
        GPTConfig(data.tokenizer.vocab_size, 32, 2, 2, 32, bias=False, activation="gelu", separator=separator)
    ).double()
    model.init_weights(1337)
    starts = training_starts(1337, 0, 8, data.train.tokens, 32)
    rows, targets = data.train.aligned_windows(starts, 32, separator)
    total = sum(
        F.cross_entropy(
            model(torch.from_numpy(row[None, :count]))[0], torch.from_numpy(wanted[:count]), reduction="sum"
        )
        for row, wanted, count in zip(rows, targets, (targets != NO_TARGET).sum(axis=1), strict=True)
    )
    assert losses(documents / "one")[1] == pytest.approx(
        total.item() / (targets != NO_TARGET).sum(), rel=1e-12
    )


def test_runs_with_documents_resume_exactly_and_travel(
    documents: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(documents)
    masked = ("tiny.py", "--documents=masked", "--sample_tokens=0")
    assert train_script.main([*masked, "--out_dir=whole"]) == 0
    assert train_script.main([*masked, "--out_dir=part", "--max_iters=10", "--lr_decay_iters=20"]) == 0
    assert train_script.main([*masked, "--out_dir=part", "--init_from=resume"]) == 0
    assert same(tensors(documents / "whole"), tensors(documents / "part"))
    resumed = ("tiny.py", "--out_dir=part", "--init_from=resume", "--max_iters=30")
    assert "documents" in fails(train_script.main, *resumed, "--documents=joined")
    options = ("--out_dir=whole", "--device=cpu", "--num_samples=1", "--max_new_tokens=40")
    finished = command(documents, "sample.py", *options)
    assert finished.returncode == 0 and finished.stdout.strip()


def test_characters_have_no_documents(place: Path, fails: Callable[..., str]) -> None:
    line = fails(train_script.main, "tiny.py", "--documents=masked")
    assert "end-of-text" in line and "--tokenizer" in line
