"""Everything before the first step: choose run, device, data and model, and describe them to the user."""

import contextlib
import dataclasses
import functools
import socket
from pathlib import Path

import torch

from engine import kernels
from engine.command_line import Sources, check_value
from engine.data.dataset import DATA_FOLDER, Dataset, open_dataset
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
from engine.settings import STARTS, TrainSettings, TuneSettings
from engine.shape import count_parameters, empty_model, model_config, shape_settings
from engine.training.evaluation import windows_of
from engine.training.folder import claim_folder, refuse_taken_folder, usual_folder
from engine.training.memory import TrainingMemory, available_bytes, gigabytes
from engine.training.metrics import Console
from engine.training.optimizer import make_optimizer
from engine.training.run import Run, RunState
from engine.training.start import (
    NOT_TAKEN_OVER,
    all_steps_are_made,
    check_resumable,
    describe_resume,
    find_start,
    finetuned,
    read_weights,
    resumed_state,
)
from engine.training.suggest import find_contradictions, names_dataset, settings_for_data
from engine.weights import checkpoint as checkpoints
from engine.weights.checkpoint import Checkpoint
from engine.weights.pretrained import Pretrained
from engine.weights.training_state import restore_optimizer, restore_scaler
from model import GPT, GPTConfig


def set_up(
    sources: Sources, world: World, console: Console, cleanup: contextlib.ExitStack
) -> tuple[Run, RunState] | None:
    """The run and its state; None if all its steps are done.

    Nothing is written to its folder before everything else has succeeded.
    """
    for remark in sources.remarks:
        console.say(f"note: {remark}")
    folder, checkpoint = find_start(sources, world, console)
    if checkpoint is None:
        add_settings_for_data(sources, world, console)
    device = choose_device(sources, checkpoint, world)
    on_cpu = device.type == "cpu" if checkpoint is None else bool(checkpoint.meta["used_cpu_part"])
    settings = choose_settings(sources, checkpoint, on_cpu, console)
    model_config(settings, vocab_size=1)  # an impossible shape is an error before anything is printed
    compute = choose_compute(settings, checkpoint, device, world, console)
    pretrained = read_weights(settings, sources, on_cpu, world, console)
    if pretrained is not None:
        settings = dataclasses.replace(
            settings, init_from=pretrained.source, **shape_settings(pretrained.config)
        )
    micro_batch, _ = share_of_step(settings.sequences_per_step(), settings.batch_size, world)
    ensure_prepared(settings.dataset, world, console)
    data = open_dataset(settings.dataset, settings.block_size)
    if pretrained is not None:
        pretrained = finetuned(pretrained, settings, data)
    state = starting_state(settings, data, checkpoint, console)
    continues = checkpoint is not None and not settings.eval_only
    if continues and all_steps_are_made(settings, state, folder, console):
        return None

    if checkpoint is None or checkpoint.meta["choices"]["device"] != compute.device:
        probe(compute, settings, micro_batch, world, console)
    compute.apply(settings.deterministic)
    shape = model_config(settings, data.tokenizer.vocab_size, data.separator(settings.documents))
    if checkpoint is not None:
        shape = dataclasses.replace(checkpoint.model_config(), dropout=settings.dropout)
    predictor = TrainingMemory(shape, settings, compute, world)
    micro_batch, micro_steps = fit_memory(predictor, device, console, resumed=checkpoint is not None)
    model = make_model(shape, settings, compute, device, world, checkpoint, pretrained)
    optimizer = make_optimizer(model, settings, world)
    scaler = torch.amp.GradScaler(device.type, enabled=compute.dtype == "float16")
    if checkpoint is not None:
        restore_optimizer(model, optimizer, checkpoint.tensors("optimizer"))
        restore_scaler(scaler, checkpoint.meta["scaler"])
    rank = {"rank": world.rank, "host": socket.gethostname(), "device": str(device), "seed": settings.seed}
    run = Run(
        settings=settings, world=world, console=console, compute=compute, used_cpu_part=on_cpu, device=device,
        data=data, model=model, optimizer=optimizer, scaler=scaler, micro_batch=micro_batch,
        micro_steps=micro_steps, ranks=world.all_gather(rank), resumed=checkpoint is not None,
    )  # fmt: skip
    note_details(run)
    if not settings.eval_only:
        claim_folder(run, folder, sources, state, checkpoint, cleanup)
    describe(run, state, sources, None if checkpoint is None else describe_resume(settings, checkpoint))
    return run, state


def add_settings_for_data(sources: Sources, world: World, console: Console) -> None:
    """Choose the settings that the user leaves out for the size of the data set that they name; print them.

    A nanoGPT file keeps nanoGPT's defaults.
    """
    if not names_dataset(sources) or sources.get("eval_only"):
        return
    ensure_prepared(sources.get("dataset"), world, console)
    found = settings_for_data(sources, on_cpu=find_device(sources.get("device")).type == "cpu")
    if not found:
        return
    chosen = ", ".join(f"{setting}={value}" for setting, value in found.items())
    if sources.nanogpt_mark is None:
        sources.file = found | sources.file
        console.say(f"settings for data of this size (--NAME=VALUE changes one): {chosen}")
    else:
        why = f"{sources.path} sets {sources.nanogpt_mark}, as nanoGPT's files do"
        console.say(f"note: {why}, so what it leaves out has nanoGPT's default; for this data: {chosen}")


def ensure_prepared(name: str, world: World, console: Console) -> None:
    """Let rank 0 prepare a missing data set, while the other ranks wait as long as it takes."""
    if world.is_main and not (DATA_FOLDER / name / "meta.json").is_file():
        console.say(f"preparing the data set {name}")
        summary = f"{DATA_FOLDER / name}: "  # which the run's own line on its data repeats
        prepare_recipe(name, lambda line: None if line.startswith(summary) else console.say(line))
    world.wait_for_main()


def choose_device(sources: Sources, checkpoint: Checkpoint | None, world: World) -> torch.device:
    """The device of this process; a resumed run takes the kind that it had before, if available.

    Raises UserError for a device that is absent, or that several processes cannot share.
    """
    wanted = sources.get("device")
    if wanted == "auto" and checkpoint is not None:
        recorded = Compute.from_dict(checkpoint.meta["choices"])
        with contextlib.suppress(UserError):  # that device is not available here: choose again
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
    """The run's settings; on a CPU with the file's cpu part.

    A resumed run keeps the settings of its checkpoint that neither the file nor the command line sets.
    """
    if on_cpu and sources.cpu:
        part = ", ".join(f"{name}={value}" for name, value in sources.cpu.items())
        console.details.append(f"cpu part of {sources.path}: {part}")
    if checkpoint is None:
        return sources.settings(on_cpu=on_cpu)
    saved = checkpoint.meta["settings"]
    if ("method" in saved) != (sources.kind is TuneSettings):
        script = "tune.py" if "method" in saved else "train.py"
        raise UserError(
            f"{checkpoint.folder} was written by {script}; go on with it: python {script} --init_from=resume "
            f"--out_dir={checkpoint.folder.parents[1]}"
        )
    kept = saved.keys() - set(NOT_TAKEN_OVER)
    base = {name: check_value(sources.kind, name, saved[name], str(checkpoint.folder)) for name in kept}
    return sources.settings(on_cpu=on_cpu, base=base)


def choose_compute(
    settings: TrainSettings,
    checkpoint: Checkpoint | None,
    device: torch.device,
    world: World,
    console: Console,
) -> Compute:
    """Device, precision, compiler and threads, the same on all processes.

    On the same kind of device a resumed run keeps the choices in its checkpoint, unless the user changes
    them.
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
    why = f" ({reason})" if reason and not compute.compile else ""
    console.details.append(f"compile: {compute.compile}{why}")
    return compute


def starting_state(
    settings: TrainSettings, data: Dataset, checkpoint: Checkpoint | None, console: Console
) -> RunState:
    """The state to start from. Raises UserError if the run cannot continue, or its folder holds another."""
    if checkpoint is not None:
        check_resumable(settings, data, checkpoint)
        if checkpoint.meta["data"]["fingerprint"] != data.fingerprint:
            console.say(f"warning: {data.folder} has changed since this run began, and so have its sequences")
        return resumed_state(checkpoint, settings, console)
    if settings.init_from != "auto" and settings.out_dir is not None:
        refuse_taken_folder(Path(settings.out_dir))
    return RunState(evaluation_windows=windows_of(settings))


def probe(
    compute: Compute, settings: TrainSettings, micro_batch: int, world: World, console: Console
) -> None:
    """Let rank 0 find the fastest exact kernels for this machine; all ranks use them."""
    if world.is_main and compute.device == "cpu":
        shape = (micro_batch, settings.block_size, settings.n_head, settings.n_embd)
        found = kernels.probe(compute.dtype, *shape, settings.dropout)
        compute.matmul_precision, compute.attention_kernel = found.matmul_precision, found.attention
        if found.remarks:
            console.details.append(f"kernels: {'; '.join(found.remarks)}")
    agreed = Compute.from_dict(world.broadcast(compute.to_dict()))
    compute.matmul_precision, compute.attention_kernel = agreed.matmul_precision, agreed.attention_kernel


def fit_memory(
    predictor: TrainingMemory, device: torch.device, console: Console, resumed: bool
) -> tuple[int, int]:
    """The micro-batch, which is `batch_size`, halved until it fits everywhere, and their number per step.

    The sequences of a step stay the same. A resumed run starts with the size in its checkpoint.
    """
    settings, compute, world = predictor.settings, predictor.compute, predictor.world
    wanted, sequences = compute.batch_size or settings.batch_size, settings.sequences_per_step()
    free = [one for one in world.all_gather(available_bytes(device, world.local_size)) if one is not None]
    available = min(free, default=None)
    size, memory = predictor.fit(wanted, available)
    if size < settings.batch_size:
        compute.batch_size = size
    if size < wanted or compute.evaluation_batch is None:
        compute.evaluation_batch = predictor.evaluation_batch(size, memory)
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
    console.details.append(f"memory: a process is predicted to take up to {memory}")
    return micro_batch, micro_steps


def make_model(
    shape: GPTConfig,
    settings: TrainSettings,
    compute: Compute,
    device: torch.device,
    world: World,
    checkpoint: Checkpoint | None,
    pretrained: Pretrained | None,
) -> GPT:
    """The model with its first weights: the whole model, or the shards of this process."""
    sharded = functools.partial(sharded_model, compute.gathered_dtype(), world)
    empty = sharded if uses_fsdp(settings, world) else empty_model
    dtype = compute.weights_dtype()
    if checkpoint is not None:
        model = checkpoints.model_from(checkpoint, device, dtype, settings.dropout, empty)
    elif pretrained is not None:
        model = pretrained.model(device, dtype, empty)
    else:
        model = empty(shape, device, dtype)
        model.init_weights(settings.seed, copy_into)
    kernels.install(model, compute.attention_kernel)
    if settings.recompute:
        recompute_blocks(model)
    return model


def note_details(run: Run) -> None:
    """Collect the details that config.json records and `--verbose` prints."""
    note = run.console.details.append
    note(f"processes: {describe_ranks(run.ranks)}")
    if run.settings.optimizer == "muon":
        matrices = run.optimizer.param_groups[0]["params"]
        note(f"optimizer: Muon for {len(matrices)} matrices of the blocks, AdamW for the other parameters")
    note(f"fingerprint of {run.data.folder}: {run.data.fingerprint}")


def describe(run: Run, state: RunState, sources: Sources, resuming: str | None) -> None:
    """Print four lines: the run, its data, its model, its steps and how to stop them."""
    settings, config, say = run.settings, run.model.config, run.console.say
    if resuming is not None:
        say(f"run: {resuming}")
    elif run.folder is not None:
        usual = usual_folder(settings, sources)
        say(f"run: {run.folder}{f' ({usual} exists)' if run.folder != usual else ''}")
    say(
        f"data: {run.data.folder}, {run.data.train.tokens:,} training and {run.data.val.tokens:,} validation "
        f"tokens, vocabulary {run.data.tokenizer.vocab_size:,}"
    )
    longest = run.data.meta.get("conversations", {}).get("longest", 0)
    if longest > settings.block_size:
        say(
            f"note: the longest conversation has {longest} tokens; of what goes beyond the block's "
            f"{settings.block_size} nothing is learned"
        )
    say(
        f"model: {'' if settings.init_from in STARTS else f'{settings.init_from}, '}{config.n_layer} layers, "
        f"{config.n_head} heads, {config.n_embd} wide, block {config.block_size}, "
        f"{sum(count_parameters(config).values()):,} parameters"
        f"{f' (cpu part of {sources.path})' if run.used_cpu_part and sources.cpu else ''}"
    )
    machine = f"{device_name(run.device)}, {run.compute.dtype}{', compiled' if run.compute.compile else ''}"
    if settings.eval_only:
        say(f"evaluation on {machine}")
    else:
        say(
            f"training: steps {state.step:,} to {settings.max_iters:,} of {run.tokens_per_step:,} tokens "
            f"({run.world.size} × {run.micro_steps} × {run.micro_batch} sequences"
            f"{', the model sharded' if is_sharded(run.model) else ''}) on {machine}; Ctrl-C saves and stops"
        )
    contradictions = find_contradictions(settings, run.data.train.tokens)
    if contradictions and not settings.eval_only:
        say(f"warning: {'; '.join(contradictions)}")
    if sources.verbose:
        for line in run.console.details:
            say(line)
