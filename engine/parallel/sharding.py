"""A model shared by processes: DDP keeps it whole in each, FSDP2 gives each a shard of every parameter.

    torchrun --standalone --nproc_per_node=8 train.py configs/gpt2.py --parallel=fsdp

Under FSDP (Zhao et al., 2023; the idea is ZeRO's, Rajbhandari et al., 2020) parameters, gradients and
optimizer state are DTensors, cut along their first dimension: rank r holds the r-th of N chunks of rows. A
block's parameters are gathered just before they are used and freed after, its gradients summed into shards.
Everything here takes plain tensors too, so the rest of the program does not ask which it has. DTensor, whose
import takes half a second, is imported only where it is needed.
"""

import contextlib
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
    """Whether the model is to be sharded; one process holds it whole in any case."""
    return settings.parallel == "fsdp" and world.size > 1


def sharded_model(
    gathered: torch.dtype | None, world: World, config: GPTConfig, device: torch.device, dtype: torch.dtype
) -> GPT:
    """A GPT of which this process has memory for its shards, with nothing meaningful in them.

    Blocks are gathered in the type `gathered`, None: in `dtype`. Gradients are summed in `dtype` in any case.
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
    """Whether the model is one of `sharded_model`, whose forward passes are the work of all processes."""
    return hasattr(model, "set_requires_gradient_sync")


def is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether each process holds a shard of the tensor."""
    return hasattr(tensor, "placements")


def local_tensor(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its rows of a DTensor (the same memory), or the tensor itself."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a DTensor, gathered from all processes, which all must ask for it; others as they are."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def copy_into(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, the same on every process, into a tensor of which each may hold a shard."""
    if is_dtensor(target):
        chunks = value.chunk(target.device_mesh.size())
        rank = target.device_mesh.get_local_rank()
        if rank < len(chunks):
            target.to_local().copy_(chunks[rank])
    else:
        target.copy_(value)


def recompute_blocks(model: GPT) -> None:
    """In training, keep only the blocks' inputs for the backward pass, and compute the rest again there.

    The result is the same, since the dropout is drawn again from the same state. Chen et al., 2016.
    """
    for block in model.blocks:
        block.forward = _recomputed_in_training(block, block.forward)


def _recomputed_in_training(block: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def recomputed(*inputs: Any) -> Tensor:
        if block.training:
            return checkpoint(forward, *inputs, use_reentrant=False)
        return forward(*inputs)

    return recomputed


def compile_blocks(model: GPT) -> GPT:
    """Compile each block for training, since gathering happens between them; returns the model."""
    for block in model.blocks:
        block.forward = _compiled_in_training(block, block.forward)
    return model


def _compiled_in_training(block: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled = torch.compile(forward, dynamic=False)

    def compiled_in_training(*inputs: Any) -> Tensor:
        return compiled(*inputs) if block.training else forward(*inputs)

    return compiled_in_training


@contextlib.contextmanager
def gradients_summed(model: nn.Module, forward: Any, now: bool) -> Iterator[None]:
    """Whether backward passes in this context sum the gradients over the processes, or leave that for later.

    `forward` is the model as it is called: itself, compiled, or under DDP.
    """
    if is_sharded(model):
        model.set_requires_gradient_sync(now)  # pyright: ignore[reportCallIssue]
        yield
    elif now or not hasattr(forward, "no_sync"):
        yield
    else:
        with forward.no_sync():
            yield
