"""eval.py's figures, example by example, against `transformers` on the same random weights."""

import json
import math
import os
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.commands import TEXT, command
from support.random_models import random_gpt2, save_run
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel

import convert
import eval as script
from engine.measure.benchmarks import read_hellaswag, read_lambada, score_hellaswag, score_lambada
from engine.measure.scoring import mean_of, ratio_of, score_continuations, score_text, sliding_windows
from engine.text.characters import CharTokenizer
from engine.weights.pretrained import read_pretrained
from model import GPT, GPTConfig

TOPICS = CharTokenizer.of_text(TEXT)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[GPT, GPT2LMHeadModel]:
    """Our model and theirs, the same random weights, in float64."""
    theirs = random_gpt2(1, vocab_size=TOPICS.vocab_size, n_positions=40)
    theirs.save_pretrained(tmp_path / "gpt")
    return read_pretrained(str(tmp_path / "gpt")).model(dtype=torch.float64).eval(), theirs.double()


def loss_of(theirs: GPT2LMHeadModel, ids: list[int]) -> float:
    """The loss of the last id after the ones before it, one forward pass for this one token."""
    with torch.no_grad():
        logits = theirs(torch.tensor([ids[:-1]])).logits[0, -1]
    return cross_entropy(logits, torch.tensor(ids[-1])).item()


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def words(draw: random.Random, count: int) -> str:
    return " ".join("".join(draw.choices("abcdefghij", k=draw.randint(1, 5))) for _ in range(count))


@pytest.mark.parametrize("stride", [1, 7, 39, 40])
@pytest.mark.parametrize("tokens", [2, 40, 41, 42, 97])
def test_each_token_is_scored_once_with_the_context_that_the_stride_promises(
    tokens: int, stride: int
) -> None:
    windows = sliding_windows(tokens, 40, stride)
    assert [target for _, last, first in windows for target in range(first, last + 1)] == list(
        range(1, tokens)
    )
    for begin, last, first in windows:
        assert 1 <= last - begin <= 40 and begin < first
        assert first - begin >= (1 if stride == 40 else min(first, 40 - stride + 1))


@pytest.mark.parametrize("stride", [1, 13, 40])
def test_the_loss_of_a_text_equals_transformers_token_by_token(
    pair: tuple[GPT, GPT2LMHeadModel], stride: int
) -> None:
    ours, theirs = pair
    ids = TOPICS.encode(TEXT[:150]).tolist()
    scores = score_text(ours, torch.tensor(ids), 1.5, stride, batch_size=3)
    expected = []
    for target in range(1, len(ids)):
        if stride == 40:
            begin = (target - 1) // 40 * 40
        else:
            last = 40 + max(0, -(-(target - 40) // stride)) * stride
            begin = max(0, min(last, len(ids) - 1) - 40)
        expected.append(loss_of(theirs, ids[begin : target + 1]))
    assert scores["tokens"] == 149
    assert scores["loss"].value == pytest.approx(statistics.fmean(expected), rel=1e-12)
    assert scores["perplexity"].value == pytest.approx(math.exp(statistics.fmean(expected)), rel=1e-11)
    assert scores["bits_per_byte"].value == pytest.approx(
        math.fsum(expected) / 149 / math.log(2) / 1.5, rel=1e-12
    )


def test_continuations_equal_transformers_one_by_one_whatever_the_batch(
    pair: tuple[GPT, GPT2LMHeadModel],
) -> None:
    ours, theirs = pair
    draw = random.Random(2)
    pairs = []
    for _ in range(12):
        lengths = draw.randint(1, 60), draw.randint(1, 8)
        pairs.append(tuple([draw.randrange(TOPICS.vocab_size) for _ in range(length)] for length in lengths))
    context = pairs[0][0][-20:]
    greedy = theirs.generate(
        torch.tensor([context]), max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    pairs.append((context, greedy[0, len(context) :].tolist()))
    for batch_size in (1, 5, 13):
        for (before, after), scored in zip(pairs, score_continuations(ours, pairs, batch_size), strict=True):
            whole = [*before, *after][-41:]
            start = len(whole) - len(after)
            expected = [loss_of(theirs, whole[: start + index + 1]) for index in range(len(after))]
            assert scored.log_probability == pytest.approx(-math.fsum(expected), rel=1e-11)
            assert scored.tokens == len(after)
    assert scored.greedy


def test_hellaswag_equals_an_independent_computation(
    pair: tuple[GPT, GPT2LMHeadModel], tmp_path: Path
) -> None:
    ours, theirs = pair
    draw = random.Random(3)
    rows = [
        {
            "ctx": words(draw, 3),
            "endings": [words(draw, draw.randint(1, 4)) for _ in range(4)],
            "label": draw.randrange(4),
        }
        for _ in range(25)
    ]
    (tmp_path / "examples.jsonl").write_text(lines(rows))
    scores = score_hellaswag(ours, TOPICS, read_hellaswag(tmp_path / "examples.jsonl", None), batch_size=7)
    in_total, per_token = [], []
    for row in rows:
        losses = []
        for ending in row["endings"]:
            text = f"{row['ctx']} {ending}"
            ids = TOPICS.encode(text).tolist()[-41:]
            count = len(ending) + 1
            losses.append([loss_of(theirs, ids[: len(ids) - count + index + 1]) for index in range(count)])
        in_total.append(min(range(4), key=lambda index: sum(losses[index])) == row["label"])
        per_token.append(min(range(4), key=lambda index: statistics.fmean(losses[index])) == row["label"])
    assert scores["examples"] == 25
    for score, right in ((scores["accuracy"], in_total), (scores["accuracy_per_token"], per_token)):
        share = sum(right) / 25
        assert score.value == pytest.approx(share) and score.error == pytest.approx(
            math.sqrt(share * (1 - share) / 24)
        )


def test_lambada_equals_an_independent_computation(pair: tuple[GPT, GPT2LMHeadModel], tmp_path: Path) -> None:
    ours, theirs = pair
    draw = random.Random(4)
    rows = [{"text": words(draw, 5)} for _ in range(25)]
    (tmp_path / "passages.jsonl").write_text(lines(rows))
    scores = score_lambada(ours, TOPICS, read_lambada(tmp_path / "passages.jsonl", 20), batch_size=6)
    losses, right = [], []
    for row in rows[:20]:
        ids = TOPICS.encode(row["text"]).tolist()[-41:]
        count = len(row["text"].split(" ")[-1]) + 1
        losses.append(sum(loss_of(theirs, ids[: len(ids) - count + index + 1]) for index in range(count)))
        with torch.no_grad():
            best = theirs(torch.tensor([ids[:-1]])).logits[0, -count:].argmax(-1).tolist()
        right.append(best == ids[-count:])
    assert scores["examples"] == 20 and scores["accuracy"].value == sum(right) / 20
    assert scores["perplexity"].value == pytest.approx(math.exp(statistics.fmean(losses)), rel=1e-10)
    error = statistics.stdev(losses) / math.sqrt(20)
    assert scores["perplexity"].error == pytest.approx(scores["perplexity"].value * error, rel=1e-9)


def test_standard_errors_are_those_of_repeated_samples() -> None:
    draw = random.Random(5)
    samples = [[draw.gauss(1, 2) for _ in range(50)] for _ in range(2000)]
    assert mean_of(samples[0]).value == pytest.approx(statistics.fmean(samples[0]))
    spread = statistics.stdev(mean_of(sample).value for sample in samples)
    claimed = statistics.fmean(mean_of(sample).error for sample in samples)
    assert claimed == pytest.approx(spread, rel=0.06)
    counts = [[draw.randint(1, 9) for _ in range(50)] for _ in range(2000)]
    sums = [[draw.gauss(count, 1) for count in row] for row in counts]
    ratios = [ratio_of(*sample) for sample in zip(sums, counts, strict=True)]
    spread = statistics.stdev(ratio.value for ratio in ratios)
    assert statistics.fmean(ratio.error for ratio in ratios) == pytest.approx(spread, rel=0.06)
    assert math.isnan(mean_of([1.0]).error)


def test_the_command_agrees_for_a_run_and_its_export(place: Path) -> None:
    config = GPTConfig(TOPICS.vocab_size, 48, n_layer=1, n_head=2, n_embd=16)
    save_run(config, TOPICS, place / "run", 6)
    convert.main(["run", "--to", "hf", "gpt"])
    (place / "text.txt").write_text(TEXT[-3000:])
    done = command(
        place, "eval.py", "run", "--dataset", "topics", "--device=cpu", "--limit=2001", "--output", "a.json"
    )
    assert done.returncode == 0, done.stderr
    first = json.loads(Path("a.json").read_text())["loss"]
    assert f"{first['loss']['value']:.4f} ±" in done.stdout and first["tokens"] == 2000
    script.main(["gpt", "--dataset", "topics", "--device=cpu", "--limit=2001", "--output", "b.json"])
    second = json.loads(Path("b.json").read_text())["loss"]
    assert second["loss"]["value"] == pytest.approx(first["loss"]["value"], rel=1e-6)
    Path("text.txt").write_text(
        "\ufeff" + TEXT[-3000:], encoding="utf-8"
    )  # which is no character of the text
    script.main(["gpt", "--text", "text.txt", "--stride", "16", "--device=cpu", "--output", "c.json"])
    third = json.loads(Path("c.json").read_text())["loss"]
    assert third["tokens"] == 2999
    bytes_per_token = len(TEXT[-3000:].encode()) / 3000
    assert third["bits_per_byte"]["value"] == pytest.approx(
        third["loss"]["value"] / math.log(2) / bytes_per_token
    )


def test_without_a_model_the_newest_run_is_scored(
    place: Path, fails: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert "there is no run in out/ to score; train one" in fails(script.main)
    config = GPTConfig(TOPICS.vocab_size, 48, n_layer=1, n_head=2, n_embd=16)
    save_run(config, TOPICS, place / "out/older", 8)
    save_run(config, TOPICS, place / "out/newer", 9)
    for name, seconds in (("older", 1000), ("newer", 2000)):
        for step in (place / "out" / name / "checkpoints").iterdir():
            os.utime(step, (seconds, seconds))
    (place / "text.txt").write_text(TEXT[-300:])
    figures = []
    for line in ([], ["out/newer"], ["out/older"]):
        script.main([*line, "--text=text.txt", "--device=cpu", "--output=found.json"])
        figures.append(json.loads(Path("found.json").read_text())["loss"])
    assert figures[0] == figures[1] != figures[2]
    assert "the newest run: out/newer" in capfd.readouterr().out


def test_bad_input_is_one_line(
    place: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(GPTConfig(TOPICS.vocab_size, 48, n_layer=1, n_head=2, n_embd=16), TOPICS, place / "run", 7)
    (place / "bad.jsonl").write_text('{"ctx": "a"}\n')
    (place / "broken.jsonl").write_text("{\n")
    (place / "empty.jsonl").write_text("")
    (place / "word.jsonl").write_text('{"text": "alone"}\n')
    (place / "greek.txt").write_text("αβγ", encoding="utf-8")
    monkeypatch.setattr(
        "engine.download._read", lambda address: (_ for _ in ()).throw(OSError("unreachable"))
    )
    for arguments, said in (
        (["run"], "nothing to score"),
        (["run", "--dataset=topics", "--stride=49"], "it can be 1 to 48"),
        (["run", "--dataset=topics", "--stride=0"], "at least 1"),
        (["run", "--dataset=nowhere"], "no data set data/nowhere"),
        (["run", "--text=nowhere.txt"], "nowhere.txt cannot be read"),
        (["run", "--text=greek.txt"], "'α' (U+03B1"),
        (["run", "--tasks=hellaswag"], "put https://raw.githubusercontent.com/rowanz/hellaswag"),
        (["run", "--tasks=lambada"], "--lambada=FILE"),
        (["run", "--tasks=hellaswag", "--hellaswag=bad.jsonl"], "line 1: endings is missing"),
        (["run", "--tasks=hellaswag", "--hellaswag=broken.jsonl"], "line 1 is no JSON"),
        (["run", "--tasks=lambada", "--lambada=empty.jsonl"], "holds no examples"),
        (["run", "--tasks=lambada", "--lambada=word.jsonl"], "at least two words"),
        (["run", "--tasks=mmlu"], "invalid choice"),
        (["nowhere"], "nowhere holds no checkpoint"),
    ):
        assert said in fails(script.main, *arguments, "--device=cpu")
