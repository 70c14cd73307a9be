"""How much memory training will take, from the shape of the model and the settings; and what a machine has.

What a process holds, in bytes, with P parameters, n = B·T tokens in a micro-batch, w bytes of a weight (4)
and a bytes of an activation (2 under bf16 or fp16 autocast, otherwise w):

    weights, gradients   w P each; under FSDP a process holds its share, and whole what it works on
    optimizer            AdamW 2 w P; Muon w P for its matrices
    a block              n C (2 w + 14 a): the residual stream before attention and MLP, two normalised
                         copies, queries, keys and values, what attention gives, the MLP's four-fold width
                         twice; H·T scores a token where attention is written out; masks of dropout
    the loss             3 w n V: log-probabilities, their gradient and that of the logits

The bytes of a block are those that autograd saves (tests/test_memory.py counts them). The peak is the largest
of several moments: the loss and the last block's backward pass, when all activations are there; the end of
the backward pass, when all gradients are; the optimizer's step; an evaluation. torch.compile saves less than
this, so under it the figure is a bound.

On a CPU the heap of the C library holds more than what is in use: glibc before 2.38 gives no hole to an
aligned request of the same size, and PyTorch's are aligned. That was 14 to 30% of what is in use in the four
cases measured with glibc 2.36; `HEAP_UNUSED` was chosen from them and from earlier runs like them.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from engine.parallel.world import World, share_of_step
from model import LARGEST_CHUNK, LARGEST_LOGITS, GPTConfig, count_parameters

HEAP_UNUSED = 0.2  # on CPUs, as a share of what is in use
FITS = 0.9  # share of the free memory that a prediction may fill
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Setup:
    """What the memory of a process depends on beside the shape of the model."""

    micro_batch: int
    micro_steps: int = 1
    optimizer: str = "adamw"
    dtype: str = "float32"  # of the arithmetic, as in the setting of this name
    attention_kernel: str = "sdpa"
    device: str = "cpu"  # a kind
    processes: int = 1
    parallel: str | None = None  # None, "ddp" or "fsdp"
    recompute: bool = False
    evaluated: int = 0  # sequences of an evaluation's pass

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight, of its gradient, and of a number of the optimizer."""
        return 8 if self.dtype == "float64" else 4

    @property
    def activation_bytes(self) -> int:
        """Bytes of what matrix products read and write."""
        return 2 if self.dtype in ("bfloat16", "float16") else self.weight_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at one moment, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    buffers: int
    heap: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())

    def __str__(self) -> str:
        large = {name: size for name, size in asdict(self).items() if size >= 0.01 * self.total}
        return f"{gigabytes(self.total)} ({', '.join(f'{name} {gigabytes(large[name])}' for name in large)})"


def gigabytes(size: float) -> str:
    """Bytes as a person reads them: "1.25 GB", "80 MB"."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def predict(config: GPTConfig, setup: Setup) -> Memory:
    """The peak of one process: the largest of its moments, and on a CPU what its heap holds unused."""
    peak = max(moments(config, setup).values(), key=lambda memory: memory.total)
    return replace(peak, heap=heap_bytes(config, setup, peak.total)) if setup.device == "cpu" else peak


def heap_bytes(config: GPTConfig, setup: Setup, used: int) -> int:
    """What the heap of the C library holds beside what is in use.

    Each block frees the scores before its softmax, and their hole takes only smaller tensors: what the rest
    of the block keeps.
    """
    scores = score_bytes(config, setup)
    rest = block_bytes(replace(config, dropout=0.0), replace(setup, attention_kernel="sdpa"))
    blocks = 1 if setup.recompute else config.n_layer
    return int(HEAP_UNUSED * used) + blocks * max(0, scores - rest)


def moments(config: GPTConfig, setup: Setup) -> dict[str, Memory]:
    """The memory at the loss, at the end of the backward pass, and in the optimizer's step."""
    weights, gradients, optimizer = state_bytes(config, setup)
    accumulated = accumulated_bytes(config, setup)
    whole_weights, whole_gradients = gathered_bytes(config, setup)
    casts = cast_bytes(config, setup)
    block, one_at_work = block_bytes(config, setup), working_bytes(config, setup)
    kept = setup.micro_batch * config.block_size * config.n_embd * setup.weight_bytes
    stored = config.n_layer * (kept if setup.recompute else block) + outside_bytes(config, setup)
    held = Memory(weights, gradients, optimizer, 0, 0, whole_weights)
    embedding = config.vocab_size * config.n_embd * setup.weight_bytes
    loss, whole = loss_bytes(config, setup), whole_weights + casts
    head = config.vocab_size * config.n_embd * setup.weight_bytes  # its gradient comes first
    found = {
        "loss": replace(held, gradients=accumulated, activations=stored, loss=loss, buffers=whole),
        "last block": replace(
            held, gradients=max(accumulated, head), activations=stored + one_at_work, buffers=whole
        ),
        "backward": replace(
            held, gradients=max(gradients, accumulated), activations=block + one_at_work,
            buffers=whole_weights + whole_gradients + embedding + casts
        ),
        "optimizer": replace(held, buffers=muon_bytes(config, setup)),
        "evaluation": replace(held, gradients=0, **evaluation_bytes(config, setup)),
    }  # fmt: skip
    if setup.recompute:
        found["recompute"] = replace(
            held, gradients=accumulated, activations=stored + block + one_at_work,
            buffers=whole_weights + whole_gradients + embedding + casts,
        )  # fmt: skip
    return found


def matrix_parameters(config: GPTConfig) -> int:
    """Parameters in the matrices of the blocks, which are Muon's."""
    return 12 * config.n_layer * config.n_embd**2


def block_parameters(config: GPTConfig) -> int:
    """Parameters of one block."""
    counts = count_parameters(config)
    norms = (1 + int(config.bias)) * config.n_embd  # the final one
    return (counts["attention"] + counts["mlp"] + counts["norms"] - norms) // config.n_layer


def state_bytes(config: GPTConfig, setup: Setup) -> tuple[int, int, int]:
    """(weights, gradients, optimizer state) that one process keeps; under FSDP its share, rounded up."""
    parameters = sum(count_parameters(config).values())
    moments_kept = 2 * parameters - (matrix_parameters(config) if setup.optimizer == "muon" else 0)
    shares = setup.processes if setup.parallel == "fsdp" else 1
    weights, optimizer = (-(-count // shares) * setup.weight_bytes for count in (parameters, moments_kept))
    return weights, weights, optimizer


def accumulated_bytes(config: GPTConfig, setup: Setup) -> int:
    """Gradients that are there while activations are: of the micro-batches before, or the buckets of DDP.

    Under FSDP these are whole, since gradients are summed and sliced once a step.
    """
    if setup.micro_steps == 1 and setup.parallel != "ddp":
        return 0
    return sum(count_parameters(config).values()) * setup.weight_bytes


def gathered_bytes(config: GPTConfig, setup: Setup) -> tuple[int, int]:
    """(weights, gradients) that FSDP holds whole for a while: embeddings, head, a block and the next one.

    On GPUs blocks are gathered in half precision where that is the precision of the arithmetic.
    """
    if setup.parallel != "fsdp":
        return 0, 0
    block, weight = block_parameters(config), setup.weight_bytes
    outside = sum(count_parameters(config).values()) - config.n_layer * block
    gathered = weight if setup.device == "cpu" else setup.activation_bytes
    return outside * weight + 2 * block * gathered, (outside + 2 * block) * weight


def cast_bytes(config: GPTConfig, setup: Setup) -> int:
    """Half-precision copies of the matrices, which autocast makes once and keeps for the backward pass."""
    if setup.activation_bytes == setup.weight_bytes:
        return 0
    arrive_so = setup.parallel == "fsdp" and setup.device != "cpu"
    matrices = 0 if arrive_so else matrix_parameters(config)
    return setup.activation_bytes * (matrices + config.vocab_size * config.n_embd)


def attention_is_written_out(config: GPTConfig, setup: Setup) -> bool:
    """Whether scores are stored: by choice, or since PyTorch has no fused kernel with dropout on CPUs."""
    return setup.attention_kernel == "matmul" or (setup.device == "cpu" and config.dropout > 0)


def block_bytes(config: GPTConfig, setup: Setup) -> int:
    """What autograd saves of one block for a micro-batch."""
    weight, half, dropout = setup.weight_bytes, setup.activation_bytes, config.dropout > 0
    fused = setup.attention_kernel == "sdpa"
    inside = max(half, 4) if fused and dropout and setup.device == "cpu" else half  # computed in fp32 there
    channels = 2 * weight + (2 + 1 + 8) * half + 3 * inside
    if config.position == "rotary" or config.qk_norm:
        copies_output = fused and setup.device == "cpu" and not dropout
        channels += (3 if copies_output else 2) * half
    if dropout:
        channels += 2 * mask_bytes(setup)
    masks = 1 if setup.device == "cpu" else 1 / inside
    copies = 2 + masks if dropout else 1  # before and after dropout, and its mask
    tokens = setup.micro_batch * config.block_size
    return int(tokens * channels * config.n_embd + copies * score_bytes(config, setup))


def score_bytes(config: GPTConfig, setup: Setup) -> int:
    """The attention weights of one block, where they are written out."""
    if not attention_is_written_out(config, setup):
        return 0
    in_fp32 = setup.attention_kernel == "sdpa"  # whose replacement computes so
    size = max(4, setup.activation_bytes) if in_fp32 else setup.activation_bytes
    return size * setup.micro_batch * config.n_head * config.block_size**2


def mask_bytes(setup: Setup) -> int:
    """Bytes of a number in a dropout mask: a truth value on GPUs, on CPUs a factor of the tensor's type."""
    return setup.activation_bytes if setup.device == "cpu" else 1


def working_bytes(config: GPTConfig, setup: Setup) -> int:
    """What the backward pass of one block makes beside what it saved."""
    tokens = setup.micro_batch * config.block_size
    wide = config.n_embd * (setup.weight_bytes + 8 * setup.activation_bytes)
    scores = 0
    if attention_is_written_out(config, setup):
        several = 2 if config.separator is None else 3  # a mask for each row of the batch
        scores = several * setup.activation_bytes * config.n_head * config.block_size
    return tokens * max(wide, scores)


def outside_bytes(config: GPTConfig, setup: Setup) -> int:
    """What autograd saves beside the blocks: the last normalisation's input and output, masks."""
    mask = (setup.weight_bytes if setup.device == "cpu" else 1) if config.dropout > 0 else 0
    shifted = setup.weight_bytes if config.token_shift else 0
    per_channel = setup.weight_bytes + setup.activation_bytes + mask + shifted
    documents = setup.weight_bytes * config.block_size if config.separator is not None else 0
    return setup.micro_batch * config.block_size * (config.n_embd * per_channel + documents)


def loss_bytes(config: GPTConfig, setup: Setup) -> int:
    """Log-probabilities, their gradient and the gradient of the logits, all in full precision.

    Where the logits are too many the model takes them in chunks, and keeps the gradients of its head.
    """
    tokens, weight = setup.micro_batch * config.block_size, setup.weight_bytes
    if tokens * config.vocab_size <= LARGEST_LOGITS:
        return 3 * weight * tokens * config.vocab_size
    kept = weight * config.n_embd * (tokens + config.vocab_size)
    return kept + (2 * weight + setup.activation_bytes) * LARGEST_CHUNK


def evaluation_bytes(config: GPTConfig, setup: Setup) -> dict[str, int]:
    """An evaluation's pass, which keeps nothing for a backward pass: activations at work, the loss."""
    at_work = working_bytes(replace(config, dropout=0.0), replace(setup, micro_batch=setup.evaluated))
    tokens = setup.evaluated * config.block_size
    logits = tokens * config.vocab_size
    return {
        "activations": at_work,
        "loss": 2 * setup.weight_bytes * (logits if logits <= LARGEST_LOGITS else LARGEST_CHUNK),
    }


def muon_bytes(config: GPTConfig, setup: Setup) -> int:
    """What Muon's step makes: the directions of all its matrices, and for those of one shape (L of them, C by
    4 C) a stack, its normalised copy, the result, five Gram matrices, and the result of the shape before.
    """
    if setup.optimizer != "muon":
        return 0
    at_work = (3 * 4 + 5 + 4) * config.n_layer * config.n_embd**2
    return setup.weight_bytes * (matrix_parameters(config) + at_work) // max(1, setup.processes)


def fitting_batch_size(
    config: GPTConfig, setup: Setup, sequences: int, wanted: int, world: World, available: int | None
) -> int:
    """`wanted`, or the first of its halves whose micro-batch is predicted to fit; 1 where none is."""
    size, evaluated = wanted, setup.evaluated
    while size > 1 and available is not None:
        micro_batch, micro_steps = share_of_step(sequences, size, world)
        shared = replace(setup, micro_batch=micro_batch, micro_steps=micro_steps, evaluated=evaluated)
        if predict(config, shared).total <= FITS * available:
            break
        size //= 2
        evaluated = size
    return size


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
