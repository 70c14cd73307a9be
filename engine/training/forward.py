"""The model as training calls it: compiled where that was chosen, under DDP with several processes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from engine.errors import UserError
from engine.parallel.sharding import compile_blocks, gradients_summed, is_sharded
from engine.parallel.world import share_of_step
from engine.training.batches import Batches
from engine.training.run import Run

OUT_OF_MEMORY = "out of memory"


@contextlib.contextmanager
def training_forward(run: Run, consumed: int) -> Iterator[Any]:
    """What takes ids and targets and returns the sum of the losses, ready for the run's first step.

    A first pass, over the sequences behind `consumed`, compiles the model and shows whether a micro-batch
    fits into a GPU. Where compiling fails all go on without, under DDP also if it fails on one process alone
    (a sharded model's processes wait for one another within a pass, until the time-out); a micro-batch that
    does not fit is halved. Raises UserError where one sequence does not fit.
    """
    with contextlib.ExitStack() as stack:
        if run.compute.compile:
            stack.enter_context(torch.compiler.set_stance("default"))  # and leave it as it was before
        forward = in_parallel(run, compiled(run))
        while run.compute.compile or run.device.type == "cuda":
            problem = first_problem(run, forward, consumed)
            if problem is None:
                break
            if problem == OUT_OF_MEMORY:
                halve_micro_batch(run)
            else:
                run.console.say(f"note: torch.compile is off, since it fails here ({problem[:200]})")
                run.compute.compile = False
                torch.compiler.set_stance("force_eager")  # what is compiled runs as it was written
        yield forward


def compiled(run: Run) -> Any:
    """The model that the compiler will compile when it is first called, or the model itself.

    Shapes are static: all of a run's micro-batches have the same, and the code for it is faster.
    """
    if not run.compute.compile:
        return run.model
    return compile_blocks(run.model) if is_sharded(run.model) else torch.compile(run.model, dynamic=False)


def in_parallel(run: Run, forward: Any) -> Any:
    """Under DDP, which averages the gradients of several processes; a sharded model does so by itself."""
    if run.world.size == 1 or is_sharded(run.model):
        return forward
    devices = [run.device.index] if run.device.type == "cuda" else None
    return DistributedDataParallel(forward, device_ids=devices, gradient_as_bucket_view=True)


def first_problem(run: Run, forward: Any, consumed: int) -> str | None:
    """What goes wrong, on any process, in a forward and backward pass that leaves nothing behind."""
    problem = None
    try:
        warm_up(run, forward, consumed)
    except torch.OutOfMemoryError:
        problem = OUT_OF_MEMORY
    except Exception as error:  # whatever the compiler stumbles over, the plain model computes the same
        if not run.compute.compile:
            raise
        problem = " ".join(f"{type(error).__name__}: {error}".split())
    run.optimizer.zero_grad(set_to_none=True)
    problems = [found for found in run.world.all_gather(problem) if found is not None]
    return OUT_OF_MEMORY if OUT_OF_MEMORY in problems else next(iter(problems), None)


def warm_up(run: Run, forward: Any, consumed: int) -> None:
    """A micro-batch as training makes it. DDP's processes do not wait for one another, since one may fail."""
    with contextlib.closing(Batches(run, consumed)) as batches:
        ids, targets = next(batches.step().micro_batches)
    with gradients_summed(run.model, forward, now=is_sharded(run.model)):
        with run.compute.autocast():
            loss_sum = forward(ids, targets)
        loss_sum.backward()


def halve_micro_batch(run: Run) -> None:
    """Work on half as many sequences at a time; a step has as many as before. Raises UserError at one."""
    if run.micro_batch == 1:
        raise UserError(
            "one sequence at a time does not fit into the GPU's memory; lower n_layer, n_embd or block_size, "
            "or add --recompute=True or, with several GPUs, --parallel=fsdp"
        )
    before, sequences = run.micro_batch, run.settings.sequences_per_step()
    run.compute.batch_size = before // 2
    run.micro_batch, run.micro_steps = share_of_step(sequences, run.compute.batch_size, run.world)
    run.compute.evaluation_batch = run.micro_batch
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    exact = "; it is no longer bit for bit the run that it was" if run.resumed else ""
    run.console.say(
        f"memory: {before} sequences do not fit into the GPU; a process works on {run.micro_batch} at a "
        f"time, and a step has {sequences} as before{exact}"
    )
