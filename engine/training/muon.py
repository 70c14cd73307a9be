"""Muon: momentum orthogonalised, for the matrices of the blocks."""

# pyright: reportPrivateImportUsage=false
# (torch's _foreach_ functions, one call for many tensors, have no public name)

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.kernels import cpu_supports
from engine.parallel.sharding import is_dtensor, local_tensor
from engine.parallel.world import ALONE, World
from engine.settings import TrainSettings


class MuonWithAdamW(torch.optim.AdamW):
    """Muon (Jordan et al., 2024) for the first parameter group, AdamW for the others.

    Muon's update is the orthogonal matrix nearest to the momentum, so all directions get the same step size.
    A fused query-key-value matrix is treated as three. Weight decay is that of AdamW.
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
            "max_lr": settings.muon_learning_rate,
            "momentum": settings.muon_momentum,
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


def apply_muon(group: dict, state: dict[Tensor, dict[str, Tensor]], world: World = ALONE) -> None:
    """Update a group's matrices by Muon; each matrix is orthogonalised by one process, its owner.

    All other operations are elementwise, so under FSDP each process applies them to its own rows.
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
    weights = [local_tensor(matrix) for matrix in matrices]
    gradients = [local_tensor(matrix.grad) for matrix in matrices]
    averages = [local_tensor(state[matrix]["momentum"]) for matrix in matrices]
    torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
    directions = torch._foreach_lerp(gradients, averages, group["momentum"])  # Nesterov's look ahead
    shapes = [matrix.shape for matrix in matrices]
    updates = on_owners(muon_updates, directions, shapes, is_dtensor(matrices[0]), world)
    torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(weights, updates, alpha=-group["lr"])


def muon_updates(directions: list[Tensor]) -> list[Tensor]:
    """Muon's updates at a learning rate of 1. Matrices of one shape are orthogonalised as one batch."""
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
    """Split a fused query-key-value matrix (3C, C) into its three; other matrices stay whole."""
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
    """U Vᵀ for each matrix U S Vᵀ of a batch (N, rows, columns), to a few per cent, by products only."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    if x.dtype == torch.float32 and multiplies_in_bf16(x.device):
        x = orthogonalise_directly(x.bfloat16()).float()  # the Gram form would lose small singular values
    else:
        x = orthogonalise_by_gram(x) if x.shape[-1] >= 2 * x.shape[-2] else orthogonalise_directly(x)
    return x if wide else x.mT


def multiplies_in_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are several times as fast as in float32: on GPUs and on CPUs with AMX."""
    return device.type == "cuda" or (device.type == "cpu" and cpu_supports("amx_tile"))


def orthogonalise_directly(x: Tensor) -> Tensor:
    """Newton-Schulz: x becomes p(x xᵀ) x for each polynomial p."""
    for a, b, c in POLYNOMIALS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def orthogonalise_by_gram(x: Tensor) -> Tensor:
    """The same on the small Gram matrix x xᵀ, which commutes with each p: half the work for a wide x."""
    gram = x @ x.mT
    identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    total: Tensor | None = None
    for a, b, c in POLYNOMIALS:
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * identity
        total = factor if total is None else factor @ total
        gram = factor @ gram @ factor
    assert total is not None, "there are polynomials"
    return total @ x


def on_owners(
    work: Callable[[list[Tensor]], list[Tensor]],
    matrices: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    sliced: bool,
    world: World,
) -> list[Tensor]:
    """Apply `work` to whole matrices, each on one process, its owner; every process gets the results.

    `matrices` are whole and equal on all processes, or with `sliced` only this process's rows; `shapes` are
    those of the whole matrices. `work` maps a list of whole matrices to a list of the same shapes. Results
    are laid out like `matrices`.
    """
    if world.size == 1:
        return work(list(matrices))
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index, shape in enumerate(shapes):
        by_shape[shape].append(index)
    owned: list[Tensor] = []
    shares = []
    for shape, indices in by_shape.items():
        share = -(-len(indices) // world.size)  # the owner of the i-th of this shape is rank i // share
        group = [matrices[index] for index in indices]
        mine = group[world.rank * share : (world.rank + 1) * share]
        owned += _to_owners(group, shape, share, world)[: len(mine)] if sliced else mine
        shares.append((shape, indices, share, len(mine)))
    done = iter(work(owned))
    results: list[Tensor] = list(matrices)
    for shape, indices, share, count in shares:
        finished = matrices[indices[0]].new_zeros(share, *shape)
        for number in range(count):
            finished[number] = next(done)
        back = _from_owners(finished, world) if sliced else _to_all(finished, world)
        for index, result in zip(indices, back, strict=False):
            results[index] = result[: len(matrices[index])]
    return results


def _to_owners(group: list[Tensor], shape: torch.Size, share: int, world: World) -> list[Tensor]:
    """Send rows of matrices of one shape to their owners; returns the `share` whole matrices owned here."""
    rows, columns = shape
    chunk = -(-rows // world.size)
    sent = group[0].new_zeros(world.size * share, chunk, columns)
    for number, piece in enumerate(group):
        sent[number, : len(piece)] = piece
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    received = received.view(world.size, share, chunk, columns).transpose(0, 1)
    return list(received.reshape(share, world.size * chunk, columns)[:, :rows])


def _from_owners(finished: Tensor, world: World) -> Tensor:
    """Send owned matrices (share, rows, columns) back; returns this process's rows of all, padded."""
    share, rows, columns = finished.shape
    chunk = -(-rows // world.size)
    padded = nn.functional.pad(finished, (0, 0, 0, world.size * chunk - rows))
    sent = padded.view(share, world.size, chunk, columns).transpose(0, 1).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    return received.flatten(0, 1)  # (size · share, chunk, columns)


def _to_all(finished: Tensor, world: World) -> Tensor:
    """Send owned matrices (share, rows, columns) to all; returns (size · share, rows, columns)."""
    received = finished.new_empty(world.size * finished.shape[0], *finished.shape[1:])
    dist.all_gather_into_tensor(received, finished)
    return received
