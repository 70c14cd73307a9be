"""Each method, killed at random and restarted by the same command, ends in the same weights."""

from pathlib import Path

import pytest
from support.commands import command
from support.random_assistants import save_assistant, write_preferences
from support.runs import kill_and_restart, same, tensors

from engine.training.metrics import read_metrics
from engine.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow(reason="kills and restarts of real runs")

COMMON = (
    "--device=cpu", "--threads=1", "--batch_size=8", "--learning_rate=1e-3", "--warmup_iters=0",
    "--prompts=4", "--group=4", "--log_interval=1", "--eval_interval=5", "--eval_prompts=10",
    "--max_new_tokens=12", "--max_iters=60", "--reference=out/assistant_chat", "--preferences=pairs.jsonl",
)  # fmt: skip


@pytest.mark.parametrize("method", ["dpo", "reward", "ppo", "grpo"])
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.torture)])
def test_a_killed_run_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kills: int
) -> None:
    monkeypatch.chdir(tmp_path)
    save_assistant()
    write_preferences(80)
    arguments = [f"--method={method}", *COMMON]
    if method == "ppo":
        scorer = ("--method=reward", *COMMON, "--init_from=out/assistant_chat", "--out_dir=out/scorer")
        assert command(tmp_path, "tune.py", *scorer, "--max_iters=5").returncode == 0
        arguments.append("--reward_model=out/scorer")
    finished = command(tmp_path, "tune.py", *arguments, "--init_from=auto", "--out_dir=whole")
    assert finished.returncode == 0, finished.stderr

    kill_and_restart(tmp_path, "killed", kills, range(4, 24), "tune.py", *arguments)
    finished = command(tmp_path, "tune.py", *arguments, "--init_from=auto", "--out_dir=killed")
    assert finished.returncode == 0, finished.stderr
    assert same(tensors(Path("whole")), tensors(Path("killed")))
    heads = [open_checkpoint(Path(run), "last").tensors("score") for run in ("whole", "killed")]
    assert same(*heads) and bool(heads[0]) == (method in ("reward", "ppo"))
    lines = [read_metrics(Path(run, "metrics.jsonl")) for run in ("whole", "killed")]
    for one, other in zip(*lines, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    print(f"{method}: killed {kills} times: weights, optimizer and figures differ by 0.0")
