"""How much memory training takes, and how much a machine has.

A training step is made once with fake tensors (PyTorch's `FakeTensorMode`): the real operations run for
shapes and types alone, without numbers, memory or noticeable time, and the bytes of the tensors that are
alive are added up. So a changed model is measured as it is. Written down instead of measured are

    GPUs        whose fused attention keeps no scores: query, key, value, output and a number for each row,
                which is what the CPU's keeps without dropout
    FSDP        a process holds its share of weights, gradients and optimizer state, and whole what it works
                on: what lies outside the blocks, a block and the next one, and their gradients
    the heap    of a CPU process, which holds more than what is in use: glibc before 2.38 gives no hole to an
                aligned request of the same size, and PyTorch's are aligned. That was 14 to 30% of what is in
                use in the four cases measured with glibc 2.36.

torch.compile saves less than this, so under it the figure is a bound.
"""

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from engine import kernels
from engine.device import Compute
from engine.parallel.sharding import recompute_blocks, uses_fsdp
from engine.parallel.world import ALONE, World, share_of_step
from engine.settings import TrainSettings
from engine.training.optimizer import make_optimizer
from model import GPT, GPTConfig

HEAP_UNUSED = 0.2  # on CPUs, as a share of what is in use
FITS = 0.9  # share of the free memory that a prediction may fill
EVALUATION_TOKENS = 4096  # about as many are evaluated at a time, or a batch if that is more
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at its peak, by what they are for."""

    weights: int
    optimizer: int
    gradients_and_activations: int
    unused_heap: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = [f"{name.replace('_', ' ')} {gigabytes(size)}" for name, size in asdict(self).items() if size]
        return f"{gigabytes(self.total)} ({', '.join(parts)})"


def gigabytes(size: float) -> str:
    """Bytes as a person reads them: "1.25 GB", "80 MB"."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


# ------------------------------------------------------------------------------------------------------------
# counting on fake tensors


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while this mode is on: alive now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._counted:
            self._counted.add(key)
            weakref.finalize(storage, self._forget, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        self._counted.remove(key)
        self.now -= size


class AttentionWithoutDropout(TorchFunctionMode):
    """Leaves dropout out of `scaled_dot_product_attention`, since on a CPU it takes the fused kernel away."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            query, key, value, mask, _, causal = args
            return function(query, key, value, mask, 0.0, causal)
        return function(*args, **(kwargs or {}))


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(parameter.nbytes for parameter in module.parameters())


@dataclass(frozen=True)
class TrainingMemory:
    """Counts what a process takes that trains a model of this shape, with these settings and compute."""

    config: GPTConfig
    settings: TrainSettings
    compute: Compute
    world: World = ALONE

    def fit(self, wanted: int, available: int | None) -> tuple[int, Memory]:
        """The batch size `wanted`, or the first of its halves that fits (or 1), and what it takes."""
        size = wanted
        while True:
            memory = self.predict(size)
            if size == 1 or available is None or memory.total <= FITS * available:
                return size, memory
            size //= 2

    def predict(self, batch_size: int) -> Memory:
        """What the process takes at its peak with this batch size."""
        micro_batch, micro_steps = share_of_step(self.settings.sequences_per_step(), batch_size, self.world)
        weights, gradients, optimizer, update = self.state_bytes()
        update //= self.world.size  # Muon's work is shared out
        at_work = self.pass_bytes(micro_batch, first=micro_steps == 1)
        if uses_fsdp(self.settings, self.world):
            size, whole = self.world.size, gradients
            weights, gradients, optimizer = -(-weights // size), -(-gradients // size), -(-optimizer // size)
            at_work += self.gathered_bytes()
            at_work += whole if micro_steps > 1 else gradients  # they are summed and sliced once a step
        at_peak = max(at_work, gradients + update)
        heap = HEAP_UNUSED * (weights + optimizer + at_peak) if self.compute.device == "cpu" else 0
        return Memory(weights, optimizer, at_peak, int(heap))

    def evaluation_batch(self, batch_size: int, memory: Memory) -> int:
        """Sequences that an evaluation takes at a time: `EVALUATION_TOKENS`, or a batch if that is more.

        Fewer, down to a batch, where they would take more than the training step that `memory` describes.
        """
        size = EVALUATION_TOKENS // self.config.block_size
        room = memory.gradients_and_activations - memory.weights  # DDP's gradients stay
        while size > batch_size and self.evaluation_bytes(size) > room:
            size //= 2
        return max(size, batch_size)

    def state_bytes(self) -> tuple[int, int, int, int]:
        """Bytes of weights, gradients and optimizer state, and the most that an update makes for a while."""
        with self.fake_model() as (model, live):
            weights = live.now
            optimizer = make_optimizer(model, self.settings)
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            gradients = live.now - weights
            live.peak = live.now
            optimizer.step()  # the first one makes the state
            return weights, gradients, live.now - gradients - weights, live.peak - live.now

    def saved_bytes(self, sequences: int) -> int:
        """What a forward pass keeps for its backward pass, copies of weights in half precision included."""
        with self.fake_model() as (model, live):
            before = live.now
            loss = self.loss(model, sequences)
            return live.now - before - loss.nbytes

    def pass_bytes(self, sequences: int, first: bool) -> int:
        """The most that a forward and backward pass takes beside the weights; `first`: of a step.

        Gradients are there before where another micro-batch made them, or DDP its buckets. Under FSDP they
        are left out: each leaves as it comes.
        """
        with self.fake_model() as (model, live):
            for parameter in model.parameters():
                if uses_fsdp(self.settings, self.world):
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)
                elif self.world.size > 1 or not first:
                    parameter.grad = torch.zeros_like(parameter)
            live.peak = live.now
            self.loss(model, sequences).backward()
            return live.peak - bytes_of(model)

    def evaluation_bytes(self, sequences: int) -> int:
        """The most that an evaluation of so many sequences at a time takes beside the weights."""
        with self.fake_model() as (model, live), torch.no_grad():
            self.loss(model.eval(), sequences)
            return live.peak - bytes_of(model)

    def gathered_bytes(self) -> int:
        """What FSDP gathers whole: weights outside the blocks, two blocks, and the gradients of these two.

        Blocks that arrive in half precision need no copy in it, which `pass_bytes` has counted.
        """
        with self.fake_model() as (model, _):
            blocks, one = bytes_of(model.blocks), bytes_of(model.blocks[0])
            outside = bytes_of(model) - blocks
        if self.compute.gathered_dtype() is None:
            return outside + 2 * one + 2 * one
        return outside + one + 2 * one - blocks // 2

    def loss(self, model: GPT, sequences: int) -> Tensor:
        """The loss of so many sequences, in the precision that training has."""
        ids = torch.zeros(sequences, self.config.block_size, dtype=torch.int64)
        with replace(self.compute, device="cpu").autocast():
            return model(ids, ids)

    @contextlib.contextmanager
    def fake_model(self) -> Iterator[tuple[GPT, LiveBytes]]:
        """A model of fake tensors as training makes it, all on the CPU, and the count of what is alive."""
        attention = contextlib.nullcontext() if self.compute.device == "cpu" else AttentionWithoutDropout()
        with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live, attention:
            usual = torch.get_default_dtype()
            torch.set_default_dtype(self.compute.weights_dtype())  # fake parameters cannot be converted
            try:
                model = GPT(self.config)
            finally:
                torch.set_default_dtype(usual)
            if self.compute.device == "cpu":
                kernels.install(model, self.compute.attention_kernel)
            else:  # what `install` does there, where neither attention nor dropout is replaced
                model.loss = kernels.chunked_sum_of_losses
            if self.settings.recompute:
                recompute_blocks(model)
            yield model, live


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


# ------------------------------------------------------------------------------------------------------------
# what a machine has


def available_bytes(device: torch.device, processes_here: int = 1) -> int | None:
    """Bytes that one process may still take: free on its GPU, or its share of the free main memory.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    if device.type != "cpu":
        return None
    free = [*_free_in_cgroups(), *_free_in_the_system()]
    return min(free) // processes_here if free else None


def _free_in_the_system() -> Iterator[int]:
    """What Linux calls available: free, or filled with copies of files that it can drop."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _free_in_cgroups(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What each control group (version 2) that this process is in leaves of its limit."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    group = root / next((line[4:] for line in lines if line.startswith("0::/")), "")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            return
        try:
            limit = (folder / "memory.max").read_text().strip()
            used = int((folder / "memory.current").read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except OSError:  # the root has no limit, and not every system has the files
            continue
        if limit != "max":
            yield int(limit) - used + int(statistics.get("inactive_file", 0))
