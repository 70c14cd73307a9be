"""The optimizers and their learning rate: AdamW for everything, or Muon for the matrices of the blocks."""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from engine.config import TrainSettings
from engine.distributed import ALONE, World
from engine.parallel import is_slice, local, on_owners, whole


def make_optimizer(model: nn.Module, settings: TrainSettings, world: World = ALONE) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019), its decay on matrices only; one fused kernel where PyTorch has it.

    With `optimizer="muon"` the matrices of the blocks go to Muon, and the rest to the same AdamW.
    """
    named = dict(model.named_parameters())
    by_muon = [
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
        group["peak"] = settings.learning_rate
    fused = next(iter(named.values())).device.type in ("cpu", "cuda", "xpu")
    betas = (settings.beta1, settings.beta2)
    if not by_muon:
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=fused)
    return MuonWithAdamW(by_muon, groups, settings, betas, fused, world)


def _is_block_matrix(name: str, value: Tensor) -> bool:
    return name.startswith("blocks.") and value.dim() == 2


class MuonWithAdamW(torch.optim.AdamW):
    """Muon (Jordan et al., 2024) for its first group of parameters, AdamW for the others.

    Muon's update is the momentum's nearest orthogonal matrix, so all its directions count alike. A fused
    query-key-value matrix is three matrices to it. Its decay is that of AdamW, on all matrices.
    """

    def __init__(
        self,
        matrices: list[Tensor],
        groups: list[dict],
        settings: TrainSettings,
        betas: tuple[float, float],
        fused: bool,
        world: World,
    ) -> None:
        muon = {
            "params": matrices,
            "weight_decay": settings.weight_decay,
            "peak": settings.muon_learning_rate,
        }
        super().__init__([muon, *groups], lr=settings.learning_rate, betas=betas, fused=fused)
        self._world = world
        self._step_supports_amp_scaling = False  # in fp16 the loss scaler itself skips steps that overflow

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters."""
        muon, *others = self.param_groups
        apply_muon(muon, self.state, self._world)
        self.param_groups = others
        try:
            super().step()
        finally:
            self.param_groups = [muon, *others]


def apply_muon(
    group: dict, state: dict[Tensor, dict[str, Tensor]], world: World = ALONE, momentum: float = 0.95
) -> None:
    """One Muon update of a group's matrices, each of them orthogonalised by one of the processes.

    Everything but that goes element by element, so under FSDP a process works on its rows alone.
    """
    matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
    if not matrices:
        return
    for matrix in matrices:
        if not state[
            matrix
        ]:  # AdamW, whose class this is, wants to find a count in every state that it loads
            state[matrix].update(step=torch.zeros(()), momentum=torch.zeros_like(matrix))
        state[matrix]["step"] += 1
    weights = [local(matrix) for matrix in matrices]
    gradients = [local(matrix.grad) for matrix in matrices]
    averages = [local(state[matrix]["momentum"]) for matrix in matrices]
    torch._foreach_lerp_(averages, gradients, 1 - momentum)
    directions = torch._foreach_lerp(gradients, averages, momentum)  # Nesterov's look ahead
    shapes = [matrix.shape for matrix in matrices]
    updates = on_owners(muon_updates, directions, shapes, is_slice(matrices[0]), world)
    torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(weights, updates, alpha=-group["lr"])


def muon_updates(directions: list[Tensor]) -> list[Tensor]:
    """What Muon subtracts at a learning rate of 1; matrices of one shape are orthogonalised together."""
    updates = [torch.empty_like(direction) for direction in directions]
    by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for direction, update in zip(directions, updates, strict=True):
        for part, result in zip(split_qkv(direction), split_qkv(update), strict=True):
            by_shape[part.shape].append((part, result))
    for (rows, columns), pairs in by_shape.items():
        parts, results = ([pair[side] for pair in pairs] for side in (0, 1))
        orthogonal = orthogonalise(torch.stack(parts)) * math.sqrt(max(1.0, rows / columns))
        torch._foreach_copy_(results, list(orthogonal))
    return updates


def split_qkv(matrix: Tensor) -> Iterable[Tensor]:
    """The three square matrices in a fused query-key-value matrix (3C, C); others as they are."""
    rows, columns = matrix.shape
    return matrix.split(columns) if rows == 3 * columns else [matrix]


# Odd quintics a s + b s³ + c s⁵, each the minimax approximation of 1 on the interval of singular values that
# the one before it leaves, from 0.01 … 1 on (the idea is that of Amsel et al., 2025, "Polar Express"; the
# numbers come from Remez' algorithm). After all four, singular values from 0.01 up are within 1.3% of 1.
POLYNOMIALS = (
    (8.0934, -23.6204, 17.4462),
    (3.6366, -2.7219, 0.5365),
    (2.6613, -1.9772, 0.4526),
    (1.9562, -1.3375, 0.3839),
)


def orthogonalise(matrices: Tensor) -> Tensor:
    """U Vᵀ for each matrix U S Vᵀ of a batch (N, rows, columns), to a few per cent, by products alone."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    x = orthogonalise_by_gram(x) if x.shape[-1] >= 2 * x.shape[-2] else orthogonalise_directly(x)
    return x if wide else x.mT


def orthogonalise_directly(x: Tensor) -> Tensor:
    """Newton-Schulz: x becomes p(x xᵀ) x for each polynomial p."""
    for a, b, c in POLYNOMIALS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def orthogonalise_by_gram(x: Tensor) -> Tensor:
    """The same on the small Gram matrix x xᵀ, which commutes with each p: half the work where x is wide."""
    gram = x @ x.mT
    identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    total = None
    for a, b, c in POLYNOMIALS:
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * identity
        total = factor if total is None else factor @ total
        gram = factor @ gram @ factor
    return total @ x


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Scale the gradients down to a norm of `largest` where theirs is greater; returns the norm before.

    On a GPU the product is made in any case, since asking whether it is needed would make the host wait.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters]))
    if largest > 0 and (norm.device.type != "cpu" or norm + 1e-6 > largest):
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def learning_rate_factor(step: int, settings: TrainSettings) -> float:
    """The share of its highest value that every learning rate has at the update after `step` completed ones.

    Linear warm-up; then a cosine to the lowest, or constant with a linear fall over the last `decay_share` of
    the steps. Without `decay_lr` 1 from the first step on, as in nanoGPT.
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
