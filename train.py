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
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from engine.command_line import read_settings, run_script
from engine.errors import UserError
from engine.settings import TrainSettings

# At run time torch is imported inside the functions: --help and a mistyped setting answer at once.
if TYPE_CHECKING:
    from torch import Tensor

    from engine.training.evaluation import Evaluation
    from engine.training.report import Clock, StepReport
    from engine.training.run import Progress, Run
    from engine.training.signals import StopRequests


def main(arguments: Sequence[str]) -> int:
    """Set up, then train. Returns the exit status: 0, or 128 + the number of the signal that ended it."""
    sources = read_settings(TrainSettings, arguments, __doc__)
    from engine.parallel import world as distributed
    from engine.training.metrics import Console
    from engine.training.setup import set_up
    from engine.training.signals import StopRequests

    world = distributed.start(sources.peek("timeout"))
    console = Console(world.is_main)
    try:
        with StopRequests(world) as requests, contextlib.ExitStack() as cleanup:
            run, progress, resumed = set_up(sources, world, console, cleanup)
            if run.settings.eval_only:
                console.say(f"step {progress.step}: {measure(run)}")
            else:
                train(run, progress, resumed, requests)
            world.wait()  # gloo aborts a process whose peers have left
            return 0 if requests.received is None else 128 + requests.received
    finally:
        world.stop()


# ------------------------------------------------------------------------------------------------------------
# training


def train(run: "Run", progress: "Progress", resumed: bool, requests: "StopRequests") -> None:
    """Update, evaluate and save until `max_iters`, a signal, or the end of patience."""
    from engine.parallel.watchdog import Watchdog
    from engine.training.diagnose import Diverged, first_not_finite
    from engine.training.setup import compiled, in_parallel

    forward = in_parallel(run, compiled(run))
    try:
        with Watchdog(run.world, progress, run.settings.timeout / 3):
            loop(run, forward, progress, resumed, requests)
    except Diverged as error:
        run.console.say(f"step {error.step} went wrong; looking for the cause")
        raise UserError(f"{error}; {first_not_finite(run, forward, update, error.step)}") from error
    finally:
        run.console.stop_bar()
    conclude(run, progress, requests)


def loop(run: "Run", forward: Any, progress: "Progress", resumed: bool, requests: "StopRequests") -> None:
    """Step after step: evaluate and save where due, update, read the report of the step before."""
    from engine.training.batches import Batches
    from engine.training.report import Clock, StepReport

    settings = run.settings
    batches = Batches(run, progress.sequences)
    clock = Clock(progress.step, progress.seconds)
    report: StepReport | None = None
    saved_at = progress.step if resumed else None
    run.console.start_bar(progress.step, settings.max_iters)
    stopping = False

    while True:
        finished = progress.step >= settings.max_iters
        due = finished or progress.step % settings.eval_interval == 0
        if (due or stopping) and progress.step != saved_at:
            requests.updating = False
            log(run, report, clock)
            report = None
            clock.stand()
            progress.seconds = clock.seconds
            if due:
                evaluate_and_record(run, progress)
            save(run, progress)
            saved_at = progress.step
            stopping = stopping or out_of_patience(settings, progress)
        if finished or stopping:
            break

        began, requests.updating = clock.seconds, True
        clock.go()
        values, rate = update(run, forward, batches.step(), progress.step, requests.received is not None)
        progress.step += 1
        progress.sequences += settings.sequences_per_step()
        stopping = log(run, report, clock)  # of the step before, whose numbers have arrived by now
        report = StepReport(progress.step, clock.seconds, rate, values, run.world)
        requests.step_took(clock.seconds - began)
    batches.close()


def update(
    run: "Run",
    forward: Any,
    micro_batches: "Iterator[tuple[Tensor, Tensor, float | Tensor]]",
    step: int,
    stop_asked: bool,
) -> "tuple[Tensor, float]":
    """Update number `step`: forward, backward, clip, optimizer. Returns the report's numbers and the rate."""
    import torch

    from engine.parallel.sharding import gradients_summed
    from engine.training.optimizer import clip_gradients, learning_rate_factor
    from model import derive_seed

    settings, optimizer, scaler = run.settings, run.optimizer, run.scaler
    factor = learning_rate_factor(step, settings)
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak"]
    mean_loss = torch.zeros((), device=run.device, dtype=run.choices.weights_dtype())
    for index, (ids, targets, weight) in enumerate(micro_batches):
        if settings.dropout > 0:
            number = run.world.rank * run.micro_steps + index
            torch.manual_seed(derive_seed(settings.seed, "dropout", step, number))
        with gradients_summed(run.model, forward, now=index == run.micro_steps - 1):
            with run.choices.autocast():
                loss = forward(ids, targets)[1] * weight
            scaler.scale(loss).backward()
        mean_loss += loss.detach()
        del loss  # the nodes of its graph would lie scattered over the memory that the next one needs
    scaler.unscale_(optimizer)
    norm = clip_gradients(run.model.parameters(), settings.grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return (
        torch.stack((mean_loss, norm.to(mean_loss), torch.full_like(mean_loss, float(stop_asked)))),
        factor * settings.learning_rate,
    )


# ------------------------------------------------------------------------------------------------------------
# logging, evaluation, saving


def log(run: "Run", report: "StepReport | None", clock: "Clock") -> bool:
    """Read a step's report, write its line where one is due; returns whether some process was asked to stop.

    Raises Diverged where the loss or the gradient is not finite, before anything of it is saved.
    """
    from engine.training.diagnose import Diverged

    if report is None:
        return False
    loss, norm, stop = report.read()
    if not math.isfinite(loss) or not (math.isfinite(norm) or run.scaler.is_enabled()):
        raise Diverged(
            report.step,
            f"training diverged at step {report.step} (loss {loss}, gradient norm {norm}, learning rate "
            f"{report.learning_rate:.3g}); the checkpoints before it are good, "
            f"resume with a lower --learning_rate",
        )
    usual = statistics.fmean(run.recent_losses or [loss])
    if run.settings.loss_spike is not None and loss > run.settings.loss_spike * usual:
        raise UserError(
            f"the loss of step {report.step} is {loss:.4f}, more than loss_spike {run.settings.loss_spike} "
            f"times the mean of those before, {usual:.4f}; "
            f"resume from the last checkpoint, or raise loss_spike"
        )
    run.recent_losses.append(loss)
    due = report.step % run.settings.log_interval == 0 or report.step == run.settings.max_iters
    line = f"loss {loss:.4f}"
    if due:
        tokens_per_second = clock.steps_per_second(report.step, report.seconds) * run.tokens_per_step
        mfu = run.mfu(tokens_per_second)
        line += f", lr {report.learning_rate:.2e}, {tokens_per_second:,.0f} tokens/s"
        line += "" if mfu is None else f", MFU {mfu:.1%}"
        speed = {"tokens_per_second": tokens_per_second, "mfu": mfu}
        values = {"loss": loss, "lr": report.learning_rate, "grad_norm": norm} | speed
        record(run, report.step, "train", report.seconds, values)
    run.console.progress(report.step, line, due)
    return stop


def record(run: "Run", step: int, kind: str, seconds: float, values: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl, and to wandb."""
    if run.metrics is not None and run.wandb is not None:
        line = {
            "step": step,
            "kind": kind,
            "tokens": step * run.tokens_per_step,
            "seconds": round(seconds, 4),
        } | values
        run.metrics.record(line)
        run.wandb.record(line)


def evaluate_and_record(run: "Run", progress: "Progress") -> None:
    """Evaluate, note whether this is the best so far, print the losses and a sample."""
    losses = measure(run)
    record(run, progress.step, "eval", progress.seconds, dataclasses.asdict(losses))
    better = progress.best_loss is None or losses.val_loss < progress.best_loss
    if better:
        progress.best_loss, progress.best_step = losses.val_loss, progress.step
    progress.evaluations_without_gain = 0 if better else progress.evaluations_without_gain + 1
    run.console.say(f"step {progress.step}: {losses}{' (best)' if better else ''}")
    print_sample(run, run.settings.sample_tokens)


def measure(run: "Run") -> "Evaluation":
    """The losses on both splits, by the plain model: compiling for each shape of window would take longer."""
    from engine.training.evaluation import evaluate, inference_mode_of

    with inference_mode_of(run.model):
        return evaluate(
            run.model,
            run.data,
            block_size=run.settings.block_size,
            batches=run.settings.eval_iters,
            batch_size=run.settings.batch_size,
            choices=run.choices,
            world=run.world,
            device=run.device,
        )


def print_sample(run: "Run", tokens: int) -> None:
    """Print what the model writes by now, from the main process; a sharded model writes on all of them."""
    from engine.parallel.sharding import is_sharded
    from engine.training.evaluation import inference_mode_of, write_text

    if tokens and (run.world.is_main or is_sharded(run.model)):
        with inference_mode_of(run.model), run.choices.autocast():
            text = write_text(run.model, run.data.tokenizer, tokens, run.settings.seed)
        run.console.say("\n".join(f"    {line}" for line in text.strip("\n").split("\n")))


def save(run: "Run", progress: "Progress") -> None:
    """Write a checkpoint of this step, point `last` (and `best`) at it, delete what is no longer kept."""
    from engine.parallel.sharding import is_sharded
    from engine.parallel.world import ALONE
    from engine.versions import versions
    from engine.weights import saving
    from engine.weights.training_state import optimizer_tensors

    writers = run.world if is_sharded(run.model) else ALONE
    if writers is ALONE and not run.world.is_main:
        return
    meta = {
        "model": dataclasses.asdict(run.model.config),
        "settings": dataclasses.asdict(run.settings),
        "choices": run.choices.to_dict(),
        "used_cpu_part": run.used_cpu_part,
        "processes": run.world.size,
        "tokenizer": run.data.tokenizer.to_dict(),
        "data": {"name": run.data.name, "fingerprint": run.data.fingerprint},
        "scaler": run.scaler.state_dict(),
        "wandb_id": None if run.wandb is None else run.wandb.run_id,
        "versions": versions(),
    }
    parts = {
        "model": dict(run.model.named_parameters()),
        "optimizer": optimizer_tensors(run.model, run.optimizer),
    }
    try:
        saving.save_checkpoint(run.folder, meta | dataclasses.asdict(progress), parts, writers)
    except UserError as error:
        if run.settings.save_errors == "stop":
            raise
        run.console.say(f"warning: {error}; going on, since save_errors is continue")
        return
    if not run.world.is_main:
        return
    if progress.best_step == progress.step:
        saving.mark_best(run.folder, progress.step)
    saving.prune(run.folder, run.settings.keep_checkpoints)


def conclude(run: "Run", progress: "Progress", requests: "StopRequests") -> None:
    """Say how the run ended, and what to type next."""
    say, settings = run.console.say, run.settings
    if run.metrics is not None and run.wandb is not None:
        run.metrics.close()
        run.wandb.finish()
    complete = progress.step >= settings.max_iters or out_of_patience(settings, progress)
    if any(run.world.collect(requests.received is not None)) or not complete:
        say(f"stopped at step {progress.step}; to go on, add --init_from=resume --out_dir={run.folder}")
        return
    print_sample(run, 5 * settings.sample_tokens)
    if run.device.type == "cuda":
        import torch

        from engine.training.memory import gigabytes

        say(f"peak memory of GPU {run.device.index or 0}: {gigabytes(torch.cuda.max_memory_allocated())}")
    minutes, seconds = divmod(round(progress.seconds), 60)
    say(
        f"done: {progress.step} steps in {minutes} min {seconds:02d} s of training. "
        f"Best validation loss {progress.best_loss:.4f}, at step {progress.best_step}."
    )
    say(f"The run is in {run.folder}. To sample from it: python sample.py --out_dir={run.folder}")


def out_of_patience(settings: TrainSettings, progress: "Progress") -> bool:
    """Whether `patience` evaluations in a row brought nothing better."""
    return settings.patience is not None and progress.evaluations_without_gain >= settings.patience


if __name__ == "__main__":
    run_script(main)
