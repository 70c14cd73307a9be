"""Several processes: who they are, two machines, failures and hangs."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from support.commands import HANG, ROOT, command, free_port
from support.runs import tensors, train, wait_for

from engine.parallel.watchdog import report, watchdog
from engine.parallel.world import World, describe_ranks
from engine.training.run import RunState

pytestmark = pytest.mark.slow(reason="torchrun again and again, and waits for time-outs")

ENDLESS = ("--max_iters=1000000", "--eval_interval=1000000", "--log_interval=20", "--sample_tokens=0")


def agent(
    folder: Path, *arguments: str, processes: int = 1, options: tuple[str, ...] = ("--standalone",)
) -> list[str]:
    """The command of one torchrun that trains on tiny.py."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *options, f"--nproc_per_node={processes}"]
    return [*launcher, str(ROOT / "train.py"), "tiny.py", *arguments]


def start_two(place: Path, *arguments: str) -> tuple[subprocess.Popen[str], dict[int, int]]:
    """Two processes in training: torchrun, its output going to said.txt, and the processes' ids by rank."""
    with open(place / "said.txt", "w") as file:
        run = subprocess.Popen(
            agent(place, *ENDLESS, *arguments, processes=2), cwd=place, stdout=file, stderr=file, text=True
        )
    wait_for(lambda: "step 20: loss" in (place / "said.txt").read_text() or run.poll() is not None)
    assert run.poll() is None, (place / "said.txt").read_text()
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    ids = {}
    for child in children:
        for entry in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                ids[int(entry[5:])] = int(child)
    return run, ids


def end(run: subprocess.Popen[str], ids: dict[int, int]) -> None:
    """Leave nothing behind."""
    for number in (*ids.values(), run.pid):
        if Path(f"/proc/{number}").exists():
            os.kill(number, signal.SIGKILL)
    run.wait()


def test_two_machines_give_the_weights_of_one_process(place: Path) -> None:
    """Two torchrun agents that meet at a port, as on two machines."""
    train(place, "--dtype=float64", "--out_dir=one")
    meeting = ("--nnodes=2", "--rdzv_id=7", "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free_port()}")
    line = agent(place, "--dtype=float64", "--out_dir=two", "--verbose", options=meeting)
    agents = [
        subprocess.Popen(line, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [run.communicate(timeout=HANG) for run in agents]
    assert [run.returncode for run in agents] == [0, 0], said
    assert "(2 × 1 × 4 sequences)" in said[0][0] + said[1][0]
    one, two = tensors(place / "one"), tensors(place / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-12)
    ranks = json.loads((place / "two/config.json").read_text())["ranks"]
    assert [(rank["rank"], rank["device"], rank["seed"]) for rank in ranks] == [
        (0, "cpu", 1337),
        (1, "cpu", 1337),
    ]
    assert (
        sum(output.count(f"{socket.gethostname()}: ranks 0 to 1 on cpu; seed 1337") for output, _ in said)
        == 1
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the test finds processes in /proc")
def test_a_stopped_process_is_named_and_ends_the_run(place: Path) -> None:
    run, ids = start_two(place, "--timeout=12")
    try:
        os.kill(ids[1], signal.SIGSTOP)
        wait_for(
            lambda: not Path(f"/proc/{ids[0]}").exists() or "Timed out" in (place / "said.txt").read_text()
        )
        said = (place / "said.txt").read_text()
        assert said.count("has waited for 4 s at step") == 1
        assert re.search(
            r"rank 0 has waited for 4 s at step \d+, in \w+ \(\w+\.py, line \d+\); rank 1 is silent", said
        )
    finally:
        end(run, ids)


@pytest.mark.skipif(sys.platform != "linux", reason="the test finds processes in /proc")
def test_a_process_that_dies_ends_all_and_is_named(place: Path) -> None:
    run, ids = start_two(place)
    try:
        os.kill(ids[1], signal.SIGKILL)
        assert run.wait(HANG) == 1
        said = (place / "said.txt").read_text()
        assert not Path(f"/proc/{ids[0]}").exists()
        root_cause = said.split("Root Cause (first observed failure)")[1]
        assert "rank      : 1" in root_cause and "SIGKILL" in root_cause and "Timed out" not in said
    finally:
        end(run, ids)


@pytest.mark.parametrize("error", ["OSError", "UserError"])
def test_an_error_in_one_process_is_shown_and_ends_all(place: Path, error: str) -> None:
    """Rank 1 fails by itself, between two collective operations."""
    script = place / "fails.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nsys.argv[0] = 'train.py'\n"
        "import train\nfrom engine.command_line import run_script\n"
        "from engine.errors import UserError\nfrom engine.training.batches import Batches\n"
        "read = Batches._read\n"
        "def fail(self, consumed):\n"
        "    if os.environ['RANK'] == '1' and consumed > 40:\n"
        f"        raise {error}('the disk of this machine is gone')\n"
        "    return read(self, consumed)\n"
        "Batches._read = fail\nrun_script(train.main)\n"
    )
    line = [
        argument if not argument.endswith("train.py") else str(script)
        for argument in agent(place, *ENDLESS, processes=2)
    ]
    finished = subprocess.run(line, cwd=place, capture_output=True, text=True, timeout=HANG)
    assert finished.returncode == 1
    assert "the disk of this machine is gone" in finished.stderr and "Timed out" not in finished.stderr
    assert finished.stderr.index("the disk of this machine is gone") < finished.stderr.index(
        "ChildFailedError"
    )


def test_processes_of_one_host_are_told_together() -> None:
    ranks = [
        {"rank": rank, "host": f"node-{rank // 8}", "device": f"cuda:{rank % 8}", "seed": 5}
        for rank in range(9)
    ]
    assert (
        describe_ranks(ranks) == "node-0: ranks 0 to 7 on cuda:0 to cuda:7; node-1: rank 8 on cuda:0; seed 5"
    )


def test_the_lowest_process_alive_reports() -> None:
    notes = {0: ["step 3, in save", 100.0], 1: ["step 4, in update", 120.0], 2: ["step 4, in update", 121.0]}
    assert report(notes, 2, 12.0) is None and report(notes, 0, 12.0) is None
    text = report(notes, 1, 12.0)
    assert (
        "rank 1 has waited for 12 s at step 4" in text and "rank 0 is silent, last at step 3, in save" in text
    )
    assert "rank 2" not in text
    crowd = {rank: [f"step {rank}", 0.0] for rank in range(20)}
    assert report(crowd, 0, 1.0).endswith("and 11 more")
    same = {rank: ["step 1", 0.0] for rank in range(4)}
    assert "all 4 processes are alive and at the same place" in report(same, 0, 1.0)


def test_the_network_check_prints_both_bandwidths(tmp_path: Path) -> None:
    """From 1 to 256 MiB, for two processes: a ring sends the tensor once, so both bandwidths are equal."""
    finished = command(tmp_path, "bench.py", "network", "--processes=2", "--largest=4")
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "4"]
    for line in lines:
        algorithm, bus = re.fullmatch(r".*algorithm +([\d.]+) GB/s, bus +([\d.]+) GB/s", line).groups()
        assert float(algorithm) == float(bus) > 0


def test_a_profile_is_a_trace_with_gradients_on_their_way(tmp_path: Path) -> None:
    finished = command(tmp_path, "bench.py", "profile", "--processes=2", "--trace=steps.json")
    assert finished.returncode == 0, finished.stderr
    said = r"A step takes ([\d.e+]+) ms, and ([\d.e+]+) ms where nothing is sent; .* (\d+)% of it hidden"
    assert re.search(said, finished.stdout), finished.stdout
    events = json.loads((tmp_path / "steps.json").read_text())["traceEvents"]
    assert sum(event["name"].startswith("gloo:all_reduce") for event in events if event.get("ph") == "X") >= 3
    assert any("evaluate_function" in event["name"] for event in events if event.get("ph") == "X")


class SlowStore:
    """A store to which connecting takes until `go` is set."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()

    def clone(self) -> "SlowStore":
        self.asked.set()
        assert self.go.wait(HANG)
        return self


def test_the_watchdog_has_ended_when_training_has() -> None:
    """A thread in the store's C++ when Python ends would abort the process."""
    store = SlowStore()
    with watchdog(World(0, 2, 0, 2, store), RunState(), 600.0):
        assert store.asked.wait(HANG)
        threading.Timer(0.2, store.go.set).start()
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


@pytest.mark.torture
@pytest.mark.parametrize("processes", [2, 4])
def test_no_process_aborts_at_the_end(place: Path, processes: int) -> None:
    """A hundred runs beside three busy loops, which let each thread be late."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    short = ("--max_iters=3", "--sample_tokens=0", "--batch_size=2", "--gradient_accumulation_steps=4")
    try:
        for number in range(int(os.environ.get("ENDINGS", "100"))):
            line = agent(place, *short, f"--out_dir=r{number}", processes=processes)
            finished = subprocess.run(line, cwd=place, capture_output=True, text=True, timeout=HANG)
            assert finished.returncode == 0, finished.stderr
            shutil.rmtree(place / f"r{number}")
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
