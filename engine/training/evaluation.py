"""Losses on fixed windows of both splits, and a sample."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from engine.data.dataset import Split
from engine.data.order import evaluation_batches, evaluation_windows
from engine.errors import UserError
from engine.generation import Sampling, generate
from engine.parallel.sharding import is_sharded
from engine.parallel.world import World
from engine.settings import TrainSettings
from engine.text.roles import ChatTokenizer
from engine.text.tokenizer import encode_prompt
from engine.training.run import Run


@dataclass(frozen=True)
class Evaluation:
    """Mean losses in nats over fixed windows of both splits, and the validation loss in bits per byte."""

    train_loss: float
    val_loss: float
    val_bits_per_byte: float | None

    def __str__(self) -> str:
        bits = "" if self.val_bits_per_byte is None else f", {self.val_bits_per_byte:.4f} bits per byte"
        return f"training loss {self.train_loss:.4f}, validation loss {self.val_loss:.4f}{bits}"


def windows_of(settings: TrainSettings) -> int | None:
    """The number of windows that a run with these settings evaluates on; None: all of a split.

    It is fixed at the start of a run, so that losses stay comparable if `batch_size` changes.
    """
    return None if settings.eval_iters is None else settings.eval_iters * settings.batch_size


def evaluate(run: Run, windows: int | None) -> Evaluation:
    """The losses on this many windows of each split; None: as many as the validation split has.

    The uncompiled model computes them: compiling for each shape of window would take longer.
    """
    block_size = run.settings.block_size
    count = evaluation_windows(run.data.val, block_size, windows)
    with inference_mode_of(run.model):
        train_loss = mean_loss(run, run.data.train, evaluation_windows(run.data.train, block_size, count))
        val_loss = mean_loss(run, run.data.val, count)
    per_token = run.data.bytes_per_token(run.data.val)
    return Evaluation(train_loss, val_loss, None if per_token is None else val_loss / math.log(2) / per_token)


@torch.no_grad()
def mean_loss(run: Run, split: Split, windows: int) -> float:
    """Mean loss in nats over the targets of this many fixed windows, divided among the processes."""
    world, settings = run.world, run.settings
    batch_size = run.compute.evaluation_batch or settings.batch_size
    first, last = (windows * rank // world.size for rank in (world.rank, world.rank + 1))
    total = torch.zeros(2, dtype=torch.float64)  # loss sum, targets
    separator = run.model.config.separator
    batches = evaluation_batches(split, settings.block_size, windows, first, last, batch_size, separator)
    for number, (inputs, targets) in enumerate(batches):
        run.console.busy(f"evaluating: {split.name}, {number * batch_size:,} of {last - first:,} windows")
        any_has_a_batch(run.model, world, this_one=True)
        ids = torch.from_numpy(inputs).to(run.device)
        with run.compute.autocast():
            loss_sum = run.model(ids, torch.from_numpy(targets).to(run.device))
        total += torch.tensor([loss_sum.item(), (targets >= 0).sum()], dtype=torch.float64)
    while any_has_a_batch(run.model, world, this_one=False):
        run.model(torch.zeros(1, 1, dtype=torch.int64, device=run.device))
    loss_sum, count = world.all_reduce(total).tolist()
    if not count:
        raise UserError(
            f"the {windows} windows of the {split.name} split on which the loss is measured hold no target; "
            f"raise eval_iters, or give more conversations"
        )
    return loss_sum / count


def any_has_a_batch(model: nn.Module, world: World, this_one: bool) -> bool:
    """Whether any process has a batch left: the forward pass of a sharded model needs all of them."""
    return is_sharded(model) and int(world.all_reduce(torch.tensor(int(this_one)))) > 0


@contextlib.contextmanager
def inference_mode_of(model: nn.Module) -> Iterator[None]:
    """Switch the model to evaluation mode, and back afterwards.

    The parameters of a sharded model outside its blocks are gathered meanwhile, because sampling reads them.
    """
    before = model.training
    model.eval()
    if is_sharded(model):
        model.unshard()  # pyright: ignore[reportCallIssue]
    try:
        yield
    finally:
        model.train(before)
        if is_sharded(model):
            model.reshard()  # pyright: ignore[reportCallIssue]


def print_sample(run: Run, tokens: int) -> None:
    """Print what the model writes after a line break, or its answer to the first validation conversation.

    Rank 0 generates it; with a sharded model, all processes do.
    """
    if not tokens or not (run.world.is_main or is_sharded(run.model)):
        return
    tokenizer = run.data.tokenizer
    prompt = encode_prompt(tokenizer, None)
    if run.data.val.is_masked:
        first = run.data.val.read(0, min(run.settings.block_size, run.data.val.tokens))
        prompt = first[: max(1, int(run.data.val.are_targets(0, len(first)).argmax()))]
    ids = torch.from_numpy(prompt)[None].to(run.device)
    with inference_mode_of(run.model), run.compute.autocast():
        sampling = Sampling(temperature=0.8, top_k=200)
        written = generate(
            run.model, ids, tokens, sampling, seed=run.settings.seed, n_tokens=tokenizer.vocab_size
        )
    answer = written[0, len(prompt) :].tolist()
    if isinstance(tokenizer, ChatTokenizer) and run.data.val.is_masked:
        end = answer.index(tokenizer.end_of_turn) if tokenizer.end_of_turn in answer else len(answer)
        answer = [*prompt.tolist(), *answer[:end]]
    text = tokenizer.decode(answer)
    run.console.say("\n".join(f"    {line}" for line in text.strip("\n").split("\n")))
