"""A run's folder: chosen, claimed and locked."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

import filelock

from engine.command_line import Sources
from engine.errors import UserError
from engine.system import write_whole
from engine.training.metrics import MetricsLog, WandbLog
from engine.training.run import Progress, Run
from engine.training.start import run_name
from engine.versions import versions
from engine.weights import checkpoint as checkpoints
from engine.weights import saving
from engine.weights.checkpoint import Checkpoint


def refuse_taken_folder(folder: Path) -> None:
    """Raise UserError where a folder that the user named already holds a run."""
    if (folder / "config.json").exists() or checkpoints.checkpoint_folders(folder):
        raise UserError(
            f"{folder} already holds a run; resume it with --init_from=resume, or give another --out_dir "
            f"(without one, a new run gets a folder of its own)"
        )


def claim_folder(
    run: Run,
    folder: Path | None,
    sources: Sources,
    progress: Progress,
    checkpoint: Checkpoint | None,
    cleanup: contextlib.ExitStack,
) -> None:
    """Make or take the run's folder, lock it, tidy it, open its logs. The lock dies with this process."""
    settings = run.settings
    problem = None
    if run.world.is_main:
        try:
            run.folder = folder or new_folder(
                settings.out_dir, run_name(sources) or settings.dataset, settings.init_from
            )
            lock = filelock.FileLock(run.folder / "lock")
            cleanup.enter_context(lock.acquire(timeout=0))
        except filelock.Timeout:
            problem = f"another process is training in {run.folder}; wait for it, or give another --out_dir"
        except OSError as error:
            problem = f"the run's folder cannot be made: {error.filename}: {error.strerror}"
    answer = run.world.broadcast([problem, None if run.folder is None else str(run.folder)])
    if answer[0] is not None:
        raise UserError(answer[0])
    run.folder = Path(answer[1])
    if not run.world.is_main:
        return
    saving.clean_leftovers(run.folder)
    if checkpoint is not None and progress.best_step is not None:
        saving.mark_best(run.folder, progress.best_step)
    content = {
        "settings": dataclasses.asdict(settings),
        "choices": run.choices.to_dict(),
        "ranks": run.ranks,
        "versions": versions(),
        "command": sys.argv,
    }
    write_whole(run.folder / "config.json", json.dumps(content, indent=1).encode())
    run.metrics = MetricsLog(run.folder / "metrics.jsonl")
    run.metrics.start(progress.step if checkpoint is not None else -1)
    cleanup.callback(run.metrics.close)
    run.wandb = WandbLog(run.console)
    if settings.wandb_log:
        name = settings.wandb_run_name or run.folder.name
        run_id = None if checkpoint is None else checkpoint.meta["wandb_id"]
        run.wandb.start(settings.wandb_project, name, run_id, run.folder, dataclasses.asdict(settings))


def new_folder(out_dir: str | None, name: str, init_from: str) -> Path:
    """The folder of a new run: the one named, or the next free of out/NAME, out/NAME-2, …

    With init_from="auto" a run that ended before its first checkpoint starts again in its own folder.
    """
    if out_dir is not None:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        return Path(out_dir)
    number = 1
    while True:
        folder = checkpoints.RUNS_FOLDER / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if init_from == "auto" and folder.is_dir():
                return folder
            number += 1
