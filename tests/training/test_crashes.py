"""Kills, full disks, signals and damage. In full: python -m pytest -m torture -s -n 0"""

import json
import os
import pty
import random
import resource
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import torch
from support.commands import HANG, ROOT, command
from support.runs import kill_and_restart, losses, same, start, tensors, train, wait_for

import train as train_script
from engine.data.dataset import open_dataset
from engine.errors import UserError
from engine.training.metrics import read_metrics
from engine.weights import checkpoint as checkpoints
from engine.weights import saving

pytestmark = pytest.mark.slow(reason="kills, signals and restarts of real runs")

full = pytest.mark.torture


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=full)])
def test_a_kill_while_saving_never_costs_more_than_the_save(tmp_path: Path, kills: int) -> None:
    """A child saves 44 MB checkpoints one after the other and is killed in the midst of one."""
    weights = {f"w{number}": torch.randn(1024, 1024) for number in range(11)}
    saved, leftovers = 0, 0
    for _ in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            for step in range(saved + 1, saved + 1000):
                os.write(writer, step.to_bytes(4, "little"))
                saving.save_checkpoint(tmp_path, {"step": step, "model": MODEL}, {"model": weights})
                saving.prune(tmp_path, 2)
        os.close(writer)
        starting = int.from_bytes(os.read(reader, 4), "little")
        time.sleep(random.random() * 0.25)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(reader, 4):
            starting = int.from_bytes(more, "little")
        os.close(reader)
        leftovers += len(list((tmp_path / "checkpoints").glob(".step-*")))
        saving.clean_leftovers(tmp_path)
        assert not list(tmp_path.rglob(".*"))
        if starting == 1 and not checkpoints.checkpoint_folders(tmp_path):
            continue  # killed in the very first save: there is nothing to lose yet
        checkpoint = checkpoints.open_checkpoint(tmp_path, "last")
        assert starting - 1 <= checkpoint.meta["step"] <= starting
        assert torch.equal(checkpoint.tensors("model")["w10"], weights["w10"])
        saved = checkpoint.meta["step"]
    print(
        f"killed {kills} times while saving 44 MB, {leftovers} of them in mid-file: 'last' loaded every time"
    )
    assert leftovers > 0 or kills < 20


MODEL = {
    "vocab_size": 5, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 4,
    "dropout": 0.0, "bias": True, "activation": "gelu", "tied_head": True,
}  # fmt: skip


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=full)])
def test_a_run_killed_and_restarted_by_the_same_command_ends_in_the_same_weights(
    place: Path, kills: int
) -> None:
    steps = ("--max_iters=400", "--eval_interval=20", "--eval_iters=2")
    train(place, "--out_dir=whole", *steps)
    kill_and_restart(place, "killed", kills, range(8, 60), "train.py", "tiny.py", *steps)
    train(place, "--out_dir=killed", "--init_from=auto", *steps)
    assert same(tensors(place / "whole"), tensors(place / "killed"))
    keys = [(line["step"], line["kind"]) for line in read_metrics(place / "killed/metrics.jsonl")]
    assert len(keys) == len(set(keys))
    for kind in ("train", "eval"):
        assert losses(place / "whole", kind) == losses(place / "killed", kind)
    print(f"killed {kills} times in training: weights, optimizer and losses differ by 0.0")


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if "train.py" in Path(f"/proc/{child}/cmdline").read_text()]


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


STOPPING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]
TORCHRUN_SIGNALS = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_saves_and_ends_the_run(place: Path, number: signal.Signals) -> None:
    process = start(place, 1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=HANG)
    assert process.returncode == 128 + number, output
    stopped = checkpoints.open_checkpoint(place / "r", "last").meta["step"]
    assert f"stopped at step {stopped}; to go on, add --init_from=resume" in output and stopped > 0
    train(place, "--out_dir=r", "--init_from=resume", f"--max_iters={stopped + 5}", "--lr_decay_iters=1000")
    train(place, "--out_dir=whole", f"--max_iters={stopped + 5}", "--lr_decay_iters=1000")
    assert same(tensors(place / "whole"), tensors(place / "r"))


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_to_torchrun_saves_at_a_step_that_all_agreed_on(place: Path, number: signal.Signals) -> None:
    process = start(place, 2, TORCHRUN_SIGNALS)
    workers = workers_of(process)
    assert len(workers) == 2
    process.send_signal(number)
    output, _ = process.communicate(timeout=HANG)
    assert process.returncode == 1  # torchrun's own, whatever its workers return
    stopped = checkpoints.open_checkpoint(place / "r", "last").meta["step"]
    assert output.count(f"stopped at step {stopped};") == 1 and stopped > 0, output
    assert not any(alive(worker) for worker in workers)


@pytest.mark.parametrize("processes", [1, 2])
def test_under_nohup_a_closed_terminal_does_not_end_the_run(place: Path, processes: int) -> None:
    """torchrun must be told not to handle SIGHUP; its processes then inherit that it is ignored."""
    options = ("--signals-to-handle=SIGTERM,SIGINT,SIGQUIT,SIGUSR1",)
    process = start(place, processes, *options, prefix=("nohup",))
    os.killpg(process.pid, signal.SIGHUP)
    metrics = place / "r/metrics.jsonl"
    lines = metrics.read_text().count("\n")
    wait_for(lambda: process.poll() is not None or metrics.read_text().count("\n") > lines + 20)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=HANG)
    stopped = checkpoints.open_checkpoint(place / "r", "last").meta["step"]
    assert f"stopped at step {stopped};" in output and stopped > lines


def test_a_terminal_that_is_closed_saves_and_ends_the_run(place: Path) -> None:
    """What the terminal no longer takes is not said; the checkpoint is there."""
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
        line = ["train.py", "tiny.py", "--out_dir=r", "--max_iters=1000000", "--eval_interval=1000000"]
        os.execv(sys.executable, [sys.executable, str(ROOT / line[0]), *line[1:]])
    termios.tcsetwinsize(terminal, (40, 100))  # without a size there is no bar
    seen, deadline = b"", time.monotonic() + HANG
    while b"step/s" not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(terminal, 65536)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP, seen
    assert checkpoints.open_checkpoint(place / "r", "last").meta["step"] > 0


def test_sigquit_ends_the_run_at_once_without_a_checkpoint(place: Path) -> None:
    process = start(place, 1)
    before = sorted((place / "r/checkpoints").iterdir())
    process.send_signal(signal.SIGQUIT)
    process.communicate(timeout=HANG)
    assert process.returncode == -signal.SIGQUIT and sorted((place / "r/checkpoints").iterdir()) == before


def test_training_in_another_thread_than_the_main_one_works(place: Path) -> None:
    """As a notebook's or a server's thread would: no signal is caught there."""
    handlers = [signal.getsignal(number) for number in STOPPING]
    status: list[int] = []
    thread = threading.Thread(
        target=lambda: status.append(train_script.main(["tiny.py", "--out_dir=r", "--max_iters=3"]))
    )
    thread.start()
    thread.join(HANG)
    assert status == [0] and checkpoints.open_checkpoint(place / "r", "last").meta["step"] == 3
    assert handlers == [signal.getsignal(number) for number in STOPPING]


def test_where_a_process_is_stuck_the_others_leave_without_writing(place: Path) -> None:
    process = start(place, 2)
    before = sorted((place / "r/checkpoints").iterdir())
    stuck, other = workers_of(process)
    os.kill(stuck, signal.SIGSTOP)
    began = time.monotonic()
    os.kill(other, signal.SIGTERM)
    wait_for(lambda: not alive(other))
    assert time.monotonic() - began >= 9
    os.kill(stuck, signal.SIGKILL)
    output, _ = process.communicate(timeout=HANG)
    assert "no agreement to stop within 10 s" in output
    assert sorted((place / "r/checkpoints").iterdir()) == before and not alive(stuck)


def test_a_worker_that_dies_is_restarted_and_the_run_ends_in_the_same_weights(place: Path) -> None:
    common = ["--max_iters=300", "--eval_interval=20", "--eval_iters=2", "--init_from=auto"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = [str(ROOT / "train.py"), "tiny.py", *common]
    whole = subprocess.run(
        [*launch, *script, "--out_dir=whole"], cwd=place, capture_output=True, timeout=HANG
    )
    assert whole.returncode == 0
    process = subprocess.Popen(
        [*launch, "--max-restarts=3", *script, "--out_dir=r"],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(lambda: (place / "r/checkpoints/step-00000040").exists() or process.poll() is not None)
    os.kill(random.choice(workers_of(process)), signal.SIGKILL)
    output, _ = process.communicate(timeout=HANG)
    assert process.returncode == 0 and "resuming r/checkpoints/step-" in output, output
    assert same(tensors(place / "whole"), tensors(place / "r"))
    assert losses(place / "whole") == losses(place / "r")


def limited(place: Path, *arguments: str, size: int) -> subprocess.CompletedProcess[str]:
    """train.py where no file may grow beyond `size` bytes."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "tiny.py", *arguments],
        cwd=place, capture_output=True, text=True, timeout=HANG,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )  # fmt: skip


def test_a_full_disk_is_one_line_and_the_older_checkpoint_stays(place: Path) -> None:
    train(place, "--out_dir=r", "--max_iters=10")
    before = sorted(path for path in (place / "r/checkpoints").rglob("*"))
    finished = limited(place, "--out_dir=r", "--init_from=resume", size=50_000)
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1
    assert "step 20 could not be written" in finished.stderr and "File too large" in finished.stderr
    assert sorted(path for path in (place / "r/checkpoints").rglob("*")) == before
    assert checkpoints.open_checkpoint(place / "r", "last").meta["step"] == 10


def test_with_save_errors_continue_a_full_disk_is_a_warning(place: Path) -> None:
    train(place, "--out_dir=r", "--max_iters=10")
    finished = limited(
        place, "--out_dir=r", "--init_from=resume", "--save_errors=continue", "--eval_interval=5", size=50_000
    )
    assert finished.returncode == 0 and finished.stdout.count("warning: the checkpoint of step") == 2, (
        finished.stderr
    )
    assert checkpoints.open_checkpoint(place / "r", "last").meta["step"] == 10
    assert max(losses(place / "r")) == 20


def test_metrics_that_cannot_be_written_are_one_line(place: Path) -> None:
    finished = limited(place, "--out_dir=r", "--eval_interval=100", "--max_iters=100", size=3000)
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1, finished.stderr


@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=full)])
def test_every_truncation_and_every_flipped_bit_is_detected(place: Path, rounds: int) -> None:
    """In checkpoints and token files: resume goes back, sampling refuses by name, a data set is refused."""
    train_script.main(["tiny.py", "--out_dir=r", "--sample_tokens=0"])
    shutil.copytree(place / "data/topics", place / "mine/topics", symlinks=False)
    newest = place / "r/checkpoints/step-00000020"
    files = [*newest.iterdir(), *(place / "mine/topics").glob("*.bin")]
    assert len(files) == 5
    detected = 0
    for how in ("truncate", "flip"):
        for _ in range(rounds):
            file = random.choice(files)
            content = file.read_bytes()
            place_of_damage = random.randrange(len(content))
            damaged = bytearray(content)
            if how == "truncate":
                damaged = damaged[:place_of_damage]
            else:
                damaged[place_of_damage] ^= 1 << random.randrange(8)
            file.write_bytes(damaged)
            try:
                if file.suffix == ".bin":
                    open_dataset("topics", 32, place / "mine")
                else:
                    checkpoints.open_checkpoint(place / "r", "last")
            except UserError as error:
                assert str(file.relative_to(place)) in str(error) or str(file) in str(error)
                detected += 1
            if file.suffix != ".bin":
                assert checkpoints.open_newest(place / "r")[0].meta["step"] == 10
            file.write_bytes(content)
    print(f"{detected} of {2 * rounds} truncations and flipped bits detected")
    assert detected == 2 * rounds


def test_a_second_run_in_a_folder_is_refused_before_it_writes(place: Path) -> None:
    process = start(place, 1)
    before = {
        path: path.stat().st_mtime_ns for path in (place / "r").rglob("*") if path.name != "metrics.jsonl"
    }
    second = command(place, "train.py", "tiny.py", "--out_dir=r", "--init_from=resume", "--max_iters=5")
    assert second.returncode == 2 and "another process is training in r" in second.stderr
    after = {
        path: path.stat().st_mtime_ns for path in (place / "r").rglob("*") if path.name != "metrics.jsonl"
    }
    assert before == after
    process.kill()
    process.wait()
    train(place, "--out_dir=r", "--init_from=resume", "--max_iters=3", "--lr_decay_iters=1000")


@full
def test_memory_and_file_handles_do_not_grow_over_2000_steps(place: Path) -> None:
    arguments = (
        "--max_iters=2000",
        "--eval_interval=100",
        "--eval_iters=1",
        "--dropout=0.1",
        "--log_interval=50",
    )
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "tiny.py", "--out_dir=r", *arguments],
        cwd=place, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    sizes, handles = {}, {}
    for line in process.stdout:
        if line.startswith("step ") and ": loss" in line:
            step = int(line.split()[1].rstrip(":"))
            status = Path(f"/proc/{process.pid}/status").read_text()
            sizes[step] = int(status.split("VmRSS:")[1].split()[0])
            handles[step] = len(os.listdir(f"/proc/{process.pid}/fd"))
    assert process.wait() == 0
    early, late = max(size for step, size in sizes.items() if 200 <= step <= 600), sizes[1950]
    print(f"resident memory: {early // 1024} MiB up to step 600, {late // 1024} MiB at step 1950")
    assert late <= early * 1.02 and handles[1950] <= handles[200]


def test_the_oldest_checkpoint_is_deleted_after_the_new_one_is_safe(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    save, prune = saving.save_checkpoint, saving.prune
    monkeypatch.setattr(saving, "save_checkpoint", lambda *given: (save(*given), order.append("saved"))[0])
    monkeypatch.setattr(saving, "prune", lambda *given: (order.append("prune"), prune(*given))[1])
    train_script.main(
        ["tiny.py", "--out_dir=r", "--keep_checkpoints=1", "--eval_interval=5", "--sample_tokens=0"]
    )
    assert order == ["saved", "prune"] * 5
    best = json.loads((place / "r/checkpoints/step-00000020/meta.json").read_text())["best_step"]
    kept = {folder.name for folder in checkpoints.checkpoint_folders(place / "r")}
    assert kept == {"step-00000020", f"step-{best:08d}"}
