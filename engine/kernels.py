"""The same arithmetic, faster: without it only time and memory change."""

import contextlib
import ctypes
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model import ATTENTION_KERNELS, GPT, LONGEST_FOR_MATMUL, attend_by_matmul, attend_by_sdpa

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's <malloc.h>
LARGEST_ERROR = 1e-6  # of a faster float32 product, relative to float64; the ordinary one has about 3e-7
SMALLEST_TO_TIME = 2**15  # activations of a layer below which kernels differ by less than the clock can tell


def keep_freed_memory() -> None:
    """Let the C library keep the memory that tensors give back, instead of returning it to the system.

    Without this, glibc maps each tensor above 128 KiB anew, and touching it costs a page fault for every
    4 KiB: 7,000 faults and a third of the time of a small model's step. Without glibc nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such library, no such function
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def probe_kernels(choices: Any, batch: int, length: int, heads: int, width: int, dropout: float) -> list[str]:
    """On a CPU, time ways to do the same arithmetic and keep the fastest that are exact; findings in words.

    `torch.set_float32_matmul_precision("medium")` lets products go to oneDNN, which is up to twice as fast on
    some processors at fp32's accuracy and rounds to bf16 on others, so its error decides. For attention, the
    fused kernel wins for long texts and the written-out form for short ones.
    """
    if choices.device != "cpu" or choices.dtype == "float64":
        return []
    if batch * length * width < SMALLEST_TO_TIME:
        choices.attention_kernel = "matmul" if length <= LONGEST_FOR_MATMUL else "sdpa"
        return []
    return [
        _probe_matmul(choices, batch * length, width),
        _probe_attention(choices, batch, length, heads, width, dropout),
    ]


def _probe_matmul(choices: Any, tokens: int, width: int) -> str:
    stream = torch.Generator().manual_seed(0)
    left = torch.randn(min(tokens, 4096), width, generator=stream)
    right = torch.randn(width, 4 * width, generator=stream)
    exact = left.double() @ right.double()
    errors, runs = {}, {}
    for precision in ("highest", "medium"):
        runs[precision] = _with_precision(precision, lambda: left @ right)
        errors[precision] = ((runs[precision]().double() - exact).norm() / exact.norm()).item()
    seconds = _race(runs)
    choices.matmul_precision = "highest"
    if errors["medium"] <= LARGEST_ERROR and seconds["medium"] < 0.95 * seconds["highest"]:
        choices.matmul_precision = "medium"
    return (
        f"matmul {choices.matmul_precision} (oneDNN takes {seconds['medium'] / seconds['highest']:.2f} of "
        f"the default's time at a relative error of {errors['medium']:.1e})"
    )


def _probe_attention(choices: Any, batch: int, length: int, heads: int, width: int, dropout: float) -> str:
    stream = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if choices.dtype == "bfloat16" else torch.float32
    qkv = torch.randn(3, batch, heads, length, width // heads, generator=stream).to(dtype).requires_grad_()

    def forward_backward(attend: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(attend(*qkv, None, dropout).sum(), qkv)[0]

    runs = {
        kernel: _with_precision(choices.matmul_precision, forward_backward(attend))
        for kernel, attend in zip(ATTENTION_KERNELS, (attend_by_sdpa, attend_by_matmul), strict=True)
    }
    seconds = _race(runs)
    choices.attention_kernel = min(seconds, key=seconds.get)
    ratio = seconds["matmul"] / seconds["sdpa"]
    return f"attention {choices.attention_kernel} (written out takes {ratio:.2f} of sdpa's time)"


def _with_precision(precision: str, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run_with() -> Tensor:
        torch.set_float32_matmul_precision(precision)
        return run()

    return run_with


def _race(runs: dict[str, Callable[[], Tensor]], rounds: int = 9) -> dict[str, float]:
    """Shortest seconds of each, taken in turns after one round to warm up: what other work disturbs least."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return {name: min(values[1:]) for name, values in times.items()}


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
