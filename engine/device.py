"""What to compute with: device, precision, compiler, threads and kernels, chosen once at the start.

Every choice can be overridden by a setting, is printed, kept in the checkpoint, and reused by a resumed run.
"""

import contextlib
import ctypes
import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import torch
from torch import Tensor

from engine.errors import UserError
from model import ATTENTION_KERNELS, LONGEST_FOR_MATMUL, attend_by_matmul, attend_by_sdpa

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's <malloc.h>
LARGEST_ERROR = 1e-6  # of a faster float32 product, relative to float64; the ordinary one has about 3e-7
SMALLEST_TO_TIME = 2**15  # activations of a layer below which kernels differ by less than the clock can tell

# Dense bf16 or fp16 peaks with fp32 accumulation, FLOP/s, from the makers' data sheets.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


@dataclass
class Choices:
    """What was chosen. `device` is a kind (cuda, cpu, …); which one of several follows from the process."""

    device: str
    dtype: str
    compile: bool
    threads: int
    matmul_precision: str = "highest"
    attention_kernel: str = "sdpa"
    batch_size: int | None = None  # what fits into the memory, where the setting does not

    @classmethod
    def from_dict(cls, recorded: dict[str, Any]) -> "Choices":
        """Choices out of a checkpoint. Raises UserError for what are none."""
        choices = cls(**{field.name: recorded.get(field.name) for field in fields(cls)})
        if (
            any(
                type(getattr(choices, field.name)) not in (get_args(field.type) or (field.type,))
                for field in fields(cls)
            )
            or choices.attention_kernel not in ATTENTION_KERNELS
            or choices.matmul_precision not in ("highest", "high", "medium")
            or choices.dtype not in ("float32", "bfloat16", "float16", "float64")
            or choices.threads < 1
            or (choices.batch_size is not None and choices.batch_size < 1)
        ):
            raise UserError(f"the checkpoint's automatic choices are damaged: {str(recorded)[:200]}")
        return choices

    def to_dict(self) -> dict[str, Any]:
        """Choices as a checkpoint records them."""
        return asdict(self)

    def apply(self, deterministic: bool = False) -> None:
        """Set PyTorch's global switches accordingly."""
        torch.set_num_threads(self.threads)
        if self.device == "cpu":
            keep_freed_memory()
        torch.set_float32_matmul_precision(self.matmul_precision)
        if deterministic and self.device == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    def autocast(self) -> torch.autocast:
        """A context in which matrix products run in the chosen precision."""
        half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.dtype)
        return torch.autocast(self.device, dtype=half, enabled=half is not None)

    def gathered_dtype(self) -> torch.dtype | None:
        """The type in which a GPU gathers the blocks of a sharded model; None: that of the weights.

        Autocast rounds the weights of the products in any case, so rounding them before they travel halves
        the traffic and changes little: the scales of the layer norms are rounded too.
        """
        half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.dtype)
        return None if self.device == "cpu" else half

    def weights_dtype(self) -> torch.dtype:
        """The type of the weights: float32, whatever the products run in, unless float64 is asked for."""
        return torch.float64 if self.dtype == "float64" else torch.float32


def keep_freed_memory() -> None:
    """Let the C library keep the memory that tensors give back, instead of returning it to the system.

    Without this, glibc maps each tensor above 128 KiB anew, and touching it costs a page fault for every
    4 KiB: 7,000 faults and a third of the time of a small model's step. Without glibc nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such library, no such function
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def find_device(wanted: str) -> torch.device:
    """The device that a setting names, for "auto" the best there is. Raises UserError where it is absent."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind, _, index = wanted.partition(":")
    if kind not in available or (index and not index.isdigit()):
        raise UserError(f"device {wanted!r} is not known; it can be auto, cpu, cuda, cuda:1, mps or xpu")
    if not available[kind]:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UserError(
            f"device {wanted} is not available on this machine (there is: {there}); leave --device out"
        )
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UserError(f"device {wanted} does not exist: this machine has {torch.cuda.device_count()} GPUs")
    return torch.device(wanted)


def choose_dtype(wanted: str, device: torch.device) -> str:
    """float32 on CPUs; on GPUs bf16 where the hardware computes with it, else fp16. Raises UserError."""
    if wanted == "float64" and device.type == "mps":
        raise UserError("float64 does not exist on mps; use --dtype=float32")
    if wanted == "float16" and device.type == "mps":
        raise UserError("float16 training is not supported on mps; use --dtype=float32")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device.type == "xpu" else "float32"


def choose_compile(wanted: bool | str, device: torch.device) -> tuple[bool, str]:
    """Whether to use torch.compile, and why not where it is not used."""
    if wanted != "auto":
        return bool(wanted), "as set"
    if device.type != "cuda":
        return (
            False,
            f"on {device.type} compiling takes longer than it saves in a short run; "
            f"--compile=True turns it on",
        )
    if torch.cuda.get_device_capability(device) < (7, 0):
        return False, "the GPU is older than what Triton supports"
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed"
    return True, ""


def choose_threads(wanted: int | None, processes_here: int) -> int:
    """CPU threads of one process: its share of the cores that it may use."""
    if wanted is not None:
        return wanted
    if processes_here == 1:
        return torch.get_num_threads()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // processes_here)


def probe_kernels(
    choices: Choices, batch: int, length: int, heads: int, width: int, dropout: float
) -> list[str]:
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


def _probe_matmul(choices: Choices, tokens: int, width: int) -> str:
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


def _probe_attention(
    choices: Choices, batch: int, length: int, heads: int, width: int, dropout: float
) -> str:
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


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """The data sheet's FLOP/s of a known GPU in half precision; None where it is not known."""
    if device.type != "cuda" or dtype not in ("bfloat16", "float16"):
        return None
    words = torch.cuda.get_device_name(device).replace("-", " ")
    return next(
        (peak for name, peak in PEAKS.items() if all(word in words.split() for word in name.split())), None
    )


def device_name(device: torch.device) -> str:
    """What a person calls it: the GPU's name, or the number of threads used of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
