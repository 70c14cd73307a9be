"""What a run needs to go on, beyond the weights: optimizer state by parameter name, and the loss scale."""

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.errors import UserError
from engine.json_files import COUNT, check_fields
from engine.parallel.sharding import copy_into
from engine.weights.checkpoint import Checkpoint

# What the meta.json of a run's checkpoint holds beyond what sampling needs, and its entry `data`.
FIELDS = {
    "settings": dict,
    "choices": dict,
    "data": dict,
    "scaler": dict[str, float],
    "used_cpu_part": bool,
    "processes": COUNT,
    "sequences": COUNT,
    "seconds": float,
    "evaluations_without_gain": COUNT,
    "best_step": int | None,
    "best_loss": float | None,
    "wandb_id": str | None,
}
FIELDS_OF_DATA = {"name": str, "fingerprint": str}


def require_resumable(checkpoint: Checkpoint) -> None:
    """Raise UserError where meta.json lacks what a run needs to go on."""
    where, advice = f"{checkpoint.folder}/meta.json", "it cannot be resumed"
    check_fields(checkpoint.meta, FIELDS, where, advice=advice)
    check_fields(checkpoint.meta["data"], FIELDS_OF_DATA, f"{where}: data", advice=advice)


def restore_scaler(scaler: torch.amp.GradScaler, state: Mapping[str, float]) -> None:
    """Put back the fp16 loss scale, if then and now are fp16. Raises UserError for a damaged one."""
    if scaler.is_enabled() and state:
        if state.keys() != scaler.state_dict().keys():
            raise UserError(f"the checkpoint's loss scaler is damaged: {str(state)[:200]}")
        scaler.load_state_dict(dict(state))


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, e.g. "exp_avg/final_norm.weight"."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{key}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


@torch.no_grad()
def restore_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` took. Raises UserError where it does not belong to this model."""
    parameters = dict(model.named_parameters())
    names: dict[Tensor, str] = {parameter: name for name, parameter in parameters.items()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in order:
            raise UserError(f"the optimizer's state holds {key}, and the model has no such parameter")
        like = parameters[name] if value.dim() > 0 else value
        if value.shape != like.shape:
            raise UserError(f"the optimizer's state holds {key} in another shape than the parameter's")
        restored = torch.empty_like(like)
        copy_into(restored, value)
        state.setdefault(order.index(name), {})[kind] = restored
    if state and len(state) != len(order):
        raise UserError(f"the optimizer's state covers {len(state)} of the model's {len(order)} parameters")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
