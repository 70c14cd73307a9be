"""The folder of a run: choose it, lock it, save checkpoints in it."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

import filelock
from torch import Tensor

from engine.command_line import Sources
from engine.errors import UserError
from engine.parallel.sharding import is_sharded
from engine.parallel.world import ALONE
from engine.runs import RUNS_FOLDER, checkpoint_folders
from engine.settings import TrainSettings
from engine.system import write_whole
from engine.training.loggers import GuardedLogger, LoggedRun
from engine.training.metrics import MetricsLog
from engine.training.run import Run, RunState
from engine.training.start import run_name
from engine.versions import versions
from engine.weights import saving
from engine.weights.checkpoint import Checkpoint
from engine.weights.training_state import optimizer_tensors


def refuse_taken_folder(folder: Path) -> None:
    """Raise UserError if a folder that the user named already holds a run."""
    if (folder / "config.json").exists() or checkpoint_folders(folder):
        raise UserError(
            f"{folder} already holds a run; resume it with --init_from=resume, or give another --out_dir "
            f"(without one, a new run gets a folder of its own)"
        )


def claim_folder(
    run: Run,
    folder: Path | None,
    sources: Sources,
    state: RunState,
    checkpoint: Checkpoint | None,
    cleanup: contextlib.ExitStack,
) -> None:
    """Create or reuse the run's folder, lock it until the process ends, clean it up, open its logs."""
    settings = run.settings
    problem = None
    if run.world.is_main:
        try:
            run.folder = folder or new_folder(settings, usual_folder(settings, sources))
            lock = filelock.FileLock(run.folder / "lock")
            cleanup.enter_context(lock.acquire(timeout=0))
        except filelock.Timeout:
            problem = f"another process is training in {run.folder}; wait for it, or give another --out_dir"
        except OSError as error:
            problem = f"the run's folder cannot be made: {error.filename}: {error.strerror}"
    problem, chosen = run.world.broadcast([problem, str(run.folder)])
    if problem is not None:
        raise UserError(problem)
    run.folder = Path(chosen)
    if not run.world.is_main:
        return
    saving.clean_leftovers(run.folder)
    if checkpoint is not None:
        for folder in saving.set_aside_after(run.folder, state.step):
            run.console.say(f"note: a checkpoint of a later step is set aside as {folder}")
        if state.best_step is not None:
            saving.mark_best(run.folder, state.best_step)
    content = {
        "settings": dataclasses.asdict(settings),
        "choices": run.compute.to_dict(),
        "ranks": run.ranks,
        "versions": versions(),
        "details": run.console.details,
        "command": sys.argv,
    }
    write_whole(run.folder / "config.json", json.dumps(content, indent=1).encode())
    run.metrics = MetricsLog(run.folder / "metrics.jsonl")
    repeats = run.metrics.start(state.step if checkpoint is not None else -1)
    cleanup.callback(run.metrics.close)
    kind = settings.log or ("wandb" if settings.wandb_log else None)
    if kind is not None:
        logged = LoggedRun(
            project=settings.wandb_project,
            name=settings.wandb_run_name or run.folder.name,
            folder=run.folder,
            settings=dataclasses.asdict(settings),
            id=None if checkpoint is None else checkpoint.meta["wandb_id"],
            step=state.step,
            repeats=repeats and checkpoint is not None,
        )
        run.logger = GuardedLogger(kind, logged, run.console)


def usual_folder(settings: TrainSettings, sources: Sources) -> Path:
    """The folder that the user names, otherwise out/NAME, after the configuration file or the data set."""
    return Path(settings.out_dir or RUNS_FOLDER / (run_name(sources) or settings.dataset))


def new_folder(settings: TrainSettings, usual: Path) -> Path:
    """The folder of a new run: the one named, or the next free of out/NAME, out/NAME-2, …

    With init_from="auto" a run that ended before its first checkpoint starts again in its own folder.
    """
    if settings.out_dir is not None:
        usual.mkdir(parents=True, exist_ok=True)
        return usual
    number = 1
    while True:
        folder = usual if number == 1 else usual.with_name(f"{usual.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if settings.init_from == "auto" and folder.is_dir():
                return folder
            number += 1


def save(run: Run, state: RunState) -> None:
    """Write a checkpoint of this step, point `last` (and `best`) at it, delete old checkpoints.

    The processes of a sharded model write together, otherwise rank 0 writes. Raises UserError if writing
    fails, unless save_errors is "continue".
    """
    assert run.folder is not None, "a run that saves has claimed a folder"
    writers = run.world if is_sharded(run.model) else ALONE
    if writers is ALONE and not run.world.is_main:
        return
    meta = {
        "model": dataclasses.asdict(run.model.config),
        "settings": dataclasses.asdict(run.settings),
        "choices": run.compute.to_dict(),
        "used_cpu_part": run.used_cpu_part,
        "processes": run.world.size,
        "tokenizer": run.data.tokenizer.to_dict(),
        "data": {"name": run.data.name, "fingerprint": run.data.fingerprint},
        "scaler": run.scaler.state_dict(),
        "wandb_id": None if run.logger is None else run.logger.id,
        "versions": versions(),
    }
    parts: dict[str, dict[str, Tensor]] = {"model": {}}
    for name, parameter in run.model.named_parameters():
        # The second head that tune.py may add is no part of the GPT.
        part = "score" if name.startswith("score.") else "model"
        parts.setdefault(part, {})[name] = parameter
    parts["optimizer"] = optimizer_tensors(run.model, run.optimizer)
    try:
        saving.save_checkpoint(run.folder, meta | dataclasses.asdict(state), parts, writers)
    except UserError as error:
        if run.settings.save_errors == "stop":
            raise
        run.console.say(f"warning: {error}; going on, since save_errors is continue")
        return
    if run.world.is_main:
        if state.best_step == state.step:
            saving.mark_best(run.folder, state.step)
        saving.prune(run.folder, run.settings.keep_checkpoints)
