"""What to compute with: device, precision, compiler, threads and kernels, chosen once at the start.

Every choice can be overridden by a setting, and is kept in the checkpoint for a run that goes on.
"""

import importlib.util
import os
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import torch

from engine.errors import UserError
from engine.json_files import dataclass_from
from engine.kernels import ATTENTION, keep_freed_memory
from engine.system import available_cores

# Dense bf16 or fp16 peaks with fp32 accumulation, FLOP/s, from the makers' data sheets. The first card counts
# whose words all occur in the device's name.
PEAKS = {
    2500e12: ("GB300", "GB200"),
    2250e12: ("B300", "B200"),
    835e12: ("H200 NVL", "H100 NVL"),
    756e12: ("H100 PCIe", "H800 PCIe"),
    989e12: ("H200", "GH200", "H100", "H800"),
    148e12: ("H20",),
    312e12: ("A100", "A800"),
    362e12: ("L40S",),
    181e12: ("L40",),
    121e12: ("L4",),
    70e12: ("A10G",),
    125e12: ("A10", "V100 SXM2"),
    112e12: ("V100 PCIE",),
    155e12: ("RTX A6000",),
    209e12: ("RTX 5090",),
    165e12: ("RTX 4090",),
    71e12: ("RTX 3090",),
    65e12: ("T4",),
    1307e12: ("MI325X", "MI300X"),
    192e12: ("MI250X",),  # each of its two dies is a device
}
OTHER_CARDS = {"MIG", "Laptop", "Max", "D", "/"}  # words in the names of variants that reach less


Positive = Annotated[int, range(1, 2**63)]


@dataclass
class Compute:
    """The choices of a run. `device` is a kind (cuda, cpu, …), without an index."""

    device: str
    dtype: Annotated[str, ("float32", "bfloat16", "float16", "float64")]
    compile: bool
    threads: Positive
    matmul_precision: Annotated[str, ("highest", "high", "medium")] = "highest"
    attention_kernel: Annotated[str, tuple(ATTENTION)] = "sdpa"
    batch_size: Positive | None = None  # what fits into the memory, where the setting does not
    evaluation_batch: Positive | None = None  # sequences that an evaluation takes at a time

    @classmethod
    def from_dict(cls, recorded: dict[str, Any]) -> "Compute":
        """What a checkpoint recorded. Raises UserError where that is damaged."""
        known = {field.name: recorded[field.name] for field in fields(cls) if field.name in recorded}
        return dataclass_from(cls, known, "the checkpoint's automatic choices")

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint records."""
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
        return torch.autocast(self.device, dtype=self._half(), enabled=self._half() is not None)

    def _half(self) -> torch.dtype | None:
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.dtype)

    def gathered_dtype(self) -> torch.dtype | None:
        """The dtype in which GPUs gather the blocks of a sharded model; None: that of the weights.

        Autocast rounds the weights of matrix products in any case; rounded first they halve the traffic.
        """
        return None if self.device == "cpu" else self._half()

    def weights_dtype(self) -> torch.dtype:
        """The type of the weights: float32, unless float64 is asked for."""
        return torch.float64 if self.dtype == "float64" else torch.float32


def find_device(wanted: str) -> torch.device:
    """The device that a setting names, for "auto" the best. Raises UserError where it is absent."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
        "cpu": True,
    }
    if wanted in ("auto", "cuda") and not available["cuda"]:
        check_driver()
    if wanted == "auto":
        wanted = next(kind for kind, there in available.items() if there)
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
    device = torch.device(wanted)
    if kind == "cuda" and torch.version.hip is None:
        check_architecture(device)
    return device


def check_driver() -> None:
    """Raise UserError if PyTorch says that the driver is too old."""
    if torch.version.cuda is None:
        return
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        if "too old" in str(error):
            raise UserError(
                f"the NVIDIA driver is too old for this PyTorch (CUDA {torch.version.cuda}); "
                "update the driver, install a PyTorch for an older CUDA, or add --device=cpu"
            ) from error


def check_architecture(device: torch.device) -> None:
    """Raise UserError if this PyTorch has no kernels for the GPU's compute capability.

    Machine code (sm_80) runs on later minor versions of its major, PTX (compute_90) on all later versions.
    """
    major, minor = torch.cuda.get_device_capability(device)
    built_for = torch.cuda.get_arch_list()
    for name in built_for:
        kind, _, number = name.partition("_")
        its_major, its_minor = divmod(int(number.rstrip("af")), 10)
        if (its_major, its_minor) <= (major, minor) and (kind == "compute" or its_major == major):
            return
    raise UserError(
        f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and this PyTorch has "
        f"kernels for {', '.join(built_for) or 'none'}; install a PyTorch that has them, or add --device=cpu"
    )


def make_current(device: torch.device) -> torch.device:
    """Make a GPU PyTorch's current device, for streams, events and memory; returns it with its index."""
    if device.type != "cuda":
        return device
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def choose_dtype(wanted: str, device: torch.device) -> str:
    """float32 on CPUs; on GPUs bf16 where supported, else fp16. Raises UserError."""
    if wanted in ("float16", "float64") and device.type == "mps":
        raise UserError(f"{wanted} is not supported on mps; use --dtype=float32")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device.type == "xpu" else "float32"


def choose_compile(wanted: bool | str, device: torch.device) -> tuple[bool, str]:
    """Whether to use torch.compile, and the reason if not."""
    if wanted != "auto":
        return bool(wanted), "as set"
    if device.type != "cuda":
        why = "compiling takes longer than it saves in a short run; --compile=True turns it on"
        return False, f"on {device.type} {why}"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return False, "the GPU is older than what Triton supports"
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed"
    return True, ""


def choose_threads(wanted: int | None, processes_here: int) -> int:
    """CPU threads of one process: its share of the available cores."""
    if wanted is None and processes_here == 1:
        return torch.get_num_threads()
    return wanted or max(1, available_cores() // processes_here)


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """The data sheet's half-precision FLOP/s of a known GPU; None for others."""
    if device.type != "cuda" or dtype not in ("bfloat16", "float16"):
        return None
    words = set(torch.cuda.get_device_name(device).replace("-", " ").split())
    if words & OTHER_CARDS:
        return None
    cards = ((peak, card) for peak, cards in PEAKS.items() for card in cards)
    return next((peak for peak, card in cards if words.issuperset(card.split())), None)


def device_name(device: torch.device) -> str:
    """A readable name: the GPU's, or the CPU's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else device.type
