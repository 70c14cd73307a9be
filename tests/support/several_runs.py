"""What test_sharded.py runs under torchrun: commands of train.py one after the other, and two measurements.

    torchrun --standalone --nproc_per_node=2 several_runs.py '[["train", "tiny.py"], ["holds"]]'

Starting Python and torch takes longer than all of them. What is measured, rank 0 prints as lines of JSON.
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from torch.nn import functional as F

import train
from engine import kernels
from engine.errors import UserError
from engine.parallel.sharding import copy_into, full_tensor, local_tensor, sharded_model
from engine.parallel.world import join
from engine.shape import empty_model
from model import GPTConfig
from support.masking import without_targets

EVENTS = {"ddp": "gloo:all_reduce", "fsdp": "c10d::_reduce_scatter_base_"}


def train_py(*arguments: str) -> None:
    """train.py with these arguments."""
    status = train.main(list(arguments))
    assert status == 0, status


def fails(*arguments: str) -> None:
    """train.py with arguments that end in an error, and what it says."""
    try:
        train_py(*arguments)
    except UserError as error:
        say({"error": str(error)})
        dist.destroy_process_group()  # all processes have met the error; a script would end here


def masked(numbers: list[int], *arguments: str) -> None:
    """train.py where the sequences of these numbers have no targets."""
    with without_targets(set(numbers)):
        train_py(*arguments)


def stumbles(*arguments: str) -> None:
    """train.py where rank 1 has no compiler, and the others one that runs what it is given as it is."""

    def missing(*_given: object) -> None:
        raise RuntimeError("there is no compiler")

    compile_model = torch.compile
    torch.compile = functools.partial(
        compile_model, backend=missing if os.environ["RANK"] == "1" else "eager"
    )
    try:
        train_py(*arguments)
    finally:
        torch.compile = compile_model


def count(*arguments: str) -> None:
    """train.py, and how often an update sums gradients over the processes, by torch's profiler."""
    counts: list[int] = []
    parallel = next(how for how in EVENTS if f"--parallel={how}" in arguments)
    update = train.update

    def watched(*given: object) -> object:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            values = update(*given)
        counts.append(sum(event.count for event in profile.key_averages() if event.key == EVENTS[parallel]))
        return values

    train.update = watched
    try:
        train_py(*arguments)
    finally:
        train.update = update
    say({"parallel": parallel, "counts": counts})


def holds() -> None:
    """How many numbers each process holds after construction, in parameters and in memory, and the whole."""
    world = join()
    config = GPTConfig(vocab_size=101, block_size=16, n_layer=3, n_head=2, n_embd=30, bias=True)
    model = sharded_model(None, world, config, torch.device("cpu"), torch.float32)
    model.init_weights(5, copy_into)
    parameters = list(model.parameters())
    mine = sum(local_tensor(parameter).numel() for parameter in parameters)
    memory = sum(local_tensor(parameter).untyped_storage().nbytes() // 4 for parameter in parameters)
    say(
        {
            "whole": sum(parameter.numel() for parameter in parameters),
            "mine": world.all_gather([mine, memory]),
        }
    )
    world.leave()


def rounded() -> None:
    """How far gradients are from those of one process where blocks are gathered in bf16, as on a GPU.

    There autocast computes layer norms in fp32, whatever comes in; on a CPU it leaves that to the caller.
    """
    plain = F.layer_norm
    F.layer_norm = lambda x, shape, weight, bias, eps: plain(
        x.float(), shape, weight.float(), bias.float(), eps
    )
    world = join()
    config = GPTConfig(vocab_size=101, block_size=16, n_layer=3, n_head=2, n_embd=30, bias=True)
    ids = torch.arange(48).view(3, 16)
    gradients = []
    for model in (
        empty_model(config, "cpu"),
        sharded_model(torch.bfloat16, world, config, torch.device("cpu"), torch.float32),
    ):
        model.init_weights(5, copy_into)
        kernels.install(model, "matmul")
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, ids)
        loss.backward()
        gradients.append({name: full_tensor(parameter.grad) for name, parameter in model.named_parameters()})
    errors = {name: (gradients[1][name] - one).norm() / one.norm() for name, one in gradients[0].items()}
    F.layer_norm = plain
    say({"rounded": {name: error.item() for name, error in errors.items()}})
    world.leave()


def say(measured: dict[str, object]) -> None:
    """Print from rank 0."""
    if os.environ["RANK"] == "0":
        print(json.dumps(measured), flush=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train_py, "fails": fails, "masked": masked, "stumbles": stumbles, "count": count,
    "holds": holds, "rounded": rounded,
}  # fmt: skip

for number, (name, *given) in enumerate(json.loads(sys.argv[1])):
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # names of its own in torchrun's store: see join()
    COMMANDS[name](*given)
