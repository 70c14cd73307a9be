"""Everything before the first step of tune.py: choose run, device and model, and describe them."""

import contextlib
import dataclasses
import hashlib
import socket
from pathlib import Path

import numpy as np
import torch

from engine import kernels
from engine.command_line import Sources
from engine.data.dataset import Dataset, Split
from engine.device import device_name
from engine.errors import UserError
from engine.parallel.world import World
from engine.settings import TuneSettings
from engine.shape import count_parameters, shape_settings
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict
from engine.training.folder import claim_folder, refuse_taken_folder
from engine.training.metrics import Console
from engine.training.optimizer import make_optimizer
from engine.training.run import Run, RunState
from engine.training.setup import choose_compute, choose_device, choose_settings, probe
from engine.training.start import (
    all_steps_are_made,
    check_resumable,
    describe_resume,
    find_start,
    resumed_state,
)
from engine.tuning.rows import add_score_head
from engine.weights.checkpoint import Checkpoint, model_from, open_checkpoint
from engine.weights.pretrained import Pretrained, read_pretrained
from engine.weights.training_state import restore_optimizer, restore_scaler
from model import GPT


def set_up(
    sources: Sources, world: World, console: Console, cleanup: contextlib.ExitStack
) -> tuple[Run, RunState] | None:
    """The run and its state; None if all its steps are done. Raises UserError."""
    if world.size > 1:
        raise UserError("tune.py runs as one process; start it without torchrun")
    for remark in sources.remarks:
        console.say(f"note: {remark}")
    folder, checkpoint = find_start(sources, world, console)
    device = choose_device(sources, checkpoint, world)
    on_cpu = device.type == "cpu" if checkpoint is None else bool(checkpoint.meta["used_cpu_part"])
    settings = choose_settings(sources, checkpoint, on_cpu, console)
    assert isinstance(settings, TuneSettings), "tune.py reads these"
    compute = choose_compute(settings, checkpoint, device, world, console)
    if checkpoint is None:
        if settings.init_from != "auto" and settings.out_dir is not None:
            refuse_taken_folder(Path(settings.out_dir))
        source = settings.reference if settings.init_from == "auto" else settings.init_from
        start = read_assistant(str(source))
        changes = {"reference": settings.reference or start.source, "init_from": start.source}
        if settings.method == "ppo":  # run:NAME is resolved once for the whole run
            changes["reward_model"] = read_assistant(str(settings.reward_model)).source
        settings = dataclasses.replace(settings, **changes, **shape_settings(start.config))
        data, state = without_tokens(start.chat_tokenizer(), settings), RunState()
        # Prompts with answers fill a small part of the block.
        probe(compute, settings, max(1, settings.batch_size // 8), world, console)
        model = start.model(device, compute.weights_dtype())
    else:
        # The newest run:NAME may be another one by now.
        kept = {name: checkpoint.meta["settings"][name] for name in ("reference", "reward_model")}
        settings = dataclasses.replace(settings, **kept)
        data = without_tokens(tokenizer_from_dict(checkpoint.meta["tokenizer"]), settings)
        check_resumable(settings, data, checkpoint)
        state = resumed_state(checkpoint, settings, console)
        if all_steps_are_made(settings, state, folder, console):
            return None
        model = model_from(checkpoint, device, compute.weights_dtype(), dropout=0.0)
    if settings.method in ("reward", "ppo"):
        add_score_head(model, None if checkpoint is None else checkpoint.tensors("score"))
    if settings.method == "reward" and not model.config.tied_head:
        model.head.requires_grad_(False)  # no token is predicted
    compute.apply(settings.deterministic)
    kernels.install(model, compute.attention_kernel)
    run = Run(
        settings=settings, world=world, console=console, compute=compute, used_cpu_part=on_cpu, device=device,
        data=data, model=model, optimizer=make_optimizer(model, settings),
        scaler=torch.amp.GradScaler(device.type, enabled=compute.dtype == "float16"),
        ranks=[{"rank": 0, "host": socket.gethostname(), "device": str(device), "seed": settings.seed}],
        resumed=checkpoint is not None,
    )  # fmt: skip
    if checkpoint is not None:
        restore_optimizer(model, run.optimizer, checkpoint.tensors("optimizer"))
        restore_scaler(run.scaler, checkpoint.meta["scaler"])
    claim_folder(run, folder, sources, state, checkpoint, cleanup)
    describe(run, state, checkpoint)
    return run, state


def read_assistant(source: str) -> Pretrained:
    """The weights of an assistant, without dropout. Raises UserError if they are no assistant's."""
    found = read_pretrained(source)
    found.chat_tokenizer()  # raises
    return dataclasses.replace(found, config=dataclasses.replace(found.config, dropout=0.0))


def reference_model(run: Run, source: str) -> GPT:
    """A frozen model beside the one that is tuned."""
    model = read_assistant(source).model(run.device, run.compute.weights_dtype())
    return kernels.install(model, run.compute.attention_kernel).requires_grad_(False).eval()


def reward_model(run: Run, source: str) -> GPT:
    """A frozen model with a head that scores answers. Raises UserError if it has none, or reads other ids."""
    tensors = open_checkpoint(Path(source), "best").tensors("score")
    if not tensors or read_assistant(source).known_tokenizer().to_dict() != run.data.tokenizer.to_dict():
        raise UserError(
            f"{source} is no reward model for {run.settings.init_from}; train one from it: "
            f"python tune.py configs/assistant_reward_model.py"
        )
    return add_score_head(reference_model(run, source), tensors)


def without_tokens(tokenizer: Tokenizer, settings: TuneSettings) -> Dataset:
    """The data set of a run that reads no token files: its vocabulary, and where its prompts come from."""
    none = Split("none", Path(), [], np.dtype("uint16"), tokenizer.vocab_size)
    prompts = settings.preferences or f"tasks: {settings.tasks}"
    fingerprint = hashlib.sha256(prompts.encode()).hexdigest()
    return Dataset(prompts, Path(), {}, tokenizer, none, none, fingerprint)


def describe(run: Run, state: RunState, checkpoint: Checkpoint | None) -> None:
    """Print in three lines which run this is, which model it starts from, and on which machine."""
    settings, config, say = run.settings, run.model.config, run.console.say
    say(f"run: {run.folder if checkpoint is None else describe_resume(settings, checkpoint)}")
    say(
        f"model: {settings.init_from}, {config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, "
        f"block {config.block_size}, {sum(count_parameters(config).values()):,} parameters"
    )
    say(
        f"tuning: steps {state.step:,} to {settings.max_iters:,} on {device_name(run.device)}, "
        f"{run.compute.dtype}; Ctrl-C saves and stops"
    )
