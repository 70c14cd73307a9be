"""Rewards of groups of answers: rollouts, advantages, the loss against a plain one, and what may go wrong."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.random_assistants import BLOCK, TOKENIZER, random_assistant, save_assistant
from support.runs import same, tensors

import eval as score
import tune as tune_script
from engine.conversation.answering import answer_turns
from engine.conversation.questions import question_of, read_questions
from engine.conversation.template import encode_question
from engine.generation import KVCache, Sampling
from engine.training.metrics import read_metrics
from engine.tuning import rollout
from engine.tuning.losses import group_advantages, policy_gradient_losses
from engine.tuning.rollout import Judge, chosen_tasks, draw_answers, draw_questions
from engine.tuning.rows import log_probabilities, make_rows
from model import derive_seed
from tasks.problem import Problem

GRPO = (
    "--method=grpo", "--device=cpu", "--threads=1", "--prompts=3", "--group=4", "--batch_size=5",
    "--learning_rate=3e-3", "--warmup_iters=0", "--log_interval=1", "--eval_interval=2", "--eval_prompts=10",
    "--max_new_tokens=12",
)  # fmt: skip


@pytest.fixture
def assistant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an assistant, the current one."""
    monkeypatch.chdir(tmp_path)
    save_assistant()
    return tmp_path


@pytest.fixture
def half_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers whose first character has an even code are right."""
    monkeypatch.setattr(Problem, "is_solved_by", lambda self, reply: ord(reply[:1] or "a") % 2 == 0)


def some_prompts(number: int) -> list:
    asked = draw_questions(chosen_tasks("arithmetic reversing"), 3, number)
    return [encode_question(TOKENIZER, question_of(problem), BLOCK)[0] for problem in asked]


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("position", ["rotary", "learned"])
def test_log_probabilities_of_the_rollout_are_those_of_the_training_pass(
    dtype: torch.dtype, largest: float, position: str
) -> None:
    model, prompts = random_assistant(dtype, position=position), some_prompts(40)
    answers = draw_answers(model, TOKENIZER, prompts, 20, seed=1)
    rows = make_rows(TOKENIZER, prompts, answers.tokens, "cpu")
    found = log_probabilities(model, rows)
    drawn = answers.log_probabilities[answers.drawn]
    assert drawn.dtype == dtype and len({len(tokens) for tokens in answers.tokens}) > 5
    assert (found - drawn).abs().max() <= largest


def test_the_memory_of_a_rollout_is_given_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref] = []
    new_cache = rollout.new_cache

    def watched(*given: Any) -> KVCache:
        cache = new_cache(*given)
        made.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(rollout, "new_cache", watched)
    gc.disable()
    try:
        draw_answers(random_assistant(), TOKENIZER, some_prompts(3), 4, seed=1)
        assert len(made) == 1 and made[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_that_chat_gives(temperature: float) -> None:
    model, prompts = random_assistant(), some_prompts(20)
    answers = draw_answers(model, TOKENIZER, prompts, 15, seed=4, temperature=temperature)
    theirs = answer_turns(model, TOKENIZER, prompts, 15, Sampling(temperature=temperature), seed=4)
    assert answers.texts == [decoder.text for decoder in theirs]
    assert answers.ended == [decoder.ended for decoder in theirs]
    for tokens, text, ended in zip(answers.tokens, answers.texts, answers.ended, strict=True):
        assert TOKENIZER.decode(tokens[: len(tokens) - ended].tolist()) == text or not ended


def test_an_answer_that_never_ends_is_stopped_at_the_limit_and_earns_nothing(
    assistant: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Problem, "is_solved_by", lambda self, reply: True)
    save_assistant(ends=False)
    assert tune_script.main([*GRPO, "--max_iters=1", "--out_dir=r"]) == 0
    (line,) = (line for line in read_metrics(Path("r/metrics.jsonl")) if line["kind"] == "train")
    assert (line["ended"], line["length"], line["reward"]) == (0.0, 12.0, 0.0)
    assert "reward 0, ended 0, length 12" in capsys.readouterr().out


def test_advantages_are_rewards_less_the_mean_of_the_group_and_exactly_0_where_all_are_equal() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1], [1.0, 1.0, 1.0, 1.0]])
    assert group_advantages(rewards).tolist() == [[0.75, -0.25, -0.25, -0.25], [0.0] * 4, [0.0] * 4]
    thirds = torch.full((1, 3), 0.7, dtype=torch.float32)
    assert (group_advantages(thirds) == 0).all()


def test_loss_and_gradient_equal_a_plain_loop_in_float64() -> None:
    model, prompts = random_assistant(), [prompt for prompt in some_prompts(3) for _ in range(4)]
    answers = draw_answers(model, TOKENIZER, prompts, 10, seed=1)
    rewards = torch.rand(3, 4, dtype=torch.float64)
    advantages = group_advantages(rewards).flatten()
    rows = make_rows(TOKENIZER, prompts, answers.tokens, "cpu")
    now = log_probabilities(model, rows)
    loss = policy_gradient_losses(now, advantages[rows.row_of]).sum() / len(rows.tokens)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    total, count = torch.zeros((), dtype=torch.float64), 0
    for number, (prompt, tokens) in enumerate(zip(prompts, answers.tokens, strict=True)):
        group = rewards[number // 4]
        advantage = rewards[number // 4, number % 4] - sum(group.tolist()) / 4
        text = prompt.tolist()
        for token in tokens.tolist():
            probabilities = torch.softmax(model(torch.tensor([text]))[0, -1], dim=0)
            total = total - advantage * torch.log(probabilities[token])
            text.append(token)
            count += 1
    (total / count).backward()
    torch.testing.assert_close(loss, total / count, rtol=1e-10, atol=1e-12)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and gradients[name] is not None
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-8, atol=1e-12)


def test_what_earns_more_becomes_likelier(assistant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Problem, "is_solved_by", lambda self, reply: len(reply) > 0 and ord(reply[0]) % 2 == 0
    )
    more = ("--prompts=12", "--max_iters=30", "--learning_rate=5e-3")
    assert tune_script.main([*GRPO, *more, "--out_dir=r"]) == 0
    rewards = [line["reward"] for line in read_metrics(Path("r/metrics.jsonl")) if line["kind"] == "train"]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


@pytest.mark.parametrize("right", [True, False])
def test_a_step_in_which_all_rewards_are_equal_makes_no_update_and_is_counted(
    assistant: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], right: bool
) -> None:
    monkeypatch.setattr(Problem, "is_solved_by", lambda self, reply: right)
    monkeypatch.setattr(Judge, "rewards", lambda self, asked, _: torch.full((len(asked),), float(right)))
    assert tune_script.main([*GRPO, "--max_iters=2", "--out_dir=r"]) == 0
    assert "steps without targets, and so without an update: 2" in capsys.readouterr().out
    before, after = tensors(Path("out/assistant_chat")), tensors(Path("r"))
    assert same(before, {name: after[name] for name in before})
    assert before.keys() == after.keys()  # the optimizer has no state: it was never called


@pytest.mark.usefixtures("half_are_right")
def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_weights(assistant: Path) -> None:
    assert tune_script.main([*GRPO, "--max_iters=6", "--out_dir=whole"]) == 0
    assert tune_script.main([*GRPO, "--lr_decay_iters=6", "--max_iters=4", "--out_dir=parts"]) == 0
    shutil.rmtree("out/assistant_chat")
    assert tune_script.main(["--init_from=resume", "--out_dir=parts", "--max_iters=6", "--device=cpu"]) == 0
    assert same(tensors(Path("whole")), tensors(Path("parts")))
    rewards = [
        [line["reward"] for line in read_metrics(Path(run, "metrics.jsonl")) if line["kind"] == "train"]
        for run in ("whole", "parts")
    ]
    assert rewards[0] == rewards[1] and len(set(rewards[0])) > 1


def test_a_checker_that_raises_is_named_and_counted(
    assistant: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raises(self: Problem, reply: str) -> bool:
        if ord(reply[:1] or "a") % 2:
            raise ZeroDivisionError("no such share")
        return True

    monkeypatch.setattr(Problem, "is_solved_by", raises)
    assert tune_script.main([*GRPO, "--prompts=8", "--max_iters=3", "--out_dir=r"]) == 0
    output = capsys.readouterr().out
    assert output.count("raised ZeroDivisionError: no such share") == 1
    lines = [line for line in read_metrics(Path("r/metrics.jsonl")) if line["kind"] == "train"]
    assert 0 < lines[0]["reward_errors"] < lines[-1]["reward_errors"]
    assert 0 < lines[0]["reward"] < 1


def test_no_question_of_training_or_of_its_evaluation_is_held_out() -> None:
    tasks = chosen_tasks("arithmetic counting reversing spelling sorting facts unknown")
    for step in range(40):
        asked = draw_questions(tasks, derive_seed(1337, "rollout", step), 32)
        assert not any(problem.is_held_out() for problem in asked)
        assert asked == draw_questions(tasks, derive_seed(1337, "rollout", step), 32)
    assert asked != draw_questions(tasks, derive_seed(1338, "rollout", step), 32)


def test_a_question_that_leaves_no_room_for_an_answer_is_one_line(
    assistant: Path, fails: Callable[..., str]
) -> None:
    assert "the block has room for 6" in fails(tune_script.main, *GRPO, "--max_new_tokens=90")


def test_questions_of_a_file_are_asked_and_scored(
    assistant: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (json.dumps({"question": f"Say {n}.", "answer": f"#### {n}"}) for n in range(40))
    Path("q.jsonl").write_text("\n".join(lines), encoding="utf-8")
    asked: list[str] = []
    usual = rollout.ask

    def watched(run: Any, settings: Any, problems: list[Problem], *rest: Any, **more: Any) -> Any:
        asked.extend(problem.question for problem in problems)
        return usual(run, settings, problems, *rest, **more)

    monkeypatch.setattr(tune_script, "ask", watched)
    assert tune_script.main([*GRPO, "--tasks=q.jsonl", "--max_iters=2", "--out_dir=r"]) == 0
    known = {problem.question for problem in read_questions("q.jsonl") if not problem.is_held_out()}
    assert len(asked) > 20 and set(asked) <= known
    score.main(["r", "--tasks", "q.jsonl", "--device=cpu", "--limit=5"])
    assert "q.jsonl    problems            5" in capsys.readouterr().out
