"""The optimizer and its learning rate."""

import math

import torch
from torch import nn

from engine.config import TrainSettings


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019), its decay on matrices only; one fused kernel where PyTorch has it."""
    parameters = list(model.parameters())
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda", "xpu")
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=fused)


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of the update that follows `step` completed ones: linear warm-up, then a cosine to the lowest."""
    if not settings.decay_lr:
        return settings.learning_rate
    if step < settings.warmup_iters:
        return settings.learning_rate * (step + 1) / (settings.warmup_iters + 1)
    lowest, end = settings.lowest_learning_rate(), settings.decay_steps()
    if step >= end:
        return lowest
    progress = (step - settings.warmup_iters) / max(1, end - settings.warmup_iters)
    return lowest + 0.5 * (1 + math.cos(math.pi * progress)) * (settings.learning_rate - lowest)
