"""A reward model, and PPO on its scores."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.random_assistants import TOKENIZER, random_assistant, save_assistant, write_preferences
from support.runs import same, tensors

import chat
import tune as tune_script
from engine.training.metrics import read_metrics
from engine.training.report import Update
from engine.tuning.losses import clipped_losses, ranking_losses, returns_to_go
from engine.tuning.rows import add_score_head, answer_scores, make_rows
from engine.weights.checkpoint import open_checkpoint
from tasks.problem import Problem

COMMON = (
    "--device=cpu", "--threads=1", "--batch_size=5", "--learning_rate=1e-3", "--warmup_iters=0",
    "--log_interval=1", "--eval_interval=2", "--eval_prompts=10", "--max_new_tokens=12",
)  # fmt: skip
REWARD = ("--method=reward", "--preferences=pairs.jsonl", "--prompts=6", *COMMON)
PPO = ("--method=ppo", "--reward_model=out/scorer", "--prompts=3", "--group=4", *COMMON)


@pytest.fixture
def assistant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an assistant and a file of preferences, the current one."""
    monkeypatch.chdir(tmp_path)
    save_assistant()
    write_preferences(60)
    return tmp_path


@pytest.fixture
def scorer(assistant: Path) -> Path:
    """The same with a reward model of a few steps."""
    assert tune_script.main([*REWARD, "--max_iters=10", "--out_dir=out/scorer"]) == 0
    return assistant


def test_a_reward_model_learns_preferences_and_begins_with_none(assistant: Path) -> None:
    assert tune_script.main([*REWARD, "--max_iters=40", "--eval_interval=40", "--out_dir=r"]) == 0
    found = {line["step"]: line for line in read_metrics(Path("r/metrics.jsonl")) if line["kind"] == "eval"}
    assert found[0]["val_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert found[40]["val_loss"] < 0.5 and found[40]["accuracy"] > 0.8


def test_a_score_is_read_where_the_answer_ends_whatever_is_padded() -> None:
    model = add_score_head(random_assistant(), {"score.weight": torch.randn(1, 32, dtype=torch.float64)})
    prompts = [torch.randint(0, 250, (size,)).numpy() for size in (5, 9, 3)]
    answers = [torch.randint(0, 250, (size,)).numpy() for size in (7, 1, 2)]
    together = answer_scores(model, make_rows(TOKENIZER, prompts, answers, "cpu"))
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        features = model.features(torch.tensor([[*prompt.tolist(), *answer.tolist()]]))
        alone = features[0, -1] @ model.get_parameter("score.weight")[0]
        torch.testing.assert_close(together[number], alone, rtol=1e-10, atol=1e-12)


def test_the_scalar_head_is_saved_beside_the_model_and_resumed(assistant: Path) -> None:
    assert tune_script.main([*REWARD, "--max_iters=6", "--out_dir=whole"]) == 0
    assert tune_script.main([*REWARD, "--max_iters=4", "--lr_decay_iters=6", "--out_dir=parts"]) == 0
    assert tune_script.main(["--init_from=resume", "--out_dir=parts", "--max_iters=6", "--device=cpu"]) == 0
    heads = [open_checkpoint(Path(run), "last").tensors("score") for run in ("whole", "parts")]
    assert heads[0].keys() == {"score.weight"} and heads[0]["score.weight"].abs().max() > 0
    assert same(*heads) and same(tensors(Path("whole")), tensors(Path("parts")))
    assert not any("score" in name for name in open_checkpoint(Path("whole"), "last").tensors("model"))


def test_returns_are_the_score_less_the_cost_of_what_follows() -> None:
    log_ratios = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, 0.0]])
    found = returns_to_go(torch.tensor([3.0, 1.0]), log_ratios, 0.1)
    torch.testing.assert_close(found, torch.tensor([[2.85, 2.9, 2.8], [0.9, 1.0, 1.0]]))


def test_a_clipped_ratio_gives_no_gradient_where_it_would_go_further() -> None:
    now = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.1], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    losses = clipped_losses(now, torch.zeros(5, dtype=torch.float64), advantages, 0.2)
    losses.sum().backward()
    ratios = now.detach().exp().tolist()
    expected = [
        -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        for ratio, advantage in zip(ratios, advantages.tolist(), strict=True)
    ]
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)
    assert now.grad is not None
    assert now.grad.tolist() == pytest.approx([0, ratios[1], -ratios[2], 0, -2 * ratios[4]], rel=1e-12)
    assert ranking_losses(torch.zeros(2)).tolist() == pytest.approx([0.693147] * 2, abs=1e-6)


def test_the_first_update_moves_towards_higher_scores(scorer: Path) -> None:
    arguments = ("--prompts=8", "--beta=0.01", "--learning_rate=3e-3", "--max_iters=15", "--out_dir=r")
    assert tune_script.main([*PPO, *arguments]) == 0
    scores = [line["score"] for line in read_metrics(Path("r/metrics.jsonl")) if line["kind"] == "train"]
    assert sum(scores[-4:]) > sum(scores[:4])


def test_the_best_checkpoint_of_ppo_is_that_of_the_highest_score(
    scorer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter([0.1, 0.3, 0.7, 0.2])
    nothing = Update(torch.zeros(()), 0, torch.zeros(()), 0.0)
    monkeypatch.setattr(tune_script.PPO, "update", lambda *_: (nothing, {}))
    monkeypatch.setattr(tune_script.PPO, "scores_of", lambda *_: torch.full((3,), next(given)))
    assert tune_script.main([*PPO, "--max_iters=6", "--out_dir=r"]) == 0
    assert open_checkpoint(Path("r"), "best").meta["step"] == 4


def test_ppo_that_is_stopped_and_resumed_ends_in_the_same_weights(scorer: Path) -> None:
    assert tune_script.main([*PPO, "--max_iters=6", "--out_dir=whole"]) == 0
    assert tune_script.main([*PPO, "--lr_decay_iters=6", "--max_iters=4", "--out_dir=parts"]) == 0
    assert tune_script.main(["--init_from=resume", "--out_dir=parts", "--max_iters=6", "--device=cpu"]) == 0
    assert same(tensors(Path("whole")), tensors(Path("parts")))
    heads = [open_checkpoint(Path(run), "last").tensors("score") for run in ("whole", "parts")]
    assert same(*heads)


def test_an_answer_that_does_not_end_scores_less_than_any_other(
    scorer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, list[bool]]] = []
    look_at = tune_script.PPO.scores_and_values

    def watched(self: tune_script.PPO, answers: object) -> tuple[torch.Tensor, ...]:
        found = look_at(self, answers)  # pyright: ignore[reportArgumentType]
        seen.append((found[0], answers.ended))  # pyright: ignore[reportAttributeAccessIssue]
        return found

    monkeypatch.setattr(tune_script.PPO, "scores_and_values", watched)
    assert tune_script.main([*PPO, "--max_new_tokens=6", "--prompts=8", "--max_iters=1", "--out_dir=r"]) == 0
    scores, ended = seen[0][0], torch.tensor(seen[0][1])
    assert ended.any() and not ended.all()
    assert scores[~ended].max() <= scores[ended].min() - 1


def test_the_checker_and_the_scores_are_both_told(
    scorer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Problem, "is_solved_by", lambda self, reply: len(reply) < 5)
    assert tune_script.main([*PPO, "--max_iters=1", "--out_dir=out/r"]) == 0
    assert "score " in capsys.readouterr().out
    (line,) = (line for line in read_metrics(Path("out/r/metrics.jsonl")) if line["kind"] == "train")
    assert {"score", "reward", "ended", "length"} <= line.keys()
    lines = iter(["hello", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    chat.main(["out/r", "--device=cpu", "--max_new_tokens=4"])  # the second head is none of the assistant's


def test_a_resumed_run_keeps_the_models_that_it_began_with(scorer: Path, fails: Callable[..., str]) -> None:
    Path("own.py").write_text('reward_model = "run:scorer"\ninit_from = "run:assistant_chat"\n')
    assert tune_script.main(["own.py", *PPO[:1], *PPO[2:], "--max_iters=1"]) == 0
    save_assistant("scorer-2")
    assert tune_script.main(["own.py", "--init_from=resume", "--max_iters=2"]) == 0
    settings = open_checkpoint(Path("out/own"), "last").meta["settings"]
    assert (settings["reward_model"], settings["reference"]) == ("out/scorer", "out/assistant_chat")
    said = fails(tune_script.main, "own.py", "--init_from=resume", "--max_iters=3", "--method=grpo")
    assert "method is grpo, but the checkpoint" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method=ppo"], "ppo takes the scores of a reward model: add --reward_model"),
        (["--method=ppo", "--reward_model=out/assistant_chat"], "is no reward model"),
        (["--method=ppo", "--reward_model=run:nothing"], "there is no run out/nothing to start from"),
    ],
)
def test_without_a_reward_model_the_command_that_trains_one_is_said(
    assistant: Path, fails: Callable[..., str], arguments: list[str], said: str
) -> None:
    assert said in fails(tune_script.main, *COMMON, *arguments)


def test_a_reward_model_that_is_gone_at_a_resume_is_named(scorer: Path, fails: Callable[..., str]) -> None:
    assert tune_script.main([*PPO, "--max_iters=1", "--out_dir=r"]) == 0
    shutil.rmtree("out/scorer")
    said = fails(tune_script.main, "--init_from=resume", "--out_dir=r", "--max_iters=2", "--device=cpu")
    assert "out/scorer" in said
