"""A model shared by processes: DDP keeps it whole in each, FSDP2 gives each a slice of every parameter.

    torchrun --standalone --nproc_per_node=8 train.py configs/gpt2.py --parallel=fsdp

Under FSDP (Zhao et al., 2023; the idea is ZeRO's, Rajbhandari et al., 2020) parameters, gradients and
optimizer state are DTensors, cut along their first dimension: rank r holds the r-th of N chunks of rows. A
block's parameters are gathered just before they are used and freed after, its gradients summed into slices.
Everything here takes plain tensors too, so the rest of the program does not ask which it has. DTensor, whose
import takes half a second, is imported only where it is needed.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.config import TrainSettings
from engine.distributed import World
from model import GPT, GPTConfig


def shards(settings: TrainSettings, world: World) -> bool:
    """Whether the model is to be sharded; one process holds it whole in any case."""
    return settings.parallel == "fsdp" and world.size > 1


def sharded_model(
    gathered: torch.dtype | None, world: World, config: GPTConfig, device: torch.device, dtype: torch.dtype
) -> GPT:
    """A GPT of which this process has memory for its slices, with nothing meaningful in them.

    Blocks are gathered in the type `gathered`, None: in `dtype`. Gradients are summed in `dtype` in any case.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=dtype, cast_forward_inputs=False)
    model = GPT.empty(config, "meta", dtype)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)  # the embeddings, the last norm and the head, in full precision
    model.to_empty(device=device)
    if config.tied_head:
        model.head.weight = model.token_embedding.weight
    register_fsdp_forward_method(model, "generate")
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether the model is one of `sharded_model`, whose forward passes are the work of all processes."""
    return hasattr(model, "set_requires_gradient_sync")


def is_slice(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its rows of a DTensor (the same memory), or the tensor itself."""
    return tensor.to_local() if is_slice(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a DTensor, gathered from all processes, which all must ask for it; others as they are."""
    return tensor.full_tensor() if is_slice(tensor) else tensor


def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, the same on every process, into a tensor of which each may hold a slice."""
    if is_slice(target):
        chunks = value.chunk(target.device_mesh.size())
        rank = target.device_mesh.get_local_rank()
        if rank < len(chunks):
            target.to_local().copy_(chunks[rank])
    else:
        target.copy_(value)


def compile_blocks(model: GPT) -> GPT:
    """Compile each block for training, since gathering happens between them; returns the model."""
    for block in model.blocks:
        block.forward = _compiled_in_training(block, block.forward)
    return model


def _compiled_in_training(block: nn.Module, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    fast = torch.compile(plain)
    return lambda *given: (fast if block.training else plain)(*given)


def plain_blocks(model: GPT) -> GPT:
    """Undo `compile_blocks`; returns the model."""
    for block in model.blocks:
        del block.forward
    return model


@contextlib.contextmanager
def gradients_summed(model: nn.Module, forward: Any, now: bool) -> Iterator[None]:
    """Whether backward passes in this context sum the gradients over the processes, or leave that for later.

    `forward` is the model as it is called: itself, compiled, or under DDP.
    """
    if is_sharded(model):
        model.set_requires_gradient_sync(now)
        yield
    elif now or not hasattr(forward, "no_sync"):
        yield
    else:
        with forward.no_sync():
            yield


def on_owners(
    work: Callable[[list[Tensor]], list[Tensor]],
    matrices: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    sliced: bool,
    world: World,
) -> list[Tensor]:
    """`work` on whole matrices, shared out: each is worked on by one process, its owner.

    `matrices` are whole and the same on all processes, or `sliced`: the rows of them that this process holds;
    `shapes` are those of the whole ones. `work` takes a list of whole matrices and returns as many of the
    same shapes. The results come back laid out as the matrices came.
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
    """Rows of matrices of one shape, sent to the owners: the `share` whole matrices that this one owns."""
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
    """The way back: owned matrices (share, rows, columns) to this process's rows of all, padded."""
    share, rows, columns = finished.shape
    chunk = -(-rows // world.size)
    padded = nn.functional.pad(finished, (0, 0, 0, world.size * chunk - rows))
    sent = padded.view(share, world.size, chunk, columns).transpose(0, 1).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    return received.flatten(0, 1)  # (size · share, chunk, columns)


def _to_all(finished: Tensor, world: World) -> Tensor:
    """Owned matrices (share, rows, columns) to every process: (size · share, rows, columns)."""
    received = finished.new_empty(world.size * finished.shape[0], *finished.shape[1:])
    dist.all_gather_into_tensor(received, finished)
    return received
