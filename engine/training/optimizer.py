"""Optimizers and learning rates: AdamW for everything, or Muon for the matrices of the blocks."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from engine.parallel.sharding import full_tensor
from engine.parallel.world import ALONE, World
from engine.settings import TrainSettings
from engine.training.muon import MuonWithAdamW


def make_optimizer(model: nn.Module, settings: TrainSettings, world: World = ALONE) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019), with weight decay on matrices only, fused if PyTorch can.

    With `optimizer="muon"` Muon updates the matrices of the blocks, and AdamW the rest.
    """
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    by_muon: list[Tensor] = [
        value
        for name, value in named.items()
        if settings.optimizer == "muon" and _is_block_matrix(name, value)
    ]
    others = [value for value in named.values() if not any(value is matrix for matrix in by_muon)]
    groups = [
        {"params": [value for value in others if value.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [value for value in others if value.dim() < 2], "weight_decay": 0.0},
    ]
    for group in groups:
        group["max_lr"] = settings.learning_rate
    fused = next(iter(named.values())).device.type in ("cpu", "cuda", "xpu")
    betas = (settings.beta1, settings.beta2)
    if not by_muon:
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=fused)
    return MuonWithAdamW(by_muon, groups, settings, betas, fused, world)


def _is_block_matrix(name: str, value: Tensor) -> bool:
    return name.startswith("blocks.") and value.dim() == 2


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Scale gradients down to a total norm of at most `largest`; returns the norm before.

    A GPU scales in any case: the host would have to wait to learn whether it is needed.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
    if largest > 0 and (norm.device.type != "cpu" or norm + 1e-6 > largest):
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def learning_rate_factor(step: int, settings: TrainSettings) -> float:
    """Factor on the maximum learning rates for the update after `step` completed ones.

    Linear warm-up, then a cosine down to the minimum, or constant with a linear decay over the last
    `decay_share` of the steps. Always 1 without `decay_lr`, as in nanoGPT.
    """
    if not settings.decay_lr:
        return 1.0
    if step < settings.warmup_iters:
        return (step + 1) / (settings.warmup_iters + 1)
    lowest, end = settings.lowest_learning_rate() / settings.learning_rate, settings.decay_steps()
    if step >= end:
        return lowest
    if settings.schedule == "linear":
        progress = 1 - min(1.0, (end - step) / (settings.decay_share * end))
        return 1 + progress * (lowest - 1)
    progress = (step - settings.warmup_iters) / max(1, end - settings.warmup_iters)
    return lowest + 0.5 * (1 + math.cos(math.pi * progress)) * (1 - lowest)
