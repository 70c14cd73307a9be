"""The real commands, from text to a trained model to samples, on a model that takes milliseconds a step."""

import dataclasses
import itertools
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from support.commands import HANG, ROOT, command
from support.runs import losses, same, tensors, train

from engine.errors import UserError
from engine.generation import generate
from engine.parallel.world import ALONE
from engine.settings import TrainSettings
from engine.training.metrics import read_metrics
from engine.training.optimizer import learning_rate_factor
from engine.training.report import Clock, PendingReport, Report, Update
from engine.weights.checkpoint import checkpoint_folders, load, open_checkpoint, read_checkpoint

pytestmark = pytest.mark.slow(reason="two dozen real runs")


def test_a_run_from_start_to_sample(place: Path) -> None:
    output = train(place)
    run = place / "out/tiny"
    start = output.splitlines()[:5]
    assert [line.split(" ")[0] for line in start] == ["run:", "data:", "model:", "training:", "step"]
    assert start[3].endswith("on cpu, 1 thread, float32; Ctrl-C saves and stops")
    assert "out/tiny" in start[0] and "data/topics" in start[1] and "parameters" in start[2]
    assert output.splitlines()[-1].endswith("python sample.py --out_dir=out/tiny")
    assert "Best validation loss" in output.splitlines()[-2]
    assert sorted(losses(run)) == list(range(1, 21)) and sorted(losses(run, "eval")) == [0, 10, 20]
    assert losses(run, "eval")[20] < losses(run, "eval")[0]
    assert [folder.name for folder in checkpoint_folders(run)] == ["step-00000020", "step-00000010"]
    line = read_metrics(run / "metrics.jsonl")[-1]
    assert {"step", "tokens", "seconds", "train_loss", "val_loss", "val_bits_per_byte"} <= line.keys()
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["n_embd"] == 32
    assert {"compile", "memory", "processes"} <= {line.split(":")[0] for line in config["details"]}

    texts = [
        command(place, "sample.py", "--seed=3", "--max_new_tokens=30", "--temperature", "0.8", *more).stdout
        for more in (["--device=cpu"], ["--device=cpu", "--num_samples=1"])
    ]
    assert texts[0].startswith(texts[1].rstrip("\n")) and len(texts[0].split("-" * 80)) == 3

    assert command(place, "plot.py").returncode == 0
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_three_lines_of_a_notebook(place: Path) -> None:
    train(place, "--max_iters=1", "--eval_interval=1")
    model, tokenizer = load("out/tiny")
    ids = torch.from_numpy(tokenizer.encode("The "))[None]
    text = tokenizer.decode(generate(model, ids, 20)[0].tolist())
    assert text.startswith("The ") and len(text) == 24


def test_resume_is_bit_exact_and_goes_on_from_last(place: Path) -> None:
    train(place, "--out_dir=whole")
    train(place, "--out_dir=parts", "--max_iters=10", "--lr_decay_iters=20")
    output = train(place, "--out_dir=parts", "--init_from=resume", "--lr_decay_iters=20")
    assert "max_iters: 10 → 20" in output and "resuming parts/checkpoints/step-00000010" in output
    assert same(tensors(place / "whole"), tensors(place / "parts"))
    assert losses(place / "whole") == losses(place / "parts")
    assert losses(place / "whole", "eval") == losses(place / "parts", "eval")


def test_a_resumed_run_needs_no_configuration_file_and_keeps_its_settings(place: Path) -> None:
    train(place, "--out_dir=out/some", "--dropout=0.3", "--max_iters=10")
    finished = command(place, "train.py", "--init_from=resume", "--max_iters=12")
    assert finished.returncode == 0, finished.stderr
    meta = open_checkpoint(place / "out/some", "last").meta
    assert (meta["step"], meta["settings"]["dropout"], meta["settings"]["max_iters"]) == (12, 0.3, 12)


def test_a_second_start_takes_the_next_free_folder_and_resume_the_newest(place: Path) -> None:
    quick = ("--max_iters=2", "--eval_interval=2", "--sample_tokens=0")
    for _ in range(3):
        train(place, *quick)
    assert sorted(folder.name for folder in (place / "out").iterdir()) == ["tiny", "tiny-2", "tiny-3"]
    assert train(place, *quick).startswith("run: out/tiny-4 (out/tiny exists)\n")
    assert "out/tiny-4/checkpoints" in train(place, "--init_from=resume", "--max_iters=3")
    options = ("--device=cpu", "--num_samples=1", "--max_new_tokens=5")
    assert command(place, "sample.py", *options).returncode == 0


def test_auto_starts_and_then_goes_on(place: Path) -> None:
    assert "resuming" not in train(place, "--init_from=auto", "--max_iters=10")
    assert "resuming out/tiny/" in train(place, "--init_from=auto", "--max_iters=20")
    (line,) = train(place, "--init_from=auto", "--max_iters=20").splitlines()
    assert line == "nothing left to do: out/tiny has made its 20 steps; --max_iters=40 goes on"


def test_evaluation_equals_a_loop_over_the_split(place: Path) -> None:
    train(place, "--eval_iters=none", "--max_iters=5", "--dtype=float64")
    from engine.data.dataset import open_dataset

    data, (model, _) = open_dataset("topics", 32), load("out/tiny", checkpoint="last", dtype=torch.float64)
    total, ids = 0.0, torch.from_numpy(data.val.read(0, data.val.tokens))
    for begin in range(0, len(ids) - 1, 32):
        window = ids[begin : begin + 33]
        logits = model(window[None, :-1])[0].log_softmax(-1)
        total -= logits[torch.arange(len(window) - 1), window[1:]].sum().item()
    assert losses(place / "out/tiny", "eval")[5] == pytest.approx(total / (len(ids) - 1), abs=1e-10)
    output = command(
        place, "train.py", "tiny.py", "--init_from=resume", "--eval_only=True", "--eval_iters=none"
    )
    assert f"validation loss {total / (len(ids) - 1):.4f}" in output.stdout


def test_eval_only_writes_nothing(place: Path) -> None:
    train(place, "--max_iters=2", "--eval_interval=2")
    before = {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*")}
    assert "validation loss" in train(place, "--init_from=resume", "--eval_only=True")
    assert before == {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*")}


def test_patience_ends_a_run_that_no_longer_gains(place: Path) -> None:
    train(place, "--learning_rate=1e-30", "--eval_interval=1", "--patience=2", "--dtype=float64")
    assert max(losses(place / "out/tiny", "eval")) <= 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_every_precision_learns(place: Path, dtype: str) -> None:
    output = train(place, f"--dtype={dtype}")
    assert f"on cpu, 1 thread, {dtype};" in output
    assert losses(place / "out/tiny", "eval")[20] < losses(place / "out/tiny", "eval")[0]
    assert ("scale" in open_checkpoint(place / "out/tiny", "last").meta["scaler"]) == (dtype == "float16")


@pytest.mark.parametrize("columns", [100, 0])
def test_a_terminal_shows_log_lines_and_where_its_width_is_known_a_bar(place: Path, columns: int) -> None:
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (40, columns))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "tiny.py"],
        cwd=place,
        stdout=side,
        stderr=side,
        close_fds=True,
    )
    os.close(side)
    seen = b""
    while True:
        try:
            seen += os.read(main, 65536)
        except OSError:  # the other end is closed
            break
    assert process.wait(HANG) == 0 and b"step 7: loss" in seen and b"done: 20 steps" in seen
    assert (b"step/s" in seen) == (b"evaluating: val, 0 of 16 windows" in seen) == (columns > 0)


def test_progress_is_plain_lines_in_a_file_and_the_last_sample_comes_once(place: Path) -> None:
    output = train(place)
    assert "\r" not in output and "\x1b" not in output and output.count("step 7: loss") == 1
    evaluated = output.split("step 20: training loss")[1].splitlines()
    sample = [line for line in evaluated[1:] if line.startswith("    ")]
    assert len("\n".join(line[4:] for line in sample)) <= 5 * 16
    assert re.search(r"done: 20 steps in \d+ min \d\d s of training, \d+ min \d\d s by the clock\.", output)


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    settings = TrainSettings(learning_rate=1.0, min_lr=0.2, warmup_iters=4, max_iters=104)
    rates = [learning_rate_factor(step, settings) for step in range(120)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[54] == pytest.approx(0.6) and rates[104:] == [0.2] * 16
    assert all(late <= early for early, late in itertools.pairwise(rates[4:]))
    settings = dataclasses.replace(settings, decay_lr=False)
    assert {learning_rate_factor(step, settings) for step in range(200)} == {1.0}


def test_a_report_is_the_mean_over_the_targets() -> None:
    values = Update(torch.tensor(6.0), 4, torch.tensor(5.0), 0.1)
    assert PendingReport(3, 1.0, values, True, ALONE).read() == Report(3, 1.0, 0.1, 1.5, 5.0, True)
    nothing = Update(torch.tensor(0.0), 0, torch.tensor(0.0), 0.1)
    assert PendingReport(3, 1.0, nothing, False, ALONE).read() == Report(3, 1.0, 0.1, None, 0.0, False)


def test_the_clock_counts_between_start_and_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 103.0, 200.0, 204.0])
    monkeypatch.setattr("engine.training.report.time.perf_counter", lambda: next(times))
    clock = Clock(0, 5.0)
    assert clock.seconds == 5.0
    clock.start()
    clock.pause()
    assert clock.seconds == 8.0
    clock.start()
    clock.pause()
    assert clock.seconds == 12.0


def test_wandb_offline_changes_nothing_and_a_resumed_run_logs_a_part_of_its_own(place: Path) -> None:
    pytest.importorskip("wandb")
    train(place, "--out_dir=without")
    for more in (["--max_iters=10", "--lr_decay_iters=20"], ["--init_from=resume", "--lr_decay_iters=20"]):
        finished = command(
            place, "train.py", "tiny.py", "--out_dir=with", "--wandb_log=True", *more, WANDB_MODE="offline"
        )
        assert finished.returncode == 0 and "warning" not in finished.stdout, finished.stdout
    assert same(tensors(place / "without"), tensors(place / "with"))
    assert losses(place / "without") == losses(place / "with")
    first, last = (read_checkpoint(folder).meta["wandb_id"] for folder in checkpoint_folders(place / "with"))
    assert first and last and first != last  # the files of one id would overwrite each other when synced


def test_a_loss_that_is_not_finite_stops_before_anything_of_it_is_saved(place: Path) -> None:
    finished = command(
        place, "train.py", "tiny.py", "--learning_rate=1e30", "--grad_clip=0", "--warmup_iters=0"
    )
    assert finished.returncode == 2 and "diverged" in finished.stderr and "Traceback" not in finished.stderr
    (folder,) = checkpoint_folders(place / "out/tiny")  # that of step 0
    checkpoint = read_checkpoint(folder)
    assert all(tensor.isfinite().all() for tensor in checkpoint.tensors("model").values())


def test_a_folder_without_a_checkpoint_is_named_in_full(place: Path) -> None:
    with pytest.raises(UserError, match=f"{re.escape(str(place / 'out/nowhere'))} holds no checkpoint"):
        load("out/nowhere")


def test_importing_the_script_reads_no_command_line_and_help_imports_no_torch() -> None:
    line = "import sys; sys.argv = ['x', '--nonsense']; import train; assert callable(train.update)"
    imported = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert imported.returncode == 0, imported.stderr
    for arguments, status in ((["--help"], 0), (["--nonsense=1"], 2)):
        line = [sys.executable, "-X", "importtime", "train.py", *arguments]
        answered = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert answered.returncode == status and "torch" not in answered.stderr
        assert ("learning_rate" in answered.stdout) == (status == 0)


def test_a_path_with_a_space_is_quoted_where_it_is_to_be_copied(place: Path) -> None:
    output = train(place, "--out_dir=out/a b", "--max_iters=1", "--sample_tokens=0")
    assert output.splitlines()[-1].endswith("python sample.py --out_dir='out/a b'")
