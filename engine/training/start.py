"""Where a run starts: from scratch, from a checkpoint, or from weights."""

import dataclasses
from pathlib import Path

from engine.command_line import Sources
from engine.data.dataset import Dataset
from engine.errors import UserError
from engine.parallel.world import World
from engine.settings import STARTS, TrainSettings
from engine.shape import shape_settings
from engine.training.metrics import Console
from engine.weights import checkpoint as checkpoints
from engine.weights.checkpoint import Checkpoint
from engine.weights.nanogpt import NANOGPT_FILE
from engine.weights.pretrained import Pretrained, read_pretrained
from engine.weights.training_state import require_resumable


def read_weights(settings: TrainSettings, sources: Sources, on_cpu: bool, world: World) -> Pretrained | None:
    """The weights that `init_from` names, first read (perhaps downloaded) by rank 0; None for none.

    Raises UserError where a setting that the user gave asks for another shape than theirs.
    """
    if settings.init_from in STARTS:
        return None
    found = read_pretrained(settings.init_from) if world.is_main else None
    world.wait()
    found = found or read_pretrained(settings.init_from)
    given = sources.file.keys() | sources.command_line.keys() | (sources.cpu.keys() if on_cpu else set())
    if "block_size" in given:
        found = found.with_block_size(settings.block_size)
    for name, value in shape_settings(found.config).items():
        if name in given and getattr(settings, name) != value:
            raise UserError(
                f"{name} is {getattr(settings, name)}, but "
                f"{settings.init_from} has {name}={value}; leave the setting out"
            )
    return found


def finetuned(pretrained: Pretrained, settings: TrainSettings, data: Dataset) -> Pretrained:
    """The weights with the run's dropout, and its way with documents.

    Raises UserError where the data set's ids mean something else to them.
    """
    pretrained.check_reads(data.tokenizer, str(data.folder))
    changes = {"dropout": settings.dropout, "separator": data.separator(settings.documents)}
    return dataclasses.replace(pretrained, config=dataclasses.replace(pretrained.config, **changes))


# What a resumed run may not change: the shape of the model, and what determines its sequences.
FIXED = (
    "n_layer", "n_head", "n_embd", "block_size", "bias", "activation", "position", "qk_norm", "zero_init",
    "token_shift", "tied_head", "documents", "dataset", "seed", "optimizer",
)  # fmt: skip
# What belongs to one start of a run rather than to the run.
OF_ONE_START = ("out_dir", "init_from", "checkpoint", "eval_only")


def find_start(sources: Sources, world: World, console: Console) -> tuple[Path | None, Checkpoint | None]:
    """The folder and checkpoint to go on from; (None, None) for a new run. Rank 0 looks, all read."""
    init_from, out_dir, which = (sources.peek(name) for name in ("init_from", "out_dir", "checkpoint"))
    found: list[str] | None = None
    if world.is_main and init_from in ("resume", "auto"):
        found = _find_checkpoint(sources, init_from, out_dir, which, console)
    found = world.broadcast(found)
    if found is None:
        return None, None
    checkpoint = checkpoints.read_checkpoint(Path(found[1]))
    if "choices" not in checkpoint.meta:  # made by convert.py
        raise UserError(
            f"{found[0]} holds weights and no training state; start from them: --init_from={found[0]}"
        )
    require_resumable(checkpoint)
    return Path(found[0]), checkpoint


def _find_checkpoint(
    sources: Sources, init_from: str, out_dir: str | None, which: str, console: Console
) -> list[str] | None:
    """[run folder, checkpoint folder], or None where "auto" finds nothing to go on from. Raises UserError."""
    name = run_name(sources)
    runs = [Path(out_dir)] if out_dir is not None else checkpoints.find_runs(name=name)
    runs = [run for run in runs if checkpoints.checkpoint_folders(run)]
    if not runs:
        if init_from == "auto":
            return None
        if out_dir is not None and (Path(out_dir) / NANOGPT_FILE).is_file():
            raise UserError(
                f"{out_dir} holds a nanoGPT checkpoint, whose optimizer state has no place here; "
                f"start from its weights: --init_from={Path(out_dir) / NANOGPT_FILE}"
            )
        where = out_dir or (f"{checkpoints.RUNS_FOLDER}/{name}" if name else str(checkpoints.RUNS_FOLDER))
        raise UserError(f"there is no run to resume in {where}; start one without --init_from=resume")
    if which != "last":
        return [str(runs[0]), str(checkpoints.open_checkpoint(runs[0], which).folder)]
    checkpoint, remarks = checkpoints.open_newest(runs[0])
    for remark in remarks:
        console.say(f"warning: {remark}")
    return [str(runs[0]), str(checkpoint.folder)]


def run_name(sources: Sources) -> str | None:
    """The run's name where the user gave no out_dir: that of the configuration file; None without one."""
    return None if sources.path is None else Path(sources.path).stem


def check_resumable(settings: TrainSettings, data: Dataset, checkpoint: Checkpoint, console: Console) -> None:
    """Print the settings that differ from the checkpoint's; raise UserError for those that may not."""
    before, now = checkpoint.meta["settings"], dataclasses.asdict(settings)
    for name in FIXED:
        if name in before and before[name] != now[name]:
            raise UserError(
                f"{name} is {now[name]}, but the checkpoint {checkpoint.folder} was trained with "
                f"{before[name]}; add --{name}={before[name]}, or start a new run without --init_from"
            )
    same_tokenizer = checkpoint.meta["tokenizer"] == data.tokenizer.to_dict()
    if not same_tokenizer or checkpoint.model_config().vocab_size < data.tokenizer.vocab_size:
        raise UserError(
            f"the vocabulary of {data.folder} is not the one that {checkpoint.folder} was trained with; put "
            f"the data set of then back, or start a new run without --init_from"
        )
    changed = [
        f"{name}: {before[name]} → {now[name]}"
        for name in now
        if name not in OF_ONE_START and before.get(name, now[name]) != now[name]
    ]
    console.say(f"resuming {checkpoint.folder}" + (f", with {', '.join(changed)}" if changed else ""))
    if checkpoint.meta["data"]["fingerprint"] != data.fingerprint:
        console.say(
            f"warning: {data.folder} has changed since this run began; its sequences are not those of before"
        )
