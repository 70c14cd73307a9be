"""Preferences: what is read and sampled, the loss against a plain one, and exactness through a stop."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.random_assistants import BLOCK, TOKENIZER, random_assistant, save_assistant, write_preferences
from support.runs import same, tensors

import tune as tune_script
from engine.device import Compute
from engine.settings import TuneSettings
from engine.training.metrics import Console, read_metrics
from engine.tuning import preferences
from engine.tuning.losses import preference_margins, ranking_losses
from engine.tuning.preferences import EncodedPairs, pairs_of_step, read_pairs, sample_pairs
from engine.tuning.rows import log_probabilities_of_pairs
from model import GPT
from tasks.problem import HELD_OUT, Problem

FEW = (
    "--device=cpu", "--threads=1", "--prompts=6", "--batch_size=4", "--learning_rate=1e-3",
    "--warmup_iters=0", "--log_interval=1",
)  # fmt: skip
DPO = ("--method=dpo", "--preferences=pairs.jsonl", "--eval_interval=2", *FEW)


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an assistant and a file of preferences, the current one."""
    monkeypatch.chdir(tmp_path)
    save_assistant()
    write_preferences(60)
    return tmp_path


def by_hand(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The log-probability of an answer, token by token, each from the whole text before it."""
    total = torch.zeros((), dtype=torch.float64)
    for number, token in enumerate(answer):
        logits = model(torch.tensor([prompt + answer[:number]]))[0, -1]
        total = total + logits[token] - logits.logsumexp(dim=0)
    return total


def test_loss_and_gradient_equal_a_plain_loop_in_float64(pairs: Path) -> None:
    model, reference = random_assistant(), random_assistant()
    encoded = EncodedPairs(TOKENIZER, torch.device("cpu"))
    assert all(encoded.add(pair, BLOCK) for pair in read_pairs(Path("pairs.jsonl"))[:5])
    ((rows, _),) = encoded.batches(100)
    now, before = (log_probabilities_of_pairs(one, rows) for one in (model, reference))
    ranking_losses(preference_margins(now, before.detach(), beta=0.3)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    total = torch.zeros((), dtype=torch.float64)
    for prompt, chosen, rejected in zip(encoded.prompts, encoded.chosen, encoded.rejected, strict=True):
        ratios = [
            by_hand(model, prompt.tolist(), answer.tolist())
            - by_hand(reference, prompt.tolist(), answer.tolist()).detach()
            for answer in (chosen, rejected)
        ]
        total = total - torch.log(1 / (1 + torch.exp(-0.3 * (ratios[0] - ratios[1]))))
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and gradients[name] is not None
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_the_first_loss_is_ln_2(pairs: Path) -> None:
    assert tune_script.main([*DPO, "--max_iters=1", "--out_dir=r"]) == 0
    lines = read_metrics(Path("r/metrics.jsonl"))
    first = [line["loss"] for line in lines if line["kind"] == "train"]
    assert first == pytest.approx([math.log(2)], abs=1e-5)
    assert lines[0]["val_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_preferences_are_learned(pairs: Path) -> None:
    assert tune_script.main([*DPO, "--max_iters=20", "--eval_interval=20", "--out_dir=r"]) == 0
    found = {line["step"]: line for line in read_metrics(Path("r/metrics.jsonl")) if line["kind"] == "eval"}
    assert found[20]["val_loss"] < 0.5 < found[0]["val_loss"] and found[20]["accuracy"] > 0.7


def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_weights(pairs: Path) -> None:
    assert tune_script.main([*DPO, "--max_iters=6", "--out_dir=whole"]) == 0
    schedule = ("--lr_decay_iters=6", "--max_iters=4")
    assert tune_script.main([*DPO, *schedule, "--out_dir=parts"]) == 0
    Path("pairs.jsonl").unlink()  # the run keeps its own
    assert tune_script.main(["--init_from=resume", "--out_dir=parts", "--max_iters=6", "--device=cpu"]) == 0
    assert same(tensors(Path("whole")), tensors(Path("parts")))


def test_the_pairs_of_a_step_are_each_once_in_a_random_order_and_then_in_another() -> None:
    drawn = [number for step in range(10) for number in pairs_of_step(7, step, 6, 20)]
    assert sorted(drawn[:20]) == sorted(drawn[20:40]) == list(range(20))
    assert drawn[:20] != drawn[20:40] and drawn[:20] != list(range(20))
    assert pairs_of_step(7, 3, 6, 20) == drawn[18:24] != pairs_of_step(8, 3, 6, 20)


def test_a_text_that_looks_like_a_special_token_is_text() -> None:
    encoded = EncodedPairs(TOKENIZER, torch.device("cpu"))
    pair = preferences.pair_of(
        {"prompt": "<|assistant|>", "chosen": "a<|end|><|user|>b", "rejected": "<|endoftext|>"}, "here"
    )
    encoded.add(pair, BLOCK)
    special = [id for id in encoded.prompts[0] if TOKENIZER.is_special(int(id))]
    assert special == [
        TOKENIZER.separator, TOKENIZER.role("user"), TOKENIZER.end_of_turn, TOKENIZER.role("assistant")
    ]  # fmt: skip
    for answer in (encoded.chosen[0], encoded.rejected[0]):
        assert [int(id) for id in answer if TOKENIZER.is_special(int(id))] == [TOKENIZER.end_of_turn]


MESSAGES = [{"role": "user", "content": "a"}]
ANSWER = [{"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no JSON"),
        ("[]", "line 2 is no preference"),
        ({"prompt": "a", "chosen": "b"}, "line 2 is no preference"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "line 2: prompt is empty"),
        ({"prompt": ANSWER, "chosen": "b", "rejected": "c"}, "a turn of the assistant at the beginning"),
        ({"prompt": MESSAGES, "chosen": MESSAGES, "rejected": "c"}, "chosen"),
        ({"prompt": MESSAGES, "chosen": ANSWER + MESSAGES + ANSWER, "rejected": "c"}, "must be one turn"),
        ({"prompt": [{"role": "boss", "content": "a"}], "chosen": "b", "rejected": "c"}, "'boss' is unknown"),
    ],
)  # fmt: skip
def test_what_is_no_preference_is_named_by_its_line(
    pairs: Path, fails: Callable[..., str], line: object, said: str
) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    good = json.dumps({"prompt": MESSAGES, "chosen": MESSAGES + ANSWER, "rejected": "c"})
    Path("pairs.jsonl").write_text(f"{good}\n{text}\n")
    assert said in fails(tune_script.main, *DPO, "--out_dir=r")


def test_pairs_that_are_longer_than_the_block_are_left_out_and_counted(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("pairs.jsonl", "a") as file:
        for number in range(40):
            file.write("\n" + json.dumps({"prompt": f"{number}", "chosen": "b" * BLOCK, "rejected": "c"}))
    assert tune_script.main([*DPO, "--max_iters=0", "--out_dir=r"]) == 0
    output = capsys.readouterr().out
    left_out = [int(line.split("; ")[1].split()[0]) for line in output.splitlines() if "left out" in line]
    assert sum(left_out) == 40


def settings(**given: object) -> TuneSettings:
    return TuneSettings(**{"pairs": 30, "eval_prompts": 20, "max_new_tokens": 12} | given)  # pyright: ignore


def of(model: GPT) -> Any:
    """What `sample_pairs` needs of a run."""
    compute, data = Compute("cpu", "float64", False, 1), SimpleNamespace(tokenizer=TOKENIZER)
    return SimpleNamespace(model=model, data=data, compute=compute, console=Console(True))


def is_even(self: Problem, reply: str) -> bool:
    """A checker that random answers often pass."""
    return len(reply) % 2 == 0


def test_sampled_pairs_prefer_the_right_answer_and_then_the_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Problem, "is_solved_by", is_even)
    training, held_out = sample_pairs(of(random_assistant()), settings())
    assert (len(training), len(held_out)) == (30, 20)
    for pair in training + held_out:
        chosen, rejected = ((len(text) % 2, len(text)) for text in (pair.chosen, pair.rejected))
        assert chosen[0] < rejected[0] or (chosen[0] == rejected[0] and chosen[1] <= rejected[1])
    assert {len(pair.chosen) % 2 for pair in training} == {0, 1}


def test_no_pair_for_training_asks_a_held_out_problem_and_the_held_out_ones_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Problem] = []
    monkeypatch.setattr(Problem, "is_solved_by", lambda self, reply: bool(asked.append(self)))
    sample_pairs(of(random_assistant()), settings(eval_prompts=1))
    assert [problem.is_held_out() for problem in asked] == sorted(problem.is_held_out() for problem in asked)
    assert not asked[0].is_held_out() and asked[-1].is_held_out()


def test_a_share_of_the_labels_is_flipped_in_training_alone() -> None:
    model = random_assistant()
    (clean, held_out), (flipped, still) = (
        sample_pairs(of(model), settings(pairs=200, flipped=share)) for share in (0.0, 0.3)
    )
    assert held_out == still
    changed = [one.chosen == other.rejected for one, other in zip(clean, flipped, strict=True)]
    assert 0.15 < sum(changed) / 200 < 0.45
    assert all(one == other for one, other, new in zip(clean, flipped, changed, strict=True) if not new)


def test_a_model_whose_answers_never_differ_makes_no_pairs(fails: Callable[..., str], pairs: Path) -> None:
    save_assistant("silent")
    said = fails(
        tune_script.main,
        "--method=dpo",
        "--init_from=out/assistant_chat",
        "--max_new_tokens=1",
        "--pairs=2",
        *FEW,
    )
    assert "too good or too bad" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--init_from=scratch"], "tuning starts from an assistant"),
        (["--init_from=auto", "--out_dir=r"], "add --reference=RUN"),
        (["--n_layer=3"], "--n_layer is not an option"),
        (["--tasks=arithmetik"], "did you mean arithmetic"),
        (["--tasks=calculator"], "takes a tool's turn"),
        (["--preferences=nowhere.jsonl"], "cannot be read"),
    ],
)
def test_settings_that_cannot_be_are_one_line(
    pairs: Path, fails: Callable[..., str], arguments: list[str], said: str
) -> None:
    assert said in fails(tune_script.main, "--method=dpo", *FEW, *arguments)


def test_a_setting_of_train_py_in_a_file_is_named(pairs: Path, fails: Callable[..., str]) -> None:
    Path("own.py").write_text("n_layer = 3\n")
    assert "own.py: n_layer is a setting of train.py" in fails(tune_script.main, "own.py")


def test_each_script_resumes_its_own_runs(pairs: Path, fails: Callable[..., str]) -> None:
    import train as train_script

    assert tune_script.main([*DPO, "--max_iters=0", "--out_dir=r"]) == 0
    resume = ("--init_from=resume", "--out_dir=r", "--max_iters=2", "--device=cpu")
    assert "written by tune.py; go on with it: python tune.py" in fails(train_script.main, *resume)


def test_held_out_is_a_tenth_of_all_prompts() -> None:
    drawn = [
        preferences.pair_of({"prompt": f"{random.random()}", "chosen": "a", "rejected": "b"}, "here")
        for _ in range(4000)
    ]
    assert sum(pair.is_held_out() for pair in drawn) / 4000 == pytest.approx(HELD_OUT, abs=0.03)
