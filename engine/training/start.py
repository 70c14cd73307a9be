"""Where a run starts: from scratch, from a checkpoint, or from weights."""

import dataclasses
import math
import shlex
from pathlib import Path
from typing import Any

from engine.command_line import Sources
from engine.data.dataset import Dataset
from engine.errors import UserError
from engine.parallel.world import World
from engine.runs import RUNS_FOLDER, checkpoint_folders, find_runs, similar_run
from engine.settings import STARTS, TrainSettings
from engine.shape import shape_settings
from engine.training.evaluation import windows_of
from engine.training.metrics import Console
from engine.training.optimizer import learning_rate_factor
from engine.training.run import RunState
from engine.weights import checkpoint as checkpoints
from engine.weights.checkpoint import Checkpoint
from engine.weights.nanogpt import NANOGPT_FILE
from engine.weights.pretrained import Pretrained, read_pretrained
from engine.weights.training_state import require_resumable

# Settings that a resumed run must not change: the shape of the model, and what determines its sequences.
NEVER_CHANGED = (
    "n_layer", "n_head", "n_embd", "block_size", "bias", "activation", "position", "qk_norm", "zero_init",
    "token_shift", "tied_head", "documents", "dataset", "seed", "optimizer", "method",
)  # fmt: skip
# Settings of one start rather than of the run: a resumed run does not keep them.
NOT_TAKEN_OVER = ("out_dir", "init_from", "checkpoint", "eval_only")
# Settings that determine the learning rate of a step.
SCHEDULE = (
    "learning_rate", "muon_learning_rate", "decay_lr", "schedule", "decay_share", "warmup_iters",
    "lr_decay_iters", "min_lr",
)  # fmt: skip


def read_weights(
    settings: TrainSettings, sources: Sources, on_cpu: bool, world: World, console: Console
) -> Pretrained | None:
    """The weights that `init_from` names, or None. Rank 0 reads (and perhaps downloads) them first.

    Raises UserError if a setting of the user contradicts their shape. As in nanoGPT, bias=False is ignored
    and the block_size of a configuration file is reduced to their positions.
    """
    if settings.init_from in STARTS:
        return None
    found = read_pretrained(settings.init_from) if world.is_main else None
    world.wait_for_main()
    source = world.broadcast(None if found is None else found.source)
    found = found or read_pretrained(source)
    given, positions = sources.given(on_cpu), found.config.block_size
    if settings.block_size > positions and "block_size" not in sources.command_line:
        console.say(
            f"note: block_size is cut from {settings.block_size} to the {positions} of {settings.init_from}"
        )
    elif "block_size" in given:
        found = found.with_block_size(settings.block_size)
    for name, value in shape_settings(found.config).items():
        if name not in given or given[name] == value or name == "block_size":
            continue
        if name != "bias" or not value:
            raise UserError(
                f"{name} is {given[name]}, but {settings.init_from} has {name}={value}; leave the setting out"
            )
        console.say(f"note: bias=False is ignored: {settings.init_from} has biases, and keeps them")
    return found


def finetuned(pretrained: Pretrained, settings: TrainSettings, data: Dataset) -> Pretrained:
    """The weights with the run's dropout and its separator of documents.

    Raises UserError if the data set was made with another vocabulary.
    """
    pretrained = pretrained.with_roles_of(data.tokenizer)
    pretrained.check_reads(data.tokenizer, str(data.folder))
    changes = {"dropout": settings.dropout, "separator": data.separator(settings.documents)}
    return dataclasses.replace(pretrained, config=dataclasses.replace(pretrained.config, **changes))


def find_start(sources: Sources, world: World, console: Console) -> tuple[Path | None, Checkpoint | None]:
    """The folder and checkpoint to resume; (None, None) for a new run. Rank 0 searches, all ranks read."""
    found = None
    if world.is_main and sources.get("init_from") in ("resume", "auto"):
        found = _find_checkpoint(sources, console)
    found = world.broadcast(found)
    if found is None:
        return None, None
    run, folder = found
    checkpoint = checkpoints.read_checkpoint(Path(folder))
    if "choices" not in checkpoint.meta:  # made by convert.py
        raise UserError(
            f"{run} holds weights and no training state; start from them: --init_from={shlex.quote(run)}"
        )
    require_resumable(checkpoint)
    return Path(run), checkpoint


def _find_checkpoint(sources: Sources, console: Console) -> tuple[str, str] | None:
    """The folders of a run and its checkpoint, or None if "auto" finds no run. Raises UserError."""
    name, out_dir, which = run_name(sources), sources.get("out_dir"), sources.get("checkpoint")
    runs = [Path(out_dir)] if out_dir is not None else find_runs(name=name)
    runs = [run for run in runs if checkpoint_folders(run)]
    if not runs:
        if sources.get("init_from") == "auto":
            return None
        if out_dir is not None and (Path(out_dir) / NANOGPT_FILE).is_file():
            weights = shlex.quote(str(Path(out_dir) / NANOGPT_FILE))
            raise UserError(
                f"{out_dir} holds a nanoGPT checkpoint, whose optimizer state has no place here; "
                f"start from its weights: --init_from={weights}"
            )
        where = out_dir or (f"{RUNS_FOLDER}/{name}" if name else str(RUNS_FOLDER))
        instead = similar_run(where, otherwise="; start one without --init_from=resume")
        raise UserError(f"there is no run to resume in {where}{instead}")
    if which != "last":
        return str(runs[0]), str(checkpoints.open_checkpoint(runs[0], which).folder)
    checkpoint, remarks = checkpoints.open_newest(runs[0])
    for remark in remarks:
        console.say(f"warning: {remark}")
    return str(runs[0]), str(checkpoint.folder)


def run_name(sources: Sources) -> str | None:
    """The name of the configuration file, which names the run's folder; None without one."""
    return None if sources.path is None else Path(sources.path).stem


def check_resumable(settings: TrainSettings, data: Dataset, checkpoint: Checkpoint) -> None:
    """Raise UserError for settings or data with which the checkpoint's run cannot continue."""
    before, now = checkpoint.meta["settings"], dataclasses.asdict(settings)
    for name in NEVER_CHANGED:
        if name in before and before[name] != now[name]:
            raise UserError(
                f"{name} is {now[name]}, but the checkpoint {checkpoint.folder} was trained with "
                f"{before[name]}; it takes {name}={before[name]}, or a new run without --init_from"
            )
    same_tokenizer = checkpoint.meta["tokenizer"] == data.tokenizer.to_dict()
    if not same_tokenizer or checkpoint.model_config().vocab_size < data.tokenizer.vocab_size:
        raise UserError(
            f"the vocabulary of {data.folder} is not the one that {checkpoint.folder} was trained with; "
            f"restore that data set, or start a new run without --init_from"
        )


def describe_resume(settings: TrainSettings, checkpoint: Checkpoint) -> str:
    """The checkpoint that is resumed, the settings that changed, and a jump of the learning rate, as text."""
    before, now = checkpoint.meta["settings"], dataclasses.asdict(settings)
    changed = [
        f"{name}: {before[name]} → {now[name]}"
        for name in now
        if name not in NOT_TAKEN_OVER and before.get(name, now[name]) != now[name]
    ]
    line = f"resuming {checkpoint.folder}" + (f", with {', '.join(changed)}" if changed else "")
    jump = learning_rate_jump(before, settings, checkpoint.meta["step"])
    return line if jump is None else f"{line}; {jump}"


def learning_rate_jump(before: dict[str, Any], settings: TrainSettings, step: int) -> str | None:
    """A sentence if update `step` has another learning rate than with the settings `before`, else None.

    E.g. "the learning rate goes from 0.00033 to 0.00195; --lr_decay_iters=20 keeps it where it was". Also
    None if no update follows.
    """
    names = {field.name for field in dataclasses.fields(TrainSettings)}
    old = TrainSettings(**{name: value for name, value in before.items() if name in names})
    if step >= settings.max_iters or settings.eval_only:
        return None
    jumps = []
    rates = ["learning_rate"] + (["muon_learning_rate"] if settings.optimizer == "muon" else [])
    for name in rates:
        last, expected, coming = (
            learning_rate_factor(at, given) * getattr(given, name)
            for at, given in ((max(0, step - 1), old), (step, old), (step, settings))
        )
        if not math.isclose(expected, coming, rel_tol=1e-9):
            jumps.append(f"the {name.replace('_', ' ')} goes from {last:.3g} to {coming:.3g}")
    if not jumps:
        return None
    then, now = (
        {name: getattr(given, name) for name in SCHEDULE} | {"lr_decay_iters": given.decay_steps()}
        for given in (old, settings)
    )
    keeping = " ".join(f"--{name}={then[name]}" for name in SCHEDULE if then[name] != now[name])
    return f"{' and '.join(jumps)}; {keeping} keeps {'it' if len(jumps) == 1 else 'them'} where it was"


def resumed_state(checkpoint: Checkpoint, settings: TrainSettings, console: Console) -> RunState:
    """The state in a checkpoint. Its evaluation windows stay the same unless `eval_iters` changes.

    A checkpoint from before windows were recorded gets their number now. Losses on different windows are not
    comparable, so the search for the best one restarts if they change.
    """
    state = RunState.from_meta(checkpoint.meta)
    known = "evaluation_windows" in checkpoint.meta
    eval_iters = checkpoint.meta["settings"].get("eval_iters", settings.eval_iters)
    if known and eval_iters == settings.eval_iters:
        return state
    if known and state.evaluation_windows is not None and settings.eval_iters is not None:
        state.evaluation_windows = settings.eval_iters * max(1, state.evaluation_windows // eval_iters)
    else:
        state.evaluation_windows = windows_of(settings)
    state.forget_best()
    windows = "all windows" if state.evaluation_windows is None else f"{state.evaluation_windows} windows"
    older = "the checkpoint is older than the rule that a run keeps them"
    reason = "eval_iters has changed" if known else older
    console.say(f"evaluation: from here on {windows} of each split ({reason}); the best loss starts anew")
    return state


def all_steps_are_made(
    settings: TrainSettings, state: RunState, folder: Path | None, console: Console
) -> bool:
    """Whether a resumed run has no step left; if so, say it."""
    if state.step < settings.max_iters:
        return False
    steps = f"{state.step:,} steps; --max_iters={2 * state.step} goes on"
    console.say(f"nothing left to do: {folder} has made its {steps}")
    return True
