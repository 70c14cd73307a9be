"""Predict the memory that training takes, and read how much is free.

One training step runs on fake tensors (PyTorch's `FakeTensorMode`), which have shapes and types but no data,
and the bytes of all live tensors are counted. So the prediction follows any change of the model. Three
things are computed by a rule instead

    GPUs        fused attention stores no scores, only query, key, value, output and one number for each
                row: what the CPU's attention stores without dropout
    FSDP        a process holds its share of weights, gradients and optimizer state, and in full the
                parameters outside the blocks, the current block and the next, and their gradients
    the heap    a CPU process holds more than is in use: glibc before 2.38 does not reuse a free block for an
                aligned request of the same size, and PyTorch's requests are aligned. Measured with glibc
                2.36, four cases: 14 to 30% more.

With torch.compile, which stores less, the prediction is an upper bound.
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
    """Peak bytes of one process, by use."""

    weights: int
    optimizer: int
    gradients_and_activations: int
    unused_heap: int

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = [f"{name.replace('_', ' ')} {gigabytes(size)}" for name, size in asdict(self).items() if size]
        return f"{gigabytes(self.total)} ({', '.join(parts)})"


def gigabytes(size: float) -> str:
    """Bytes in readable units: "1.25 GB", "80 MB"."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


# ------------------------------------------------------------------------------------------------------------
# counting on fake tensors


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made while this mode is on: those alive now, and the peak."""

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


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(parameter.nbytes for parameter in module.parameters())


@dataclass(frozen=True)
class TrainingMemory:
    """Predicts the memory of one process for a model shape, settings and compute."""

    config: GPTConfig
    settings: TrainSettings
    compute: Compute
    world: World = ALONE

    def fit(self, wanted: int, available: int | None) -> tuple[int, Memory]:
        """The batch size `wanted`, halved until it fits (at least 1), and its memory."""
        size = wanted
        while True:
            memory = self.predict(size)
            if size == 1 or available is None or memory.total <= FITS * available:
                return size, memory
            size //= 2

    def predict(self, batch_size: int) -> Memory:
        """Peak memory of the process with this batch size."""
        micro_batch, micro_steps = share_of_step(self.settings.sequences_per_step(), batch_size, self.world)
        weights, gradients, optimizer, update = self.state_bytes()
        update //= self.world.size  # Muon's work is shared out
        pass_peak = self.pass_bytes(micro_batch, first=micro_steps == 1)
        if uses_fsdp(self.settings, self.world):
            size, unsharded_gradients = self.world.size, gradients
            weights, gradients, optimizer = -(-weights // size), -(-gradients // size), -(-optimizer // size)
            pass_peak += self.gathered_bytes()
            # Gradients are summed in full and sharded once a step.
            pass_peak += unsharded_gradients if micro_steps > 1 else gradients
        peak = max(pass_peak, gradients + update)
        heap = HEAP_UNUSED * (weights + optimizer + peak) if self.compute.device == "cpu" else 0
        return Memory(weights, optimizer, peak, int(heap))

    def evaluation_batch(self, batch_size: int, memory: Memory) -> int:
        """Sequences per evaluation batch: `EVALUATION_TOKENS` worth of them, at least a training batch.

        Fewer, down to a training batch, if they would need more than the training step in `memory`.
        """
        size = EVALUATION_TOKENS // self.config.block_size
        room = memory.gradients_and_activations - memory.weights  # DDP's gradients stay
        while size > batch_size and self.evaluation_bytes(size) > room:
            size //= 2
        return max(size, batch_size)

    def state_bytes(self) -> tuple[int, int, int, int]:
        """Bytes of weights, gradients and optimizer state, and the peak of an update's temporary tensors."""
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
        """Bytes that a forward pass stores for the backward pass, with half-precision copies of weights."""
        with self.fake_model() as (model, live):
            before = live.now
            loss = self.loss(model, sequences)
            return live.now - before - loss.nbytes

    def pass_bytes(self, sequences: int, first: bool) -> int:
        """Peak bytes of a forward and backward pass beside the weights; `first`: the step's first one.

        Gradients exist already if an earlier micro-batch made them, or DDP its buckets. Under FSDP they are
        not counted: each is reduced as soon as it is computed.
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
        """Peak bytes of an evaluation of this many sequences at a time, beside the weights."""
        with self.fake_model() as (model, live), torch.no_grad():
            self.loss(model.eval(), sequences)
            return live.peak - bytes_of(model)

    def gathered_bytes(self) -> int:
        """Bytes that FSDP gathers: weights outside the blocks, and two blocks with their gradients.

        Blocks gathered in half precision need no half-precision copy, which `pass_bytes` has counted.
        """
        with self.fake_model() as (model, _):
            blocks, one = bytes_of(model.blocks), bytes_of(model.blocks[0])
            outside = bytes_of(model) - blocks
        if self.compute.gathered_dtype() is None:
            return outside + 2 * one + 2 * one
        return outside + one + 2 * one - blocks // 2

    def loss(self, model: GPT, sequences: int) -> Tensor:
        """The loss of this many sequences, in training's precision."""
        ids = torch.zeros(sequences, self.config.block_size, dtype=torch.int64)
        with replace(self.compute, device="cpu").autocast():
            return model(ids, ids)

    @contextlib.contextmanager
    def fake_model(self) -> Iterator[tuple[GPT, LiveBytes]]:
        """Yields a model of fake tensors on the CPU, set up as in training, and the count of live bytes."""
        with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
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
                for layer in kernels.modules_with(model, "attend"):  # dropout would rule out the fused kernel
                    layer.attention_dropout = 0.0
            if self.settings.recompute:
                recompute_blocks(model)
            yield model, live


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


# ------------------------------------------------------------------------------------------------------------
# free memory


def available_bytes(device: torch.device, processes_here: int = 1) -> int | None:
    """Bytes free for one process: on its GPU, or its share of main memory. None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    if device.type != "cpu":
        return None
    free = [*_free_in_cgroups(), *_free_in_the_system()]
    return min(free) // processes_here if free else None


def _free_in_the_system() -> Iterator[int]:
    """MemAvailable of Linux: free memory and droppable caches."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _free_in_cgroups(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """The bytes left within the limit of each control group (version 2) of this process."""
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
