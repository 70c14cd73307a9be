"""Everything before the first step: which run, machine, data and model; and what to tell the user."""

import contextlib
import dataclasses
import functools
import socket
from pathlib import Path
from typing import Any

import torch

from engine.command_line import Sources, check_value
from engine.data.dataset import DATA_FOLDER, Dataset, open_dataset, read_meta
from engine.device import (
    Choices,
    choose_compile,
    choose_dtype,
    choose_threads,
    device_name,
    find_device,
)
from engine.errors import UserError
from engine.kernels import probe_kernels
from engine.parallel.sharding import compile_blocks, is_sharded, plain_blocks, put, sharded_model, shards
from engine.parallel.world import World, describe_ranks, share_of_step
from engine.preparation.recipes import prepare_recipe
from engine.settings import STARTS, TrainSettings
from engine.shape import model_config, shape_settings
from engine.training.folder import claim_folder, refuse_taken_folder
from engine.training.memory import Memory, TrainingMemory, available_bytes, gigabytes
from engine.training.metrics import Console
from engine.training.optimizer import make_optimizer
from engine.training.run import Progress, Run
from engine.training.start import OF_ONE_START, check_resumable, find_start, finetuned, read_weights
from engine.training.suggest import suggest
from engine.weights import checkpoint as checkpoints
from engine.weights.checkpoint import Checkpoint
from engine.weights.pretrained import Pretrained
from model import GPT, GPTConfig, count_parameters


def set_up(
    sources: Sources, world: World, console: Console, cleanup: contextlib.ExitStack
) -> tuple[Run, Progress, bool]:
    """The run, where it stands, and whether it goes on. Writes to its folder only when all has succeeded."""
    for remark in sources.remarks:
        console.say(f"note: {remark}")
    folder, checkpoint = find_start(sources, world, console)
    if checkpoint is None and sources.path is None and "dataset" in sources.command_line:
        suggest_settings(sources, world, console)
    settings, choices, device, used_cpu_part = choose(sources, checkpoint, world, console)
    pretrained = read_weights(settings, sources, used_cpu_part, world)
    if pretrained is not None:
        settings = dataclasses.replace(settings, **shape_settings(pretrained.config))
        console.say(f"weights: {settings.init_from}")
    micro_batch, micro_steps = share_of_step(settings.sequences_per_step(), settings.batch_size, world)
    data = open_data(settings, world, console)
    if checkpoint is not None:
        check_resumable(settings, data, checkpoint, console)
    elif settings.init_from != "auto" and settings.out_dir is not None:
        refuse_taken_folder(Path(settings.out_dir))
    if checkpoint is None or checkpoint.meta["choices"]["device"] != choices.device:
        probe(choices, settings, micro_batch, world, console)
    choices.apply(settings.deterministic)
    if checkpoint is None:
        shape = model_config(settings, data.tokenizer.vocab_size, data.separator(settings.documents))
    else:
        shape = dataclasses.replace(checkpoint.model_config(), dropout=settings.dropout)
    resumed = checkpoint is not None
    micro_batch, micro_steps, memory = fit_memory(shape, settings, choices, device, world, console, resumed)

    progress = Progress() if checkpoint is None else Progress.from_meta(checkpoint.meta)
    model = make_model(shape, settings, choices, device, data, world, checkpoint, pretrained)
    optimizer = make_optimizer(model, settings, world)
    scaler = torch.amp.GradScaler(device.type, enabled=choices.dtype == "float16")
    if checkpoint is not None:
        checkpoints.restore_optimizer(model, optimizer, checkpoint.tensors("optimizer"))
        checkpoints.restore_scaler(scaler, checkpoint.meta["scaler"])

    run = Run(
        settings,
        world,
        console,
        choices,
        used_cpu_part,
        device,
        data,
        model,
        optimizer,
        scaler,
        micro_batch,
        micro_steps,
        memory,
        world.collect(
            {"rank": world.rank, "host": socket.gethostname(), "device": str(device), "seed": settings.seed}
        ),
    )
    describe(run, progress)
    if not settings.eval_only:
        claim_folder(run, folder, sources, progress, checkpoint, cleanup)
    return run, progress, checkpoint is not None


def make_model(
    shape: GPTConfig,
    settings: TrainSettings,
    choices: Choices,
    device: torch.device,
    data: Dataset,
    world: World,
    checkpoint: Checkpoint | None,
    pretrained: Pretrained | None,
) -> GPT:
    """The model with the weights that the run starts from, whole or this process's slices of it."""
    sharded = functools.partial(sharded_model, choices.gathered_dtype(), world)
    empty = sharded if shards(settings, world) else GPT.empty
    dtype = choices.weights_dtype()
    if checkpoint is not None:
        model = checkpoints.model_from(checkpoint, device, dtype, settings.dropout, empty)
    elif pretrained is not None:
        model = finetuned(pretrained, settings, data).model(device, dtype, empty)
    else:
        model = empty(shape, device, dtype)
        model.init_weights(settings.seed, put)
    model.use_attention_kernel(choices.attention_kernel)
    model.recompute_blocks(settings.recompute)
    return model


def choose(
    sources: Sources, checkpoint: Checkpoint | None, world: World, console: Console
) -> tuple[TrainSettings, Choices, torch.device, bool]:
    """The settings and the machine's choices; where the device is a CPU, the file's cpu part applies.

    A resumed run keeps the choices that its checkpoint recorded, but for those that the user sets now.
    """
    recorded = None if checkpoint is None else Choices.from_dict(checkpoint.meta["choices"])
    wanted = sources.peek("device")
    if wanted == "auto" and recorded is not None:
        with contextlib.suppress(UserError):  # the device of then is not here: choose again
            wanted = find_device(recorded.device).type
    device = find_device(wanted)
    if world.size > 1 and device.type == "cuda":
        device = torch.device("cuda", world.local_rank)
    kept = recorded if recorded is not None and recorded.device == device.type else None

    used_cpu_part = device.type == "cpu" if checkpoint is None else bool(checkpoint.meta["used_cpu_part"])
    base = None
    if checkpoint is not None:
        shape = shape_settings(checkpoint.model_config())
        kept_settings = (
            shape if sources.path is not None else checkpoint.meta["settings"].keys() - set(OF_ONE_START)
        )
        saved = {name: value for name, value in checkpoint.meta["settings"].items() if name in kept_settings}
        base = {
            name: check_value(TrainSettings, name, value, str(checkpoint.folder))
            for name, value in saved.items()
        }
    settings = sources.settings(on_cpu=used_cpu_part, base=base)

    compiled, reason = choose_compile(settings.compile, device)
    choices = Choices(
        device.type,
        choose_dtype(settings.dtype, device),
        compiled,
        choose_threads(settings.threads, world.local_size),
    )
    if kept is not None:
        same_processes = checkpoint.meta["processes"] == world.size
        same_batch = same_processes and checkpoint.meta["settings"]["batch_size"] == settings.batch_size
        automatic = {
            "dtype": settings.dtype == "auto",
            "compile": settings.compile == "auto",
            "threads": settings.threads is None and same_processes,
            "batch_size": same_batch,
            "evaluation_batch": same_batch,
        }
        for name in choices.to_dict():
            if automatic.get(name, True):
                setattr(choices, name, getattr(kept, name))
        reason = "as before"
    if used_cpu_part and sources.cpu:
        console.say(
            f"cpu part of {sources.path}: "
            + ", ".join(f"{name}={value}" for name, value in sources.cpu.items())
        )
    choices = Choices.from_dict(world.broadcast(choices.to_dict()))
    torch.set_num_threads(choices.threads)
    console.say(
        f"device: {device_name(device)}, dtype: {choices.dtype}, compile: {choices.compile}"
        f"{f' ({reason})' if reason and not choices.compile else ''}, processes: {world.size}"
    )
    return settings, choices, device, used_cpu_part


def probe(
    choices: Choices, settings: TrainSettings, micro_batch: int, world: World, console: Console
) -> None:
    """Let rank 0 find the fastest exact kernels for this machine; all use them."""
    if world.is_main:
        remarks = probe_kernels(
            choices, micro_batch, settings.block_size, settings.n_head, settings.n_embd, settings.dropout
        )
        if remarks:
            console.say(f"kernels: {'; '.join(remarks)}")
    found = Choices.from_dict(world.broadcast(choices.to_dict()))
    choices.matmul_precision, choices.attention_kernel = found.matmul_precision, found.attention_kernel


def fit_memory(
    shape: GPTConfig,
    settings: TrainSettings,
    choices: Choices,
    device: torch.device,
    world: World,
    console: Console,
    resumed: bool,
) -> tuple[int, int, Memory]:
    """(micro-batch, micro-batches a step, predicted memory): `batch_size`, halved until it fits.

    Rank 0 decides. The sequences of a step stay the same. A resumed run begins with the size that its
    checkpoint recorded.
    """
    wanted, sequences = choices.batch_size or settings.batch_size, settings.sequences_per_step()
    available = world.broadcast(available_bytes(device, world.local_size))
    counted = TrainingMemory(shape, settings, choices, world)
    size, memory = counted.fit(wanted, available)
    if size < settings.batch_size:
        choices.batch_size = size
    if size < wanted or choices.evaluation_batch is None:
        choices.evaluation_batch = counted.evaluation_batch(size, memory)
    micro_batch, micro_steps = share_of_step(sequences, size, world)
    if size < wanted:
        console.say(
            f"memory: batch_size {wanted} does not fit into the {gigabytes(available)} that are free; "
            f"a process works on {micro_batch} at a time, and a step has {sequences} sequences as before"
        )
        if resumed:
            console.say(
                "warning: sums in another order are rounded differently; from here on the run is no "
                "longer bit for bit the one that was not stopped"
            )
    if available is not None and memory.total > available:
        console.say(
            f"warning: training is predicted to take {gigabytes(memory.total)}, and {gigabytes(available)} "
            f"are free; a smaller n_layer, n_embd or block_size takes less"
        )
    return micro_batch, micro_steps, memory


def suggest_settings(sources: Sources, world: World, console: Console) -> None:
    """Put settings that suit the data's size in the place of a configuration file, and say which."""
    name = sources.peek("dataset")
    ensure_prepared(name, world, console)
    on_cpu = find_device(sources.peek("device")).type == "cpu"
    found = suggest(read_meta(DATA_FOLDER / name / "meta.json"), on_cpu, sources.command_line)
    if sources.peek("init_from") not in STARTS:  # weights bring their shape
        found = {name: value for name, value in found.items() if name not in GPTConfig.__dataclass_fields__}
    sources.file = found
    chosen = ", ".join(f"{setting}={value}" for setting, value in sources.file.items())
    console.say(f"no configuration file; settings for data of this size (--NAME=VALUE changes one): {chosen}")


def open_data(settings: TrainSettings, world: World, console: Console) -> Dataset:
    """The data set, prepared by rank 0 if it is not there."""
    ensure_prepared(settings.dataset, world, console)
    return open_dataset(settings.dataset, settings.block_size)


def ensure_prepared(name: str, world: World, console: Console) -> None:
    """Let rank 0 prepare a data set that is not there."""
    if world.is_main and not (DATA_FOLDER / name / "meta.json").is_file():
        console.say(f"preparing the data set {name}")
        prepare_recipe(name, console.say)
    world.wait()


def describe(run: Run, progress: Progress) -> None:
    """Say what will be trained, on what, and how much."""
    settings, config, say = run.settings, run.model.config, run.console.say
    say(
        f"data: {run.data.folder} ({run.data.fingerprint[:12]}), {run.data.train.tokens:,} training and "
        f"{run.data.val.tokens:,} validation tokens, vocabulary {run.data.tokenizer.vocab_size:,}"
    )
    say(
        f"model: {config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, block "
        f"{config.block_size}, {sum(count_parameters(config).values()):,} parameters"
    )
    if progress.step >= settings.max_iters > 0 and not settings.eval_only:
        say(f"nothing left to do: {progress.step:,} steps are made; --max_iters={2 * progress.step} goes on")
    say(
        f"training: steps {progress.step:,} to {settings.max_iters:,} of {run.tokens_per_step:,} tokens "
        f"({run.world.size} × {run.micro_steps} × {run.micro_batch} sequences"
        f"{', the model sharded' if is_sharded(run.model) else ''})"
    )
    if run.world.size > 1:
        say(f"processes: {describe_ranks(run.ranks)}")
    say(f"memory: a process is predicted to take up to {run.memory}")


def compiled(run: Run) -> Any:
    """The model as the compiler makes it, where that was chosen and succeeds; otherwise as it is."""
    if not run.choices.compile:
        return run.model
    forward = compile_blocks(run.model) if is_sharded(run.model) else torch.compile(run.model)
    try:
        warm_up(run, forward)
    except Exception as error:  # whatever the compiler stumbles over, the plain model computes the same
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        run.console.say(f"note: torch.compile is off, since it fails here ({reason[:200]})")
        run.choices.compile = False
        return plain_blocks(run.model) if is_sharded(run.model) else run.model
    return forward


def in_parallel(run: Run, forward: Any) -> Any:
    """Under DDP, which averages the gradients of several processes; a sharded model does so by itself."""
    if run.world.size == 1 or is_sharded(run.model):
        return forward
    devices = [run.device.index] if run.device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(
        forward, device_ids=devices, gradient_as_bucket_view=True
    )


def warm_up(run: Run, forward: Any) -> None:
    """A forward and backward pass that leaves nothing behind, so compiling does not count as training."""
    ids = torch.zeros(run.micro_batch, run.settings.block_size, dtype=torch.int64, device=run.device)
    with run.choices.autocast():
        loss = forward(ids, ids)[1]
    loss.backward()
    run.optimizer.zero_grad(set_to_none=True)
