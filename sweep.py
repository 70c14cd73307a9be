"""Train under every combination of some settings and compare: mean and spread over seeds, best first.

    python sweep.py configs/shakespeare_char.py --learning_rate=1e-3,3e-3 --seed=1,2,3
    python sweep.py configs/tiny.py --n_layer=2,4 --activation=gelu,relu2 --devices=cuda:0,cuda:1

Each combination is a run of train.py in out/sweep-NAME/, one after the other or one on each device; what it
prints is in its log.txt. A sweep that was stopped goes on where it was; one that is complete only prints its
table. `python plot.py out/sweep-NAME` draws their curves, with bands over the seeds.
"""

import itertools
import json
import queue
import shlex
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engine.command_line import ROOT, Parser, as_arguments, read_settings, run_script
from engine.errors import UserError
from engine.settings import TrainSettings
from engine.training.metrics import read_metrics


def read_options(arguments: Sequence[str]) -> Namespace:
    """`config`, `devices`, and `combinations`: the settings of each run, as texts. Raises UserError."""
    parser = Parser(description=__doc__, usage="%(prog)s CONFIG_FILE --NAME=VALUE,VALUE … [--devices=…]")
    parser.add_argument("config", help="a configuration file, as train.py takes one")
    parser.add_argument("--devices", default="auto", help="devices that share the runs (default: auto)")
    options, swept = parser.parse_known_args(list(arguments))
    values: dict[str, list[str]] = {}
    for argument in swept:
        name, equals, listed = argument.removeprefix("--").partition("=")
        if not equals or not argument.startswith("--"):
            raise UserError(f"{argument!r}: the settings of a sweep are written --name=value,value")
        values[name.replace("-", "_")] = listed.split(",")
    products = itertools.product(*values.values())
    options.combinations = [dict(zip(values, chosen, strict=True)) for chosen in products]
    for chosen in options.combinations:  # names and types of all, before the first is started
        read_settings(TrainSettings, [options.config, *as_arguments(chosen)], "").settings(on_cpu=False)
    return options


def main(arguments: Sequence[str]) -> None:
    """Make the runs that are missing, then print the table."""
    options = read_options(arguments)
    folder = Path("out", f"sweep-{Path(options.config).stem}")
    folder.mkdir(parents=True, exist_ok=True)
    done = [result["settings"] for result in read_results(folder)]
    missing = [chosen for chosen in options.combinations if chosen not in done]
    devices: queue.SimpleQueue[str] = queue.SimpleQueue()
    for device in options.devices.split(","):
        devices.put(device)
    with ThreadPoolExecutor(devices.qsize()) as pool:
        losses = [pool.submit(train, options.config, chosen, folder, devices) for chosen in missing]
        try:
            for number, (chosen, loss) in enumerate(zip(missing, losses, strict=True), start=1):
                result = f"validation loss {loss.result():.4f}"
                print(f"{number} of {len(missing)}: {' '.join(as_arguments(chosen))}: {result}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    print("\n".join(table(options, read_results(folder))))


def train(config: str, chosen: dict[str, str], folder: Path, devices: "queue.SimpleQueue[str]") -> float:
    """Make or finish a run on a free device; its best validation loss. Raises UserError."""
    run = folder / ",".join(f"{name}={value}".replace("/", "_") for name, value in chosen.items())
    run.mkdir(parents=True, exist_ok=True)
    device = devices.get()
    line = [sys.executable, str(ROOT / "train.py"), config, *as_arguments(chosen), f"--device={device}"]
    with open(run / "log.txt", "a", encoding="utf-8") as log:
        line += [f"--out_dir={run}", "--init_from=auto"]
        status = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT).returncode
    devices.put(device)
    if status:
        raise UserError(f"the run {run.name} ended with status {status}; why is in {run / 'log.txt'}")
    lines = read_metrics(run / "metrics.jsonl")
    best = min(line["val_loss"] for line in lines if line["kind"] == "eval")
    with open(folder / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"settings": chosen, "val_loss": best}) + "\n")
    return best


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Settings and best validation loss of each run that is finished."""
    path = folder / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(options: Namespace, results: list[dict[str, Any]]) -> list[str]:
    """A line for each combination without its seed, the best first: loss, runs, command."""
    groups: dict[str, list[float]] = {}
    for result in results:
        if result["settings"] in options.combinations:
            rest = {name: value for name, value in result["settings"].items() if name != "seed"}
            command = shlex.join(["python", "train.py", options.config, *as_arguments(rest)])
            groups.setdefault(command, []).append(result["val_loss"])
    lines = ["validation loss    runs  command"]
    for command, losses in sorted(groups.items(), key=lambda group: statistics.fmean(group[1])):
        spread = f"± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        lines.append(f"{statistics.fmean(losses):<7.4f}{spread:<9}{len(losses):>7}  {command}")
    return lines


if __name__ == "__main__":
    run_script(main)
