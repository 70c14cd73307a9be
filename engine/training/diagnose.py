"""Find the cause of a divergence: replay the failing update from the last checkpoint, with hooks."""

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from engine.parallel.sharding import local_tensor
from engine.training.batches import Batch, Batches
from engine.training.report import Update
from engine.training.run import Run, RunState
from engine.weights import checkpoint as checkpoints
from engine.weights.training_state import restore_optimizer

UpdateFunction = Callable[[Run, Any, Batch, int], Update]  # train.py's update


def explain_divergence(run: Run, forward: Any, update: UpdateFunction, step: int) -> str:
    """Name the first tensor that is not finite in the update to `step`, replayed from the last checkpoint.

    Leaves the model in the state of that update. All processes take part. A compiled model is replayed
    uncompiled, since hooks see nothing inside compiled code.
    """
    assert run.folder is not None, "a run that trains has a folder"
    checkpoint, _ = checkpoints.open_newest(run.folder)
    state = RunState.from_meta(checkpoint.meta)
    checkpoints.load_weights(run.model, checkpoint.tensors("model"))
    restore_optimizer(run.model, run.optimizer, checkpoint.tensors("optimizer"))
    run.scaler.load_state_dict(checkpoint.meta["scaler"])
    run.optimizer.zero_grad(set_to_none=True)
    eager = torch.compiler.set_stance("force_eager") if run.compute.compile else contextlib.nullcontext()
    with eager, contextlib.closing(Batches(run, state.sequences)) as batches:
        for number in range(state.step, step - 1):
            update(run, forward, batches.step(), number)
        weights = (f"the weight {name}" for name, value in run.model.named_parameters() if not _finite(value))
        found = _first_of_all(run, weights)
        if found is None:
            last = batches.step()
            found = _first_of_all(run, _watch(run.model, lambda: update(run, forward, last, step - 1)))
    if found is None:
        return f"replayed from step {state.step}, all is finite: no repeat, which points at the hardware"
    return f"replayed from step {state.step}, the first tensor that is not finite is {found}"


def _first_of_all(run: Run, found: Iterable[str]) -> str | None:
    """The first finding of any process; outputs come before gradients, which spread to all processes."""
    firsts = filter(None, run.world.all_gather(next(iter(found), None)))
    return min(firsts, key=lambda what: not what.startswith("the output"), default=None)


def _watch(model: nn.Module, run_update: Callable[[], Any]) -> list[str]:
    """Run an update with a hook on every module and every gradient; return what was not finite, in order."""
    found: list[str] = []

    def see_output(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not _finite(output):
            found.append(f"the output of {name}")

    def see_gradient(name: str, parameter: Tensor) -> None:
        if parameter.grad is not None and not _finite(parameter.grad):
            found.append(f"the gradient of {name}")

    handles = [
        module.register_forward_hook(functools.partial(see_output, name))
        for name, module in model.named_modules()
        if name
    ]
    handles += [
        parameter.register_post_accumulate_grad_hook(functools.partial(see_gradient, name))
        for name, parameter in model.named_parameters()
    ]
    try:
        run_update()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _finite(tensor: Tensor) -> bool:
    return bool(local_tensor(tensor).isfinite().all())
