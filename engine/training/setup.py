"""Everything before the first step: which run, machine, data and model; and what to tell the user."""

import contextlib
import dataclasses
import functools
import socket
from pathlib import Path

import torch

from engine import kernels
from engine.command_line import Sources, check_value
from engine.data.dataset import DATA_FOLDER, Dataset, open_dataset, read_meta
from engine.device import (
    Compute,
    choose_compile,
    choose_dtype,
    choose_threads,
    device_name,
    find_device,
    make_current,
)
from engine.errors import UserError
from engine.parallel.sharding import copy_into, is_sharded, recompute_blocks, sharded_model, uses_fsdp
from engine.parallel.world import World, describe_ranks, share_of_step
from engine.preparation.recipes import prepare_recipe
from engine.settings import STARTS, TrainSettings
from engine.shape import count_parameters, empty_model, model_config, shape_settings
from engine.training.evaluation import windows_of
from engine.training.folder import claim_folder, refuse_taken_folder
from engine.training.memory import Memory, TrainingMemory, available_bytes, gigabytes
from engine.training.metrics import Console
from engine.training.optimizer import make_optimizer
from engine.training.run import Run, RunState
from engine.training.start import (
    NOT_TAKEN_OVER,
    check_resumable,
    describe_resume,
    find_start,
    finetuned,
    read_weights,
    resumed_state,
)
from engine.training.suggest import suggest
from engine.weights import checkpoint as checkpoints
from engine.weights.checkpoint import Checkpoint
from engine.weights.pretrained import Pretrained
from engine.weights.training_state import restore_optimizer, restore_scaler
from model import GPT, GPTConfig


def set_up(
    sources: Sources, world: World, console: Console, cleanup: contextlib.ExitStack
) -> tuple[Run, RunState]:
    """The run and where it stands. Writes to its folder only when all has succeeded."""
    for remark in sources.remarks:
        console.say(f"note: {remark}")
    folder, checkpoint = find_start(sources, world, console)
    if checkpoint is None and sources.path is None and "dataset" in sources.command_line:
        suggest_settings(sources, world, console)
    device = choose_device(sources, checkpoint, world)
    on_cpu = device.type == "cpu" if checkpoint is None else bool(checkpoint.meta["used_cpu_part"])
    settings = choose_settings(sources, checkpoint, on_cpu, console)
    model_config(settings, vocab_size=1)  # a shape that no model has is an error before anything is said
    compute = choose_compute(settings, checkpoint, device, world, console)
    pretrained = read_weights(settings, sources, on_cpu, world)
    if pretrained is not None:
        settings = dataclasses.replace(settings, **shape_settings(pretrained.config))
        console.say(f"weights: {pretrained.source}")
    micro_batch, _ = share_of_step(settings.sequences_per_step(), settings.batch_size, world)
    ensure_prepared(settings.dataset, world, console)
    data = open_dataset(settings.dataset, settings.block_size)
    state = starting_state(settings, data, checkpoint, console)

    if checkpoint is None or checkpoint.meta["choices"]["device"] != compute.device:
        probe(compute, settings, micro_batch, world, console)
    compute.apply(settings.deterministic)
    shape = model_config(settings, data.tokenizer.vocab_size, data.separator(settings.documents))
    if checkpoint is not None:
        shape = dataclasses.replace(checkpoint.model_config(), dropout=settings.dropout)
    micro_batch, micro_steps, memory = fit_memory(
        shape, settings, compute, device, world, console, resumed=checkpoint is not None
    )
    model = make_model(shape, settings, compute, device, data, world, checkpoint, pretrained)
    optimizer = make_optimizer(model, settings, world)
    scaler = torch.amp.GradScaler(device.type, enabled=compute.dtype == "float16")
    if checkpoint is not None:
        restore_optimizer(model, optimizer, checkpoint.tensors("optimizer"))
        restore_scaler(scaler, checkpoint.meta["scaler"])
    own = {"rank": world.rank, "host": socket.gethostname(), "device": str(device), "seed": settings.seed}
    run = Run(
        settings=settings, world=world, console=console, compute=compute, used_cpu_part=on_cpu, device=device,
        data=data, model=model, optimizer=optimizer, scaler=scaler, micro_batch=micro_batch,
        micro_steps=micro_steps, memory=memory, ranks=world.all_gather(own), resumed=checkpoint is not None,
    )  # fmt: skip
    describe(run, state)
    if not settings.eval_only:
        claim_folder(run, folder, sources, state, checkpoint, cleanup)
    return run, state


def suggest_settings(sources: Sources, world: World, console: Console) -> None:
    """Put settings that suit the data's size in the place of a configuration file, and say which."""
    name = sources.get("dataset")
    ensure_prepared(name, world, console)
    on_cpu = find_device(sources.get("device")).type == "cpu"
    found = suggest(read_meta(DATA_FOLDER / name / "meta.json"), on_cpu, sources.command_line)
    if sources.get("init_from") not in STARTS:  # weights bring their shape
        found = {name: value for name, value in found.items() if name not in GPTConfig.__dataclass_fields__}
    sources.file = found
    chosen = ", ".join(f"{setting}={value}" for setting, value in sources.file.items())
    console.say(f"no configuration file; settings for data of this size (--NAME=VALUE changes one): {chosen}")


def ensure_prepared(name: str, world: World, console: Console) -> None:
    """Let rank 0 prepare a data set that is not there, while the others wait as long as it takes."""
    if world.is_main and not (DATA_FOLDER / name / "meta.json").is_file():
        console.say(f"preparing the data set {name}")
        prepare_recipe(name, console.say)
    world.wait_for_main()


def choose_device(sources: Sources, checkpoint: Checkpoint | None, world: World) -> torch.device:
    """The device of this process; a resumed run takes the kind that it had, where there is one.

    Raises UserError for a device that is not there, or cannot be shared by several processes.
    """
    wanted = sources.get("device")
    if wanted == "auto" and checkpoint is not None:
        recorded = Compute.from_dict(checkpoint.meta["choices"])
        with contextlib.suppress(UserError):  # the device of then is not here: choose again
            wanted = find_device(recorded.device).type
    device = find_device(wanted)
    if world.size > 1 and device.type not in ("cpu", "cuda"):
        raise UserError(
            f"on {device.type} one process trains; start train.py without torchrun, or add --device=cpu"
        )
    if world.size > 1 and device.type == "cuda":
        device = torch.device("cuda", world.local_rank)
    return make_current(device)


def choose_settings(
    sources: Sources, checkpoint: Checkpoint | None, on_cpu: bool, console: Console
) -> TrainSettings:
    """The run's settings; on a CPU the file's cpu part applies. A resumed run keeps those of its checkpoint.

    With a configuration file, that stands for the settings of before, but for the shape of the model.
    """
    if on_cpu and sources.cpu:
        part = ", ".join(f"{name}={value}" for name, value in sources.cpu.items())
        console.say(f"cpu part of {sources.path}: {part}")
    if checkpoint is None:
        return sources.settings(on_cpu=on_cpu)
    saved = checkpoint.meta["settings"]
    kept = saved.keys() - set(NOT_TAKEN_OVER)
    if sources.path is not None:
        kept &= shape_settings(checkpoint.model_config()).keys()
    base = {name: check_value(TrainSettings, name, saved[name], str(checkpoint.folder)) for name in kept}
    return sources.settings(on_cpu=on_cpu, base=base)


def choose_compute(
    settings: TrainSettings,
    checkpoint: Checkpoint | None,
    device: torch.device,
    world: World,
    console: Console,
) -> Compute:
    """What is computed with, the same on all processes; printed.

    A resumed run keeps what its checkpoint recorded on this kind of device, but for what the user sets now.
    """
    compiling, reason = choose_compile(settings.compile, device)
    compute = Compute(
        device=device.type,
        dtype=choose_dtype(settings.dtype, device),
        compile=compiling,
        threads=choose_threads(settings.threads, world.local_size),
    )
    recorded = None if checkpoint is None else Compute.from_dict(checkpoint.meta["choices"])
    if checkpoint is not None and recorded is not None and recorded.device == device.type:
        same_processes = checkpoint.meta["processes"] == world.size
        same_batch = checkpoint.meta["settings"].get("batch_size") == settings.batch_size
        kept = {
            "dtype": settings.dtype == "auto",
            "compile": settings.compile == "auto",
            "threads": settings.threads is None and same_processes,
            "batch_size": same_processes and same_batch,
            "evaluation_batch": same_processes and same_batch,
            "matmul_precision": True,
            "attention_kernel": True,
        }
        changes = {name: getattr(recorded, name) for name, keep in kept.items() if keep}
        compute, reason = dataclasses.replace(compute, **changes), "as before"
    compute = Compute.from_dict(world.broadcast(compute.to_dict()))
    torch.set_num_threads(compute.threads)
    console.say(
        f"device: {device_name(device)}, dtype: {compute.dtype}, compile: {compute.compile}"
        f"{f' ({reason})' if reason and not compute.compile else ''}, processes: {world.size}"
    )
    return compute


def starting_state(
    settings: TrainSettings, data: Dataset, checkpoint: Checkpoint | None, console: Console
) -> RunState:
    """Where the run stands. Raises UserError where it cannot go on, or its folder holds another run."""
    if checkpoint is not None:
        check_resumable(settings, data, checkpoint)
        describe_resume(settings, data, checkpoint, console)
        return resumed_state(checkpoint, settings, console)
    if settings.init_from != "auto" and settings.out_dir is not None:
        refuse_taken_folder(Path(settings.out_dir))
    return RunState(evaluation_windows=windows_of(settings))


def probe(
    compute: Compute, settings: TrainSettings, micro_batch: int, world: World, console: Console
) -> None:
    """Let rank 0 find the fastest exact kernels for this machine; all use them."""
    if world.is_main and compute.device == "cpu":
        shape = (micro_batch, settings.block_size, settings.n_head, settings.n_embd)
        found = kernels.probe(compute.dtype, *shape, settings.dropout)
        compute.matmul_precision, compute.attention_kernel = found.matmul_precision, found.attention
        if found.remarks:
            console.say(f"kernels: {'; '.join(found.remarks)}")
    agreed = Compute.from_dict(world.broadcast(compute.to_dict()))
    compute.matmul_precision, compute.attention_kernel = agreed.matmul_precision, agreed.attention_kernel


def fit_memory(
    shape: GPTConfig,
    settings: TrainSettings,
    compute: Compute,
    device: torch.device,
    world: World,
    console: Console,
    resumed: bool,
) -> tuple[int, int, Memory]:
    """(micro-batch, micro-batches a step, predicted memory): `batch_size`, halved until it fits everywhere.

    The sequences of a step stay the same. A resumed run begins with the size that its checkpoint recorded.
    """
    wanted, sequences = compute.batch_size or settings.batch_size, settings.sequences_per_step()
    free = [own for own in world.all_gather(available_bytes(device, world.local_size)) if own is not None]
    available = min(free, default=None)
    counted = TrainingMemory(shape, settings, compute, world)
    size, memory = counted.fit(wanted, available)
    if size < settings.batch_size:
        compute.batch_size = size
    if size < wanted or compute.evaluation_batch is None:
        compute.evaluation_batch = counted.evaluation_batch(size, memory)
    micro_batch, micro_steps = share_of_step(sequences, size, world)
    if available is not None and size < wanted:
        exact = "; it is no longer bit for bit the run that it was" if resumed else ""
        console.say(
            f"memory: batch_size {wanted} does not fit into the {gigabytes(available)} that are free; a "
            f"process works on {micro_batch} at a time, and a step has {sequences} sequences as before{exact}"
        )
    if available is not None and memory.total > available:
        console.say(
            f"warning: training is predicted to take {gigabytes(memory.total)}, and {gigabytes(available)} "
            f"are free; a smaller n_layer, n_embd or block_size takes less"
        )
    return micro_batch, micro_steps, memory


def make_model(
    shape: GPTConfig,
    settings: TrainSettings,
    compute: Compute,
    device: torch.device,
    data: Dataset,
    world: World,
    checkpoint: Checkpoint | None,
    pretrained: Pretrained | None,
) -> GPT:
    """The model with the weights that the run starts from, whole or this process's shards of it."""
    sharded = functools.partial(sharded_model, compute.gathered_dtype(), world)
    empty = sharded if uses_fsdp(settings, world) else empty_model
    dtype = compute.weights_dtype()
    if checkpoint is not None:
        model = checkpoints.model_from(checkpoint, device, dtype, settings.dropout, empty)
    elif pretrained is not None:
        model = finetuned(pretrained, settings, data).model(device, dtype, empty)
    else:
        model = empty(shape, device, dtype)
        model.init_weights(settings.seed, copy_into)
    kernels.install(model, compute.attention_kernel)
    if settings.recompute:
        recompute_blocks(model)
    return model


def describe(run: Run, state: RunState) -> None:
    """Say what will be trained, on what, and how much."""
    settings, config, say = run.settings, run.model.config, run.console.say
    say(
        f"data: {run.data.folder} ({run.data.fingerprint[:12]}), {run.data.train.tokens:,} training and "
        f"{run.data.val.tokens:,} validation tokens, vocabulary {run.data.tokenizer.vocab_size:,}"
    )
    longest = run.data.meta.get("conversations", {}).get("longest", 0)
    if longest > settings.block_size:
        say(
            f"note: the longest conversation has {longest} tokens; of what goes beyond the block's "
            f"{settings.block_size} nothing is learned"
        )
    say(
        f"model: {config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, block "
        f"{config.block_size}, {sum(count_parameters(config).values()):,} parameters"
    )
    if state.step >= settings.max_iters > 0 and not settings.eval_only:
        say(f"nothing left to do: {state.step:,} steps are made; --max_iters={2 * state.step} goes on")
    say(
        f"training: steps {state.step:,} to {settings.max_iters:,} of {run.tokens_per_step:,} tokens "
        f"({run.world.size} × {run.micro_steps} × {run.micro_batch} sequences"
        f"{', the model sharded' if is_sharded(run.model) else ''})"
    )
    if run.world.size > 1:
        say(f"processes: {describe_ranks(run.ranks)}")
    say(f"memory: a process is predicted to take up to {run.memory}")
