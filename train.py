"""Train a GPT: on a laptop, on a GPU, on many.

    python train.py configs/shakespeare_char.py
    python train.py configs/shakespeare_char.py --learning_rate=3e-4 --max_iters 500
    python train.py configs/shakespeare_char.py --init_from=resume --max_iters 4000
    torchrun --standalone --nproc_per_node=8 train.py configs/gpt2.py

Step s means s completed updates. The sequences of a step, its dropout and the initial weights are functions
of the seed and the step, so a run that is stopped and resumed ends in the same weights as one that is not.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from engine.command_line import Sources, read_early, read_settings, run_script
from engine.settings import TrainSettings


def read_options(arguments: Sequence[str]) -> Sources:
    """The command line and the file that it names, checked. Raises UserError."""
    return read_settings(TrainSettings, arguments, __doc__)


# Above the slow imports, so that --help and mistakes are answered at once.
OPTIONS = read_early(read_options) if __name__ == "__main__" else None

import torch

from engine.errors import UserError
from engine.parallel.sharding import gradients_summed
from engine.parallel.watchdog import watchdog
from engine.parallel.world import join
from engine.training.batches import Batch, Batches
from engine.training.diagnose import explain_divergence
from engine.training.ending import conclude, out_of_patience
from engine.training.evaluation import Evaluation, evaluate, print_sample
from engine.training.folder import save
from engine.training.forward import training_forward
from engine.training.guard import Diverged, LossGuard
from engine.training.metrics import Console
from engine.training.optimizer import clip_gradients, learning_rate_factor
from engine.training.report import Clock, PendingReport, Report, Update
from engine.training.run import Run, RunState
from engine.training.setup import set_up
from engine.training.signals import StopRequests
from model import derive_seed


def main(arguments: Sequence[str]) -> int:
    """Train with the settings of a command line; returns the exit status."""
    return train(read_options(arguments))


def train(sources: Sources) -> int:
    """Set up and train. Returns the exit status: 0, or 128 + the number of the signal that stopped the run.

    A normal end joins all threads before it leaves the process group. After an error it waits for nothing,
    because other processes may never arrive.
    """
    world = join(sources.get("timeout"), sources.get("device"))
    console = Console(world.is_main)
    received = None
    with contextlib.ExitStack() as cleanup:
        started = set_up(sources, world, console, cleanup)
        if started is not None:
            run, state = started
            if run.settings.eval_only:
                console.say(f"step {state.step}: {evaluate(run, state.evaluation_windows)}")
            else:
                with StopRequests(world) as requests:
                    train_until_done(run, state, requests)
                received = requests.received
    world.leave()
    return 0 if received is None else 128 + received


# ------------------------------------------------------------------------------------------------------------
# training


def update(run: Run, forward: Any, batch: Batch, step: int) -> Update:
    """Update number `step`: forward, backward, clip, optimizer. `forward` returns a sum of losses."""
    settings, optimizer, scaler = run.settings, run.optimizer, run.scaler
    factor = learning_rate_factor(step, settings)
    for group in optimizer.param_groups:
        group["lr"] = factor * group["max_lr"]
    loss_sum = torch.zeros((), device=run.device, dtype=run.compute.weights_dtype())
    if batch.targets == 0:  # nothing to learn from, on any process
        return Update(loss_sum, 0, torch.zeros_like(loss_sum), factor * settings.learning_rate)

    for index, (ids, targets) in enumerate(batch.micro_batches):
        if settings.dropout > 0:
            number = run.world.rank * run.micro_steps + index
            torch.manual_seed(derive_seed(settings.seed, "dropout", step, number))
        with gradients_summed(run.model, forward, now=index == run.micro_steps - 1):
            with run.compute.autocast():
                loss = forward(ids, targets)
            # The mean over the step's targets; DDP and FSDP divide by the number of processes.
            scaler.scale(loss * (run.world.size / batch.targets)).backward()
        loss_sum += loss.detach()
        del loss  # free its graph before the next one is built: what is left of it would fragment the memory
    scaler.unscale_(optimizer)
    norm = clip_gradients(run.model.parameters(), settings.grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return Update(loss_sum, batch.targets, norm, factor * settings.learning_rate)


# ------------------------------------------------------------------------------------------------------------
# the loop, and what is done between updates


def train_until_done(run: Run, state: RunState, requests: StopRequests) -> None:
    """Train; name the cause of a divergence; print how the run ended."""
    with training_forward(run, state.sequences) as forward:
        try:
            with watchdog(run.world, state, run.settings.timeout / 3):
                loop(run, forward, state, requests)
        except Diverged as error:
            run.console.say(f"step {error.step} went wrong; looking for the cause")
            raise UserError(f"{error}; {explain_divergence(run, forward, update, error.step)}") from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"step {state.step + 1} does not fit into the GPU's memory; resume with half the "
                f"--batch_size and twice the --gradient_accumulation_steps, or with --recompute=True"
            ) from error
        finally:
            run.console.stop_bar()
    conclude(run, state, requests.received is not None)


def loop(run: Run, forward: Any, state: RunState, requests: StopRequests) -> None:
    """Update, evaluate and save until `max_iters`, a signal, or the end of patience."""
    settings = run.settings
    clock = Clock(state.step, state.seconds)
    guard = LossGuard(settings.loss_spike, scaled=run.scaler.is_enabled())
    pending: PendingReport | None = None
    saved_at = state.step if run.resumed else None
    stopping = False
    run.console.start_bar(state.step, settings.max_iters)

    with contextlib.closing(Batches(run, state.sequences)) as batches:
        while True:
            finished = state.step >= settings.max_iters
            due = finished or state.step % settings.eval_interval == 0
            if (due or stopping) and state.step != saved_at:
                requests.updating = False
                if pending is not None:
                    finish_step(run, pending, guard, clock)
                    pending = None
                clock.pause()
                state.seconds = clock.seconds
                losses = evaluate_and_record(run, state) if due else None
                save(run, state)
                saved_at = state.step
                stopping = stopping or out_of_patience(settings, state)
                if losses is not None:
                    show(run, state, losses, sample=not finished and not stopping)
            if finished or stopping:
                return

            requests.updating = True
            clock.start()
            began = clock.seconds
            batch = batches.step()
            updated = update(run, forward, batch, state.step)
            state.step += 1
            state.sequences += settings.sequences_per_step()
            state.steps_without_targets += batch.targets == 0
            # The report of the step before is read now, when its numbers have arrived.
            stopping = pending is not None and finish_step(run, pending, guard, clock)
            stop_asked = requests.received is not None
            pending = PendingReport(state.step, clock.seconds, updated, stop_asked, run.world)
            requests.step_took(clock.seconds - began)


def finish_step(run: Run, pending: PendingReport, guard: LossGuard, clock: Clock) -> bool:
    """Read a step's report, check it, record and print it. Returns whether any process was asked to stop.

    Raises Diverged or UserError if the loss ends the run; nothing of that step is saved.
    """
    report = pending.read()
    guard.check(report)
    due = report.step % run.settings.log_interval == 0 or report.step == run.settings.max_iters
    speed = record_step(run, report, clock) if due else ""
    loss = "no targets, so no update" if report.loss is None else f"loss {report.loss:.4f}"
    run.console.progress(report.step, loss + speed, due or report.loss is None)
    return report.stop_asked


def record_step(run: Run, report: Report, clock: Clock) -> str:
    """Record a step's numbers. Returns its learning rate and the speed as text."""
    tokens_per_second = clock.steps_per_second(report.step, report.seconds) * run.tokens_per_step
    mfu = run.mfu(tokens_per_second)
    values = {"loss": report.loss, "lr": report.learning_rate, "grad_norm": report.gradient_norm}
    speed = {"tokens_per_second": tokens_per_second, "mfu": mfu}
    run.record(report.step, "train", report.seconds, values | speed)
    line = f", lr {report.learning_rate:.2e}, {tokens_per_second:,.0f} tokens/s"
    return line if mfu is None else f"{line}, MFU {mfu:.1%}"


def evaluate_and_record(run: Run, state: RunState) -> Evaluation:
    """Evaluate, and note whether this is the best so far."""
    losses = evaluate(run, state.evaluation_windows)
    run.record(state.step, "eval", state.seconds, dataclasses.asdict(losses))
    state.count_evaluation(losses.val_loss)
    return losses


def show(run: Run, state: RunState, losses: Evaluation, sample: bool) -> None:
    """Print the losses of this step, and a sample; `conclude` prints a longer one at the end of the run."""
    run.console.say(f"step {state.step}: {losses}{' (best)' if state.best_step == state.step else ''}")
    if sample:
        print_sample(run, run.settings.sample_tokens)


if __name__ == "__main__":
    run_script(train, OPTIONS)
