"""Weights laid out for generation on a CPU.

A new token multiplies every matrix of the model by one vector, so the time goes into reading the weights, and
the default product of a vector reads them at a third of the memory's rate. Two layouts do better: in fp32 the
transposed matrix; in bf16 oneDNN's blocks, into which it otherwise reorders a matrix anew for every token.
"""

import platform

import torch
from torch import Tensor, nn

from model import GPT


def pack_for_generation(model: GPT) -> GPT:
    """Replace the linear layers of a model on a CPU by packed ones, for inference only; returns the model.

    The results are those of the plain layers to rounding. Other devices and precisions keep their layers.
    """
    weight = model.head.weight
    kind = {torch.float32: TransposedLinear, torch.bfloat16: BlockedLinear}.get(weight.dtype)
    if weight.device.type != "cpu" or kind is None or (kind is BlockedLinear and not can_block()):
        return model
    for block in model.blocks:
        for owner, name in (
            (block.attention, "qkv"),
            (block.attention, "out"),
            (block.mlp, "up"),
            (block.mlp, "down"),
        ):
            setattr(owner, name, kind(getattr(owner, name)))
    model.head = kind(model.head)
    return model


def can_block() -> bool:
    """Whether this PyTorch and processor have oneDNN's blocked products in bf16."""
    operators = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in operators)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class TransposedLinear(nn.Module):
    """x Wᵀ + b from the stored transpose of W."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("transposed", linear.weight.detach().t().contiguous())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        y = x @ self.transposed
        return y if self.bias is None else y + self.bias


class BlockedLinear(nn.Module):
    """x Wᵀ + b from W in oneDNN's own order, chosen for products of one row; others work as well."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.blocks, self.bias, "none", [], "")
