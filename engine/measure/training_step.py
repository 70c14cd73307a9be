"""A training step of train.py on random tokens, for measurements of time and memory."""

import itertools
from collections.abc import Callable
from typing import Any, cast

import torch

from engine import kernels
from engine.command_line import read_settings
from engine.device import Compute, choose_dtype
from engine.measure.timing import synchronize
from engine.parallel.sharding import recompute_blocks
from engine.parallel.world import ALONE, World, share_of_step
from engine.settings import TrainSettings
from engine.shape import empty_model, model_config
from engine.training.batches import Batch
from engine.training.diagnose import UpdateFunction
from engine.training.metrics import Console
from engine.training.optimizer import make_optimizer
from engine.training.run import Run
from engine.training.setup import choose_compute, probe
from model import GPTConfig

PLAIN = {
    "gradient_accumulation_steps": 1, "batch_size": 12, "block_size": 64,
    "n_layer": 4, "n_head": 4, "n_embd": 128,
    "bias": False, "learning_rate": 1e-3, "beta2": 0.99, "max_iters": 2000, "warmup_iters": 100,
}  # fmt: skip


def trial_settings(config: str | None, device: torch.device) -> TrainSettings:
    """The settings of a configuration file, or of PLAIN if there is none."""
    if config is None:
        return TrainSettings(**PLAIN)
    return read_settings(TrainSettings, [config], "").settings(on_cpu=device.type == "cpu")


def trial_shape(settings: TrainSettings, device: torch.device) -> GPTConfig:
    """The model's shape, with a vocabulary of characters on a CPU and of GPT-2 elsewhere."""
    return model_config(settings, 65 if device.type == "cpu" else 50257)


def plain_compute(settings: TrainSettings, device: torch.device) -> Compute:
    """The device's precision, and PyTorch's defaults for everything else."""
    return Compute(device.type, choose_dtype(settings.dtype, device), False, torch.get_num_threads())


def best_compute(settings: TrainSettings, device: torch.device, world: World = ALONE) -> Compute:
    """What train.py chooses on this machine, applied."""
    silent = Console(is_main=False)
    compute = choose_compute(settings, None, device, world, silent)
    micro_batch, _ = share_of_step(settings.sequences_per_step(), settings.batch_size, world)
    probe(compute, settings, micro_batch, world, silent)
    compute.apply()
    return compute


def trial_run(
    settings: TrainSettings,
    device: torch.device,
    compute: Compute | None = None,
    config: GPTConfig | None = None,
    world: World = ALONE,
    plain: bool = False,
) -> Run:
    """A run with initial weights and no data. `plain`: model.py without kernels, and AdamW unfused."""
    compute = compute or best_compute(settings, device, world)
    model = empty_model(config or trial_shape(settings, device), device, compute.weights_dtype())
    model.init_weights(settings.seed)
    if not plain:
        kernels.install(model, compute.attention_kernel)
    if settings.recompute:
        recompute_blocks(model)
    optimizer = make_optimizer(model, settings)
    for group in optimizer.param_groups if plain else ():
        group["fused"] = False
    micro_batch, micro_steps = share_of_step(settings.sequences_per_step(), settings.batch_size, world)
    return Run(
        settings=settings, world=world, console=Console(False), compute=compute, used_cpu_part=False,
        device=device, data=cast(Any, None), model=model, optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=compute.dtype == "float16"),
        ranks=[], resumed=False, micro_batch=micro_batch, micro_steps=micro_steps,
    )  # fmt: skip


def step_function(update: UpdateFunction, run: Run, forward: Any) -> Callable[[], None]:
    """A function that makes one training step with `forward`: the model, compiled or under DDP."""
    config = run.model.config
    rows = torch.randint(config.vocab_size, (run.micro_batch, config.block_size + 1), device=run.device)
    micro_batches = [(rows[:, :-1], rows[:, 1:])] * run.micro_steps
    numbers = itertools.count()

    def step() -> None:
        update(run, forward, Batch(iter(micro_batches), run.tokens_per_step), next(numbers))
        synchronize(run.device)

    return step
