"""Parts of the training loop: batches read ahead, the step report, the clock, signals, evaluation."""

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from engine.dataset import Dataset, Split, evaluation_batches, evaluation_windows, training_starts
from engine.device import Choices
from engine.distributed import World
from engine.parallel import is_sharded
from engine.tokenizer import Tokenizer, encode_prompt
from model import GPT

if TYPE_CHECKING:
    from engine.setup import Run

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
AGREEMENT_SECONDS = 10.0
EVALUATION_TOKENS = 4096  # about as many are evaluated at a time, or a micro-batch if that is more


class Batches:
    """This process's micro-batches, step after step; the next step's are read while this one computes."""

    # Sequences that begin with documents differ in their number of targets; the others all have `block_size`.

    def __init__(self, run: "Run", consumed: int) -> None:
        settings = run.settings
        self.split, self.seed, self.block_size = run.data.train, settings.seed, settings.block_size
        self.sequences, self.consumed = settings.sequences_per_step(), consumed
        self.micro_batch, self.world, self.device = run.micro_batch, run.world, run.device
        self.separator = run.model.config.separator if settings.documents == "aligned" else None
        self.dtype = run.choices.weights_dtype()
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._next: Future[tuple[Tensor, Tensor]] = self._reader.submit(self._read, consumed)

    def step(self) -> Iterator[tuple[Tensor, Tensor, float | Tensor]]:
        """The micro-batches of the next step: inputs and targets, each (B, T) on the device, and a weight.

        Mean losses times these weights sum, over the micro-batches, to the process's part of the step's mean
        loss over all targets, times the number of processes (which DDP divides by).
        """
        rows, lengths = self._next.result()
        self.consumed += self.sequences
        self._next = self._reader.submit(self._read, self.consumed)
        weights: list[float | Tensor] = [self.micro_batch / len(rows)] * (len(rows) // self.micro_batch)
        if self.separator is not None:
            lengths = lengths.to(self.device, non_blocking=True)
            counts = lengths.view(-1, self.micro_batch).sum(dim=1).to(self.dtype)
            weights = (counts * self.world.size / self.world.sum(counts.sum())).unbind()
        for index, micro in enumerate(rows.split(self.micro_batch)):
            on_device = micro.to(self.device, non_blocking=True)
            ids, targets = on_device[:, :-1], on_device[:, 1:]
            if self.separator is not None:
                here = lengths[index * self.micro_batch :][: self.micro_batch, None]
                beyond = torch.arange(self.block_size, device=self.device) >= here
                targets = targets.masked_fill(beyond, -100)
            yield ids, targets, weights[index]

    def _read(self, consumed: int) -> tuple[Tensor, Tensor]:
        """This process's share of the step that begins at sequence `consumed`, pinned for a GPU.

        The rows (share, T + 1), and how many targets each has, (share,).
        """
        share = self.sequences // self.world.size
        first = consumed + self.world.rank * share
        starts = training_starts(self.seed, first, share, self.split.tokens, self.block_size)
        if self.separator is None:
            rows, targets = self.split.windows(starts, self.block_size), np.full(share, self.block_size)
        else:
            rows, targets = self.split.aligned_windows(starts, self.block_size, self.separator)
        tensors = torch.from_numpy(rows), torch.from_numpy(targets)
        return tuple(tensor.pin_memory() for tensor in tensors) if self.device.type == "cuda" else tensors

    def close(self) -> None:
        """Stop reading."""
        self._reader.shutdown(wait=True, cancel_futures=True)


class StepReport:
    """What one update tells: mean loss, gradient norm, and whether some process was asked to stop.

    The numbers are on their way from the device when this is made; `read` waits for them, so reading a
    step later costs the GPU no pause.
    """

    def __init__(self, step: int, seconds: float, learning_rate: float, values: Tensor, world: World) -> None:
        self.step = step
        self.seconds = seconds
        self.learning_rate = learning_rate
        self.size = world.size
        values = world.sum(values)
        self.arrived = None
        if values.device.type == "cuda":
            self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.values.copy_(values, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()
        else:
            self.values = values

    def read(self) -> tuple[float, float, bool]:
        """(mean loss in nats over the whole step, gradient norm, stop asked)."""
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, norm, stop = self.values.tolist()
        return loss / self.size, norm / self.size, stop > 0


class Clock:
    """Seconds of training: it stands still while something else is done."""

    def __init__(self, step: int, seconds: float) -> None:
        self._before = seconds
        self._since: float | None = None
        self._asked = (step, seconds)

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def steps_per_second(self, step: int, seconds: float) -> float:
        """The speed up to a step that ended at `seconds`, since this was last asked, or since the start."""
        steps, spent = step - self._asked[0], seconds - self._asked[1]
        self._asked = (step, seconds)
        return steps / spent if spent > 0 else 0.0

    def go(self) -> None:
        """Go on."""
        if self._since is None:
            self._since = time.perf_counter()

    def stand(self) -> None:
        """Stand still."""
        self._before, self._since = self.seconds, None


class StopRequests:
    """Catches the signals by which people and schedulers end a run, so that it can save first.

    Several processes must agree on the step to stop at. Where they have not agreed after `patience` seconds
    of updating, one must be gone or stuck; this one leaves, without writing. A second Ctrl-C leaves at once.
    """

    def __init__(self, world: World) -> None:
        self.received: int | None = None
        # Set by the loop: between evaluations and saves, when agreement can be expected.
        self.updating = False
        self.patience = AGREEMENT_SECONDS
        self._world = world
        self._at = 0.0
        self._old: dict[int, object] = {}
        self._wake, self._woken = socket.socketpair()

    def step_took(self, seconds: float) -> None:
        """Agreement comes two or three steps after the signal, so slow steps need more patience."""
        self.patience = max(AGREEMENT_SECONDS, 4 * seconds)

    def __enter__(self) -> "StopRequests":
        for name in STOP_SIGNALS:
            if hasattr(signal, name):
                number = getattr(signal, name)
                self._old[number] = signal.signal(number, self._receive)
        if self._world.size > 1:
            # Python runs no handler while the main thread waits for other processes; a byte arrives anyhow.
            self._wake.setblocking(False)
            signal.set_wakeup_fd(self._wake.fileno())
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.updating = False
        if self._world.size > 1:
            signal.set_wakeup_fd(-1)
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = number, now
            if self._world.is_main:
                os.write(2, b"stopping: a checkpoint is written after the step in progress\n")
        # torchrun passes on a Ctrl-C that has arrived already.
        elif number == signal.SIGINT and now - self._at > 2:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """In a thread: wait for a signal, then for the end of patience."""
        number = self._woken.recv(1)[0]
        waited = 0.0
        while waited < self.patience:
            time.sleep(0.1)
            waited = waited + 0.1 if self.updating else 0.0
        print(
            f"rank {self._world.rank}: no agreement to stop within {self.patience:.0f} s, so a process is "
            f"gone or stuck; leaving without a checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + number)


@dataclass(frozen=True)
class Evaluation:
    """Mean losses in nats over fixed windows of both splits, and the validation loss in bits per byte."""

    train_loss: float
    val_loss: float
    val_bits_per_byte: float | None

    def __str__(self) -> str:
        bits = "" if self.val_bits_per_byte is None else f", {self.val_bits_per_byte:.4f} bits per byte"
        return f"training loss {self.train_loss:.4f}, validation loss {self.val_loss:.4f}{bits}"


def evaluate(
    forward: GPT,
    data: Dataset,
    *,
    block_size: int,
    batches: int | None,
    batch_size: int,
    choices: Choices,
    world: World,
    device: torch.device,
) -> Evaluation:
    """Evaluate on the first `batches` × `batch_size` fixed windows of the validation split, or on all.

    The training loss is taken the same way over as many windows of the training split.
    """
    windows = evaluation_windows(data.val, block_size, None if batches is None else batches * batch_size)
    at_once = choices.batch_size or max(batch_size, EVALUATION_TOKENS // block_size)
    losses = []
    for split in (data.train, data.val):
        count = evaluation_windows(split, block_size, windows)
        losses.append(mean_loss(forward, split, block_size, count, at_once, choices, world, device))
    per_token = data.bytes_per_token(data.val)
    return Evaluation(
        losses[0], losses[1], None if per_token is None else losses[1] / math.log(2) / per_token
    )


@torch.no_grad()
def mean_loss(
    forward: GPT,
    split: Split,
    block_size: int,
    windows: int,
    batch_size: int,
    choices: Choices,
    world: World,
    device: torch.device,
) -> float:
    """Mean loss in nats of all tokens in the first `windows` fixed windows, shared out over the processes."""
    first, last = (windows * rank // world.size for rank in (world.rank, world.rank + 1))
    total = torch.zeros(2, dtype=torch.float64)
    for inputs, targets in evaluation_batches(split, block_size, first, last, batch_size):
        some_have_work(forward, world, own=True)
        ids, wanted = (torch.from_numpy(array).to(device) for array in (inputs, targets))
        with choices.autocast():
            loss = forward(ids, wanted)[1]
        total += torch.tensor([loss.item() * wanted.numel(), wanted.numel()], dtype=torch.float64)
    while some_have_work(forward, world, own=False):
        forward(torch.zeros(1, 1, dtype=torch.int64, device=device))
    loss, count = world.sum(total).tolist()
    return loss / count


def some_have_work(model: nn.Module, world: World, own: bool) -> bool:
    """Whether any process has a batch left: a sharded model's forward pass takes all, idle ones too."""
    return is_sharded(model) and int(world.sum(torch.tensor(int(own)))) > 0


@contextlib.contextmanager
def inference_mode_of(model: nn.Module) -> Iterator[None]:
    """The model without dropout; afterwards as it was before."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
        if is_sharded(model):
            model.reshard()  # what the root gathered: a backward pass would free it, and there is none


def write_text(model: GPT, tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """A sample of so many tokens that begins after a line break."""
    prompt = encode_prompt(tokenizer, None)
    ids = torch.from_numpy(prompt)[None].to(model.token_embedding.weight.device)
    written = model.generate(
        ids, tokens, temperature=0.8, top_k=200, seed=seed, n_tokens=tokenizer.vocab_size
    )
    return tokenizer.decode(written[0, len(prompt) :].tolist())
