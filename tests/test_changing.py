"""docs/changing.md: each of its changes, applied to a copy of the repository, trains, resumes and samples."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import ROOT, TEXT

PAGE = (ROOT / "docs/changing.md").read_text(encoding="utf-8")
# Heading, diff, and the options of the last command behind it.
CHANGES = re.findall(
    r"^## ([^\n]+)\n(?:(?!^## ).)*?```diff\n(.*?)```.*?^(python train\.py [^\n]*)\n```", PAGE, re.S | re.M
)
SMALL = "--n_layer=2 --n_head=2 --n_embd=32 --block_size=32 --batch_size=4 --gradient_accumulation_steps=2"
QUICK = (
    f"--dataset=topics {SMALL} --eval_interval=3 --eval_iters=2 --sample_tokens=8 --out_dir=run --device=cpu"
)


def run(folder: Path, line: str) -> str:
    """A line of the page, run in a folder of the copy; its output."""
    words = [sys.executable if word == "python" else word for word in shlex.split(line)]
    finished = subprocess.run(words, cwd=folder, env=os.environ, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-3000:]
    return finished.stdout


def test_the_page_holds_six_changes_of_at_most_15_lines() -> None:
    assert len(CHANGES) == 6
    for heading, diff, _ in CHANGES:
        changed = [line for line in diff.splitlines() if re.match(r"[+-](?![+-]{2} )", line)]
        assert 0 < len(changed) <= 15, heading


@pytest.mark.slow(reason="six copies of the repository, and twenty starts of torch")
@pytest.mark.parametrize(("heading", "diff", "line"), CHANGES, ids=[change[0] for change in CHANGES])
def test_a_change_trains_resumes_and_samples(heading: str, diff: str, line: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("engine", "configs", "tasks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.glob("*.py"):
        shutil.copy(file, copy)
    subprocess.run(["git", "apply", "-"], cwd=copy, input=diff, text=True, check=True)
    (copy / "topics.txt").write_text(TEXT[:30_000], encoding="utf-8")
    run(copy, "python prepare.py topics.txt")
    options = line.replace("--n_kv_head=2", "--n_kv_head=1")  # of the two heads of a model so small
    run(copy, f"{options} {QUICK} --max_iters=3 --lr_decay_iters=6 --warmup_iters=1")
    said = run(
        copy, f"{options} {QUICK} --max_iters=6 --lr_decay_iters=6 --warmup_iters=1 --init_from=resume"
    )
    assert "step 6: training loss" in said, said
    assert run(
        copy, "python sample.py --out_dir=run --num_samples=1 --max_new_tokens=40 --device=cpu"
    ).strip()
    assert "parameters" in run(copy, "python count.py run")
