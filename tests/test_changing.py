"""docs/changing.md: each of its changes, applied to a copy of the repository, trains, resumes and samples."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import ROOT

PAGE = (ROOT / "docs/changing.md").read_text(encoding="utf-8")
# Heading, diff, and the options of the last command behind it.
CHANGES = re.findall(
    r"^## ([^\n]+)\n(?:(?!^## ).)*?```diff\n(.*?)```.*?^(python train\.py [^\n]*)\n```", PAGE, re.S | re.M
)
SMALL = "--n_layer=2 --n_head=2 --n_embd=32 --block_size=32 --batch_size=4 --gradient_accumulation_steps=2"
QUICK = (
    f"--dataset=topics {SMALL} --eval_interval=3 --eval_iters=2 --sample_tokens=8 --out_dir=run --device=cpu "
    f"--lr_decay_iters=6 --warmup_iters=1"
)
# Runs command lines one after the other in one process, which imports torch once.
RUN_ALL = """
import importlib, json, sys
for script, *arguments in json.loads(sys.argv[1]):
    print("$", script, flush=True)
    assert not importlib.import_module(script).main(arguments)
"""


def run(folder: Path, *lines: str) -> list[str]:
    """Run lines such as "python train.py ..." with the code in a folder; the output of each."""
    words = [shlex.split(line)[1:] for line in lines]
    commands = [[script.removesuffix(".py"), *arguments] for script, *arguments in words]
    finished = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)], cwd=folder, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-3000:]
    return re.split(r"^\$ \w+\n", finished.stdout, flags=re.M)[1:]


def test_the_page_holds_six_changes_of_at_most_15_lines() -> None:
    assert len(CHANGES) == 6
    for heading, diff, _ in CHANGES:
        changed = [line for line in diff.splitlines() if re.match(r"[+-](?![+-]{2} )", line)]
        assert 0 < len(changed) <= 15, heading


@pytest.mark.slow(reason="six copies of the repository")
@pytest.mark.parametrize(("heading", "diff", "line"), CHANGES, ids=[change[0] for change in CHANGES])
def test_a_change_trains_resumes_and_samples(
    heading: str, diff: str, line: str, prepared: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    for name in ("engine", "configs", "tasks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.glob("*.py"):
        shutil.copy(file, copy)
    subprocess.run(["git", "apply", "-"], cwd=copy, input=diff, text=True, check=True)
    (copy / "data").symlink_to(prepared / "data", target_is_directory=True)
    options = line.replace("--n_kv_head=2", "--n_kv_head=1")  # of the two heads of a model so small
    _, resumed, sample, count = run(
        copy,
        f"{options} {QUICK} --max_iters=3",
        f"{options} {QUICK} --max_iters=6 --init_from=resume",
        "python sample.py --out_dir=run --num_samples=1 --max_new_tokens=40 --device=cpu",
        "python count.py run",
    )
    assert "step 6: training loss" in resumed and sample.strip() and "parameters" in count
