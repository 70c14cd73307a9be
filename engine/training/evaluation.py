"""Losses on fixed windows of both splits, and a sample."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from engine.data.dataset import Dataset, Split
from engine.data.order import evaluation_batches, evaluation_windows
from engine.device import Choices
from engine.parallel.sharding import is_sharded
from engine.parallel.world import World
from engine.text.tokenizer import Tokenizer, encode_prompt
from model import GPT

if TYPE_CHECKING:
    pass


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
    """Evaluate on `batches` × `batch_size` windows that lie evenly over the validation split, or on all.

    The training loss is taken the same way over as many windows of the training split.
    """
    windows = evaluation_windows(data.val, block_size, None if batches is None else batches * batch_size)
    at_once = choices.evaluation_batch or batch_size
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
    """Mean loss in nats of all tokens in `windows` fixed windows of a split, shared out over the processes."""
    first, last = (windows * rank // world.size for rank in (world.rank, world.rank + 1))
    total = torch.zeros(2, dtype=torch.float64)
    for inputs, targets in evaluation_batches(split, block_size, windows, first, last, batch_size):
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
