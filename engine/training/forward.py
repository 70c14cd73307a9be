"""The forward pass that training calls: compiled if chosen, under DDP with several processes."""

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
    """The forward pass (ids, targets) -> sum of losses, warmed up for the run's first step.

    The warm-up runs on the sequences after `consumed`: it compiles the model and tests whether a micro-batch
    fits on the GPU. If compiling fails on any process, all go on uncompiled (but the processes of a sharded
    model wait for one another within a pass, until it times out). A micro-batch that does not fit is halved.
    Raises UserError if one sequence does not fit.
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
                torch.compiler.set_stance("force_eager")  # compiled functions run uncompiled
        yield forward


def compiled(run: Run) -> Any:
    """torch.compile the model if chosen; it compiles at the first call.

    Shapes are static: all micro-batches of a run have the same, and static code is faster.
    """
    if not run.compute.compile:
        return run.model
    return compile_blocks(run.model) if is_sharded(run.model) else torch.compile(run.model, dynamic=False)


def in_parallel(run: Run, forward: Any) -> Any:
    """Wrap the model in DDP if there are several processes; a sharded model needs no wrapper."""
    if run.world.size == 1 or is_sharded(run.model):
        return forward
    on_gpu = run.device.type == "cuda"
    return DistributedDataParallel(
        forward,
        device_ids=[run.device.index] if on_gpu else None,
        # By default the first bucket is small, to be sent early; on a CPU that costs more than it hides.
        bucket_cap_mb=None if on_gpu else 25,
        gradient_as_bucket_view=True,
    )


def first_problem(run: Run, forward: Any, consumed: int) -> str | None:
    """The first error of any process in a trial forward and backward pass; gradients are dropped after."""
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
    """One forward and backward pass as in training, without DDP's synchronisation: one process may fail."""
    with contextlib.closing(Batches(run, consumed)) as batches:
        ids, targets = next(batches.step().micro_batches)
    with gradients_summed(run.model, forward, now=is_sharded(run.model)):
        with run.compute.autocast():
            loss_sum = forward(ids, targets)
        loss_sum.backward()


def halve_micro_batch(run: Run) -> None:
    """Halve the micro-batch and double the number of micro-batches. Raises UserError at one sequence."""
    if run.micro_batch == 1:
        raise UserError(
            "one sequence at a time does not fit into the GPU's memory; lower n_layer, n_embd or block_size, "
            "or add --recompute=True or, with several GPUs, --parallel=fsdp"
        )
    before, sequences = run.micro_batch, run.settings.sequences_per_step()
    run.compute.batch_size = before // 2
    run.micro_batch, run.micro_steps = share_of_step(sequences, run.compute.batch_size, run.world)
    run.compute.evaluation_batch = run.micro_batch
    torch.cuda.empty_cache()
    exact = "; it is no longer bit for bit the run that it was" if run.resumed else ""
    run.console.say(
        f"memory: {before} sequences do not fit into the GPU; a process works on {run.micro_batch} at a "
        f"time, and a step has {sequences} as before{exact}"
    )
