"""The end of a run: whether it is reached, and what is printed."""

import shlex
import time

import torch

from engine.settings import TrainSettings
from engine.text.roles import ChatTokenizer
from engine.training.evaluation import print_sample
from engine.training.memory import gigabytes
from engine.training.run import Run, RunState


def out_of_patience(settings: TrainSettings, state: RunState) -> bool:
    """Whether the last `patience` evaluations were all without a better loss."""
    return settings.patience is not None and state.evaluations_without_gain >= settings.patience


def conclude(run: Run, state: RunState, was_stopped: bool) -> None:
    """Print how the run ended, and the command to try next."""
    say, settings, folder = run.console.say, run.settings, shlex.quote(str(run.folder))
    if run.logger is not None:
        run.logger.finish()
    complete = state.step >= settings.max_iters or out_of_patience(settings, state)
    if any(run.world.all_gather(was_stopped)) or not complete:
        say(f"stopped at step {state.step}; to go on, add --init_from=resume --out_dir={folder}")
        return
    print_sample(run, 5 * settings.sample_tokens)
    if run.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(run.device)
        say(f"peak memory of GPU {run.device.index}: {gigabytes(peak)}")
    if state.steps_without_targets:
        say(f"steps without targets, and so without an update: {state.steps_without_targets}")
    by_the_clock = in_minutes(time.perf_counter() - run.console.began)
    done = (
        f"done: {state.step} steps in {in_minutes(state.seconds)} of training, {by_the_clock} by the clock"
        f"{' since this start' if run.resumed else ''}."
    )
    if state.best_loss is not None:
        done += f" Best validation loss {state.best_loss:.4f}, at step {state.best_step}."
    say(done)
    command = f"sample from it: python sample.py --out_dir={folder}"
    if isinstance(run.data.tokenizer, ChatTokenizer):
        command = f"talk to it: python chat.py {folder}"
    say(f"The run is in {run.folder}. To {command}")


def in_minutes(duration: float) -> str:
    """Seconds as a person reads them: "1 min 05 s"."""
    minutes, seconds = divmod(round(duration), 60)
    return f"{minutes} min {seconds:02d} s"
