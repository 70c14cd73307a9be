"""Models trained by several processes: DDP replicates the model, FSDP2 shards every parameter.

    torchrun --standalone --nproc_per_node=8 train.py configs/gpt2.py --parallel=fsdp

Under FSDP (Zhao et al., 2023; the idea is ZeRO's, Rajbhandari et al., 2020) parameters, gradients and
optimizer state are DTensors: rank r holds the r-th of N chunks of rows. A block's parameters are gathered
just before they are used and freed after. Every function here accepts plain tensors as well. DTensor, whose
import takes half a second, is imported only where it is needed.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.parallel.world import World
from engine.settings import TrainSettings
from engine.shape import empty_model
from model import GPT, GPTConfig

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def uses_fsdp(settings: TrainSettings, world: World) -> bool:
    """Whether to shard the model; a single process never does."""
    return settings.parallel == "fsdp" and world.size > 1


def sharded_model(
    gathered: torch.dtype | None, world: World, config: GPTConfig, device: torch.device, dtype: torch.dtype
) -> GPT:
    """A GPT whose parameters are sharded over the processes, with memory allocated and not initialised.

    Blocks are gathered in the type `gathered` (None: `dtype`); gradients are summed in `dtype`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=dtype, cast_forward_inputs=False)
    model = empty_model(config, "meta", dtype)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)  # the embeddings, the last norm and the head, in full precision
    model.to_empty(device=device)
    if config.tied_head:
        model.head.weight = model.token_embedding.weight
    register_fsdp_forward_method(model, "features")  # sampling calls it, and then the head
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether all processes must call the model together."""
    return hasattr(model, "set_requires_gradient_sync")


def is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether each process holds a shard of the tensor."""
    return hasattr(tensor, "placements")


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's part of a tensor: its rows of a DTensor (a view), or the tensor itself."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a DTensor; all processes must call this. Returns plain tensors as they are."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def copy_into(target: Tensor, value: Tensor) -> None:
    """Copy a full tensor, equal on all processes, into a tensor that may be sharded."""
    if is_dtensor(target):
        chunks = value.chunk(target.device_mesh.size())
        rank = target.device_mesh.get_local_rank()
        if rank < len(chunks):
            target.to_local().copy_(chunks[rank])
    else:
        target.copy_(value)


def recompute_blocks(model: GPT) -> None:
    """In training, store only the inputs of the blocks and recompute the rest in the backward pass.

    Results do not change: dropout is drawn again from the same generator state (Chen et al., 2016).
    """
    for block in model.blocks:
        recomputed = functools.partial(checkpoint, block.forward, use_reentrant=False)
        block.forward = _in_training(block, recomputed, block.forward)


def compile_blocks(model: GPT) -> GPT:
    """Compile each block on its own, since FSDP gathers between blocks. Returns the model."""
    for block in model.blocks:
        block.forward = _in_training(block, torch.compile(block.forward, dynamic=False), block.forward)
    return model


def _in_training(block: nn.Module, special: Callable, plain: Callable) -> Callable[..., Tensor]:
    def forward(*inputs: Any) -> Tensor:
        return special(*inputs) if block.training else plain(*inputs)

    return forward


@contextlib.contextmanager
def gradients_summed(model: nn.Module, forward: Any, now: bool) -> Iterator[None]:
    """A context whose backward passes sum gradients over the processes only if `now` is set.

    `forward` is the model as training calls it: plain, compiled, or under DDP.
    """
    if is_sharded(model):
        model.set_requires_gradient_sync(now)  # pyright: ignore[reportCallIssue]
        yield
    elif now or not hasattr(forward, "no_sync"):
        yield
    else:
        with forward.no_sync():
            yield
