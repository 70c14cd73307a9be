"""The same arithmetic, faster: only time and memory change. One exception rounds: `quantize`.

    kernels.install(model)                     attention, dropout and the loss in faster forms
    kernels.install(model, inference=True)     packed weights, too: for generating on a CPU
    kernels.quantize(model)                    weights rounded to int8; call it before `install`

What each trick gains is in docs/speed.md.
"""

import contextlib
import ctypes
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import UserError
from model import ACTIVATIONS, GPT, scaled_dot_product_attention, sum_of_losses

LONGEST_FOR_MATMUL = 256  # positions up to which attention written out is the faster form on most CPUs
LARGEST_LOGITS = 2**28  # beyond 1 GiB in fp32 the logits of a micro-batch would take most of the memory
LARGEST_CHUNK = 2**26  # logits that are held at a time then
LARGEST_ERROR = 1e-6  # of a faster float32 product, relative to float64; the ordinary one has about 3e-7
SMALLEST_TO_TIME = 2**15  # activations of a layer below which kernels differ by less than the clock can tell
SMALLEST_SCALE = 1e-30  # in place of 0 for a row of zeros
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's <malloc.h>


def install(model: GPT, attention: str | None = None, inference: bool = False) -> GPT:
    """Replace the plain functions and layers of a model by faster ones of the same result; returns the model.

    `attention` is a name in ATTENTION; None: "matmul" on a CPU for short texts, otherwise "sdpa". With
    `inference` a model on a CPU can no longer be trained.
    """
    weight = next(model.parameters())
    on_cpu = weight.device.type == "cpu"
    if attention is None:
        short = model.config.block_size <= LONGEST_FOR_MATMUL
        attention = "matmul" if on_cpu and short else "sdpa"
    model.loss = chunked_sum_of_losses
    attend = ATTENTION[attention]
    if on_cpu:
        keep_freed_memory()
        replace_layers(model, nn.Dropout, lambda layer: CPUDropout(layer.p))
    if on_cpu and not inference:
        replace_activation(model, ACTIVATIONS["relu2"], SquaredReLU.apply)
    if on_cpu and inference:
        if is_quantized(model) or weight.dtype in (torch.bfloat16, torch.float16):
            attend = attend_in_dtype_of_cache
        packed = packed_layer(weight.dtype)
        if packed is not None:
            replace_layers(model, nn.Linear, packed)
        leave_out_dropout(model)
        if weight.dtype == torch.float32:
            replace_activation(model, F.gelu, gelu)
    for layer in modules_with(model, "attend"):
        layer.attend = attend
    return model


def modules_with(model: nn.Module, name: str) -> list[Any]:
    """The modules that have a replaceable function of this name, such as `attend`."""
    return [module for module in model.modules() if hasattr(module, name)]


def replace_activation(model: nn.Module, plain: Callable, faster: Callable) -> None:
    """Replace an activation of model.py wherever it is used."""
    for layer in modules_with(model, "activation"):
        layer.activation = faster if layer.activation is plain else layer.activation


def replace_layers(model: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    """Replace each layer of exactly this class by `make(layer)`."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is kind:
                setattr(parent, name, make(child).train(child.training))


def leave_out_dropout(model: nn.Module) -> None:
    """Replace dropout by a function that does nothing: a module's call costs more."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                delattr(parent, name)
                setattr(parent, name, lambda x: x)


def keep_freed_memory() -> None:
    """Let the C library keep the memory that tensors give back, instead of returning it to the system.

    glibc maps each tensor above 128 KiB anew: 7,000 page faults and a third of the time of a small step.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such library, no such function
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


# ------------------------------------------------------------------------------------------------------------
# attention and dropout


def attend_by_matmul(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """`scaled_dot_product_attention` as two products: fastest for short texts on a CPU."""
    B, H, T, D = query.shape
    S = key.shape[2]
    if T == 1:
        return scaled_dot_product_attention(query, key, value, mask, dropout)
    if mask is None:
        mask = causal_mask(T, query.dtype, query.device)
    else:  # one mask for each row of the batch
        mask = mask.expand(B, H, T, S).reshape(B * H, T, S)
    query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=D**-0.5)  # (B·H, T, S)
    weights = drop(scores.softmax(dim=-1), dropout)
    return torch.bmm(weights, value).unflatten(0, (B, H))


def causal_mask(T: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The additive causal mask (T, T): 0 on and below the diagonal, -inf above."""
    return torch.full((T, T), -math.inf, dtype=dtype, device=device).triu(1)


def attend_in_dtype_of_cache(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Attention in the precision of the keys and values, which `cache_dtype` chooses."""
    return scaled_dot_product_attention(query.to(key.dtype), key, value, mask, dropout).to(query.dtype)


@contextlib.contextmanager
def attention_for_decoding(device: torch.device) -> Iterator[None]:
    """Leave out cuDNN's attention, which makes a plan for each number of keys, so each token."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before and device.type != "cuda")
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


ATTENTION = {"sdpa": scaled_dot_product_attention, "matmul": attend_by_matmul}


def cache_dtype(model: GPT) -> torch.dtype:
    """The dtype of cached keys and values: the weights', unless they are rounded and `install` saw to that.

    Then it is bf16 where the processor multiplies in it (AMX), otherwise float32: without AMX attention in
    bf16 takes six times as long.
    """
    dtype = model.token_embedding.weight.dtype
    if not any(layer.attend is attend_in_dtype_of_cache for layer in modules_with(model, "attend")):
        return dtype
    return torch.bfloat16 if dtype != torch.float16 and cpu_supports("amx_tile") else torch.float32


def cpu_supports(feature: str) -> bool:
    """Whether this CPU has a feature that PyTorch knows by name: avx512_bf16, amx_tile, vnni."""
    return bool(getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)())


def gelu(x: Tensor) -> Tensor:
    """`F.gelu` in float32 as four operations, which start sooner than its own kernel (10 to 40 µs)."""
    return 0.5 * x * torch.erfc(x * -(0.5**0.5))


class SquaredReLU(torch.autograd.Function):
    """relu(x)², whose gradient 2 g relu(x) takes two operations; autograd's own takes five."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same shape."""
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """That of x."""
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)


class CPUDropout(nn.Dropout):
    """Dropout with cheaper random numbers: each draw of 64 bits gives four numbers of 16 bits."""

    def forward(self, input: Tensor) -> Tensor:
        """The same shape; in evaluation the tensor itself."""
        return drop(input, self.p) if self.training else input


def drop(x: Tensor, share: float) -> Tensor:
    """Dropout (Srivastava et al., 2014) on a CPU, with its probability rounded to 16 bits."""
    cut = round(share * 2**16)
    if x.device.type != "cpu" or not 0 < cut < 2**16:
        return F.dropout(x, share)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= cut - 2**15
    return x * (kept.to(x.dtype) * (2**16 / (2**16 - cut)))


# ------------------------------------------------------------------------------------------------------------
# the loss


def chunked_sum_of_losses(features: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """`sum_of_losses` of model.py, in chunks of rows if there are many logits."""
    vocab_size = head.weight.shape[0]
    if targets.numel() * vocab_size <= LARGEST_LOGITS:
        return sum_of_losses(features, head, targets)
    rows = max(1, LARGEST_CHUNK // vocab_size)
    flat = features.flatten(0, 1)
    return ChunkedLoss.apply(flat, head.weight, targets.flatten(), rows, torch.is_grad_enabled())


class ChunkedLoss(torch.autograd.Function):
    """The sum of cross-entropies of features (N, C) under a head (V, C), computed in chunks of rows.

    The forward pass computes the gradients too, while a chunk's logits exist; the backward pass scales them.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, head: Tensor, targets: Tensor, rows: int, trains: bool) -> Tensor:
        """The loss in nats. `targets` (N,) of -100 do not count; products run in autocast's precision."""
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
        weight, total = head.to(dtype), torch.zeros((), device=features.device, dtype=head.dtype)
        of_features, of_head = (
            torch.zeros(x.shape if trains else 0, dtype=x.dtype, device=x.device) for x in (features, head)
        )
        with torch.autocast(device, enabled=False):
            for first in range(0, len(features), rows):
                x, target = features[first : first + rows].to(dtype), targets[first : first + rows, None]
                log_probabilities = (x @ weight.T).to(head.dtype).log_softmax(dim=-1)
                counted, target = target != -100, target.clamp(min=0)
                total -= (log_probabilities.gather(1, target) * counted).sum()
                if trains:
                    gradient = log_probabilities.exp_()  # by the logits: probabilities - one-hot
                    gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
                    gradient = (gradient * counted).to(dtype)
                    of_features[first : first + rows] = gradient @ weight
                    of_head += gradient.T @ x
        ctx.save_for_backward(of_features, of_head)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Those of the features and the head."""
        of_features, of_head = ctx.saved_tensors
        return of_features * gradient, of_head * gradient, None, None, None


# ------------------------------------------------------------------------------------------------------------
# weights packed for generation


def packed_layer(dtype: torch.dtype) -> type[nn.Module] | None:
    """The linear layer that is fastest for one row on this CPU; None if there is none for this dtype.

    Decoding takes the time of reading the weights, and the default product reads them at a third of the
    memory's bandwidth. Better: in fp32 the transposed matrix, in bf16 oneDNN's blocked layout.
    """
    if dtype == torch.bfloat16 and can_block():
        return BlockedLinear
    return TransposedLinear if dtype == torch.float32 else None


def can_block() -> bool:
    """Whether this PyTorch and processor support oneDNN's blocked layout in bf16."""
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
        self.transposed = linear.weight.detach().t().contiguous()
        self.bias = None if linear.bias is None else linear.bias.detach()

    @property
    def weight(self) -> Tensor:
        """W, for code that reads `weight`."""
        return self.transposed.t()

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        y = x @ self.transposed
        return y if self.bias is None else y + self.bias


class BlockedLinear(nn.Module):
    """x Wᵀ + b from W in oneDNN's blocked layout for products of one row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        self.bias = None if linear.bias is None else linear.bias.detach()

    @property
    def weight(self) -> Tensor:
        """W, unpacked at each call, for code that reads `weight`."""
        return self.blocks.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.blocks, self.bias, "none", [], "")


# ------------------------------------------------------------------------------------------------------------
# weights in int8: half the bytes of bf16, and rounded


def can_quantize() -> bool:
    """Whether the processor has AVX-512 VNNI, as all with AMX do, and this PyTorch oneDNN's int8 products."""
    operators = ("qlinear_prepack", "qlinear_pointwise")
    return cpu_supports("vnni") and all(hasattr(torch.ops.onednn, name) for name in operators)


def require_int8(device: torch.device) -> None:
    """Raise UserError if int8 products are not to be had."""
    if device.type != "cpu" or not can_quantize():
        raise UserError("int8 needs a CPU with AVX-512 VNNI and PyTorch's products for it; leave --dtype out")


def quantize(model: GPT) -> GPT:
    """Replace the linear layers of a float32 model by Int8Linear; returns the model. Raises UserError."""
    require_int8(model.token_embedding.weight.device)
    replace_layers(model, nn.Linear, Int8Linear)
    return model


def is_quantized(model: GPT) -> bool:
    """Whether `quantize` has replaced the model's linear layers."""
    return any(isinstance(layer, Int8Linear) for layer in model.modules())


class Int8Linear(nn.Module):
    """x Wᵀ + b with W and x rounded to 8 bits, each row by its own largest value.

    That is the vector-wise rounding of Dettmers et al. (2022), without their columns of outliers. The result
    of a row of x does not depend on the other rows.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.scales = (weight.abs().amax(dim=1) / 127).clamp_(min=SMALLEST_SCALE)  # (outputs,)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.smallest = torch.tensor(SMALLEST_SCALE)
        integers = (weight / self.scales[:, None]).round_().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        # The largest value of a row becomes 127. For one row, few operations matter more than their sizes.
        scales = torch.add(self.smallest, torch.linalg.vector_norm(x, math.inf, -1, True), alpha=1 / 127)
        integers = (x / scales).round_().to(torch.int8)
        product = torch.ops.onednn.qlinear_pointwise.default
        weight = (self.packed, self.scales, self.zeros)
        # x has scale 1 and zero point 0; no bias; the result in float32 as it is; no operation after it.
        y = product(integers, 1.0, 0, *weight, None, 1.0, 0, torch.float32, "none", [], "")
        return y.mul_(scales) if self.bias is None else torch.addcmul(self.bias, y, scales)


# ------------------------------------------------------------------------------------------------------------
# which kernels are fastest here


@dataclass(frozen=True)
class Probed:
    """The kernels that `probe` found fastest, and its findings in words."""

    attention: str
    matmul_precision: str = "highest"
    remarks: tuple[str, ...] = ()


def probe(dtype: str, batch: int, length: int, heads: int, width: int, dropout: float) -> Probed:
    """Time alternative kernels on a CPU and choose the fastest that are accurate.

    Matmul precision "medium" lets oneDNN compute products: on some processors up to twice as fast at fp32's
    accuracy, on others rounded to bf16, so the measured error decides.
    """
    if dtype == "float64":
        return Probed("sdpa")
    if batch * length * width < SMALLEST_TO_TIME:
        return Probed("matmul" if length <= LONGEST_FOR_MATMUL else "sdpa")
    precision, about_products = probe_matmul(batch * length, width)
    attention, about_attention = _probe_attention(dtype, precision, batch, length, heads, width, dropout)
    return Probed(attention, precision, (about_products, about_attention))


def probe_matmul(tokens: int, width: int) -> tuple[str, str]:
    """The matmul precision setting that is fastest for an MLP's shape, and why."""
    stream = torch.Generator().manual_seed(0)
    left = torch.randn(min(tokens, 4096), width, generator=stream)
    right = torch.randn(width, 4 * width, generator=stream)
    exact = left.double() @ right.double()

    def product(precision: str) -> Tensor:
        torch.set_float32_matmul_precision(precision)
        return left @ right

    error = ((product("medium").double() - exact).norm() / exact.norm()).item()
    seconds = _race({"highest": lambda: product("highest"), "medium": lambda: product("medium")})
    ratio = seconds["medium"] / seconds["highest"]
    chosen = "medium" if error <= LARGEST_ERROR and ratio < 0.95 else "highest"
    return chosen, (
        f"matmul {chosen} (oneDNN takes {ratio:.2f} of the default's time at a relative error of {error:.1e})"
    )


def _probe_attention(
    dtype: str, precision: str, batch: int, length: int, heads: int, width: int, dropout: float
) -> tuple[str, str]:
    """The name in ATTENTION whose forward and backward pass is fastest, and why."""
    stream = torch.Generator().manual_seed(0)
    half = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    qkv = torch.randn(3, batch, heads, length, width // heads, generator=stream).to(half).requires_grad_()

    def forward_backward(attend: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(attend(*qkv, None, dropout).sum(), qkv)[0]

    torch.set_float32_matmul_precision(precision)
    seconds = _race({name: forward_backward(attend) for name, attend in ATTENTION.items()})
    chosen = min(seconds, key=seconds.__getitem__)
    ratio = seconds["matmul"] / seconds["sdpa"]
    return chosen, f"attention {chosen} (written out takes {ratio:.2f} of sdpa's time)"


def _race(runs: dict[str, Callable[[], Tensor]], rounds: int = 9) -> dict[str, float]:
    """Shortest seconds of each, in turns after a warm-up: other work disturbs a minimum least."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return {name: min(values[1:]) for name, values in times.items()}
