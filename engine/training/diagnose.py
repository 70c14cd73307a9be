"""Where a run diverged: the failing update, computed again from the last checkpoint under watch."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from engine.errors import UserError
from engine.parallel.sharding import local
from engine.training.batches import Batches
from engine.training.run import Progress, Run
from engine.weights import checkpoint as checkpoints
from engine.weights.training_state import restore_optimizer


class Diverged(UserError):
    """The loss or the gradient of an update is not finite, or far above those before it."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


def first_not_finite(run: Run, forward: Any, update: Callable[..., Any], step: int) -> str:
    """Name the first tensor not finite in the update to `step`, replayed from the last checkpoint.

    Leaves the model in the state of that update. All processes take part.
    """
    checkpoint, _ = checkpoints.open_newest(run.folder)
    progress = Progress.from_meta(checkpoint.meta)
    checkpoints.load_weights(run.model, checkpoint.tensors("model"), str(checkpoint.folder))
    restore_optimizer(run.model, run.optimizer, checkpoint.tensors("optimizer"))
    run.scaler.load_state_dict(checkpoint.meta["scaler"])
    run.optimizer.zero_grad(set_to_none=True)
    batches = Batches(run, progress.sequences)
    for number in range(progress.step, step - 1):
        update(run, forward, batches.step(), number, False)
    found = _first(
        run, (f"the weight {name}" for name, value in run.model.named_parameters() if not _is_finite(value))
    )
    if found is None:
        found = _first(run, _watch(run.model, lambda: update(run, forward, batches.step(), step - 1, False)))
    batches.close()
    if found is None:
        return f"replayed from step {progress.step}, all is finite: no repeat, which points at the hardware"
    return f"replayed from step {progress.step}, the first tensor that is not finite is {found}"


def _first(run: Run, found: Iterable[str]) -> str | None:
    """What was found first, on any process, an output before a gradient, which has passed from one to all."""
    firsts = filter(None, run.world.collect(next(iter(found), None)))
    return min(firsts, key=lambda what: not what.startswith("the output"), default=None)


def _watch(model: nn.Module, run_update: Callable[[], Any]) -> list[str]:
    """Run an update with a hook on every module and every gradient; what was not finite, in order."""
    found: list[str] = []

    def see_output(name: str) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that notes a module whose output is not finite."""

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and not _is_finite(first):
                found.append(f"the output of {name}")

        return hook

    def see_gradient(name: str) -> Callable[[Tensor], None]:
        """A hook that notes a parameter whose gradient is not finite."""

        def hook(parameter: Tensor) -> None:
            if not _is_finite(parameter.grad):
                found.append(f"the gradient of {name}")

        return hook

    handles = [
        module.register_forward_hook(see_output(name)) for name, module in model.named_modules() if name
    ]
    handles += [
        parameter.register_post_accumulate_grad_hook(see_gradient(name))
        for name, parameter in model.named_parameters()
    ]
    try:
        run_update()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_finite(tensor: Tensor) -> bool:
    return bool(local(tensor).isfinite().all())
