"""Tune an assistant by what is better.

    python tune.py configs/assistant_preference.py            preferences (DPO), from the run assistant_chat
    python tune.py --preferences=pairs.jsonl --init_from=out/my_chat --learning_rate=1e-5 --max_iters=500
    python tune.py configs/assistant_preference.py --init_from=resume

Each method is a class: what it is made of, its update as the algorithm reads, and its figures on what is held
out. What happens in step s is a function of the seed and s, so a run that is stopped and resumed ends in the
same weights as one that is not.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from engine.command_line import Sources, read_early, read_settings, run_script
from engine.settings import TuneSettings


def read_options(arguments: Sequence[str]) -> Sources:
    """The command line and the file that it names, checked. Raises UserError."""
    return read_settings(TuneSettings, arguments, __doc__)


# Above the slow imports, so that --help and mistakes are answered at once.
OPTIONS = read_early(read_options) if __name__ == "__main__" else None

import torch
from torch import Tensor

from engine.errors import UserError
from engine.parallel.world import join
from engine.training.batches import Batch
from engine.training.ending import conclude, out_of_patience
from engine.training.folder import save
from engine.training.guard import LossGuard
from engine.training.metrics import Console
from engine.training.report import Clock, PendingReport, Update
from engine.training.run import Run, RunState
from engine.training.signals import StopRequests
from engine.tuning.losses import (
    group_advantages,
    policy_gradient_losses,
    preference_margins,
    ranking_losses,
)
from engine.tuning.preferences import EncodedPairs, pairs_of_run, pairs_of_step
from engine.tuning.questions import Judge, ask, chosen_tasks, draw_questions
from engine.tuning.rollout import Answers
from engine.tuning.rows import (
    Rows,
    answer_features,
    answer_log_probabilities,
    batches_of_rows,
    token_log_probabilities,
)
from engine.tuning.setup import reference_model, set_up
from model import GPT, derive_seed
from train import update

Figures = dict[str, float]  # of a step or of an evaluation, by name


def main(arguments: Sequence[str]) -> int:
    """Tune as a command line says; see `tune`."""
    return tune(read_options(arguments))


def tune(sources: Sources) -> int:
    """Set up, then tune. Returns the exit status: 0, or 128 + the number of the signal that ended it."""
    world = join(sources.get("timeout"), sources.get("device"))
    received = None
    with contextlib.ExitStack() as cleanup:
        started = set_up(sources, world, Console(world.is_main), cleanup)
        if started is not None:
            run, state = started
            with StopRequests(world) as requests:
                tune_until_done(run, state, requests)
            received = requests.received
    world.leave()
    return 0 if received is None else 128 + received


# ------------------------------------------------------------------------------------------------------------
# preferences


class DPO:
    """Direct preference optimization (Rafailov et al., 2023): raise what is chosen above what is rejected.

    The margin is how much more than the reference the model prefers the chosen answer; at the start it is 0.
    """

    def __init__(self, run: Run, settings: TuneSettings) -> None:
        self.run, self.settings = run, settings
        self.pairs, self.held_out = pairs_of_run(run, settings)
        reference = reference_model(run, str(settings.reference))
        self.reference = self.log_probabilities(reference, self.pairs)
        self.held_out_reference = self.log_probabilities(reference, self.held_out)

    def update(self, step: int) -> tuple[Update, Figures]:
        """The pairs of this step; how much the model prefers what is chosen; loss and step."""
        settings, margins = self.settings, []

        def loss(rows: Rows, reference: Tensor) -> Tensor:
            now = answer_log_probabilities(self.run.model, rows).view(2, -1)
            margins.append(preference_margins(now, reference, settings.beta))
            return ranking_losses(margins[-1]).sum()

        numbers = pairs_of_step(settings.seed, step, settings.prompts, len(self.pairs))
        parts = self.pairs.batches(settings.batch_size, numbers)
        batches = ((rows, self.reference[:, part]) for rows, part in parts)
        updated = update(self.run, loss, Batch(batches, len(numbers)), step)
        return updated, {"accuracy": share(torch.cat(margins) > 0)}

    def evaluate(self) -> Figures:
        """The loss, and the share of held-out pairs that are ranked rightly."""
        now = self.log_probabilities(self.run.model, self.held_out)
        margins = preference_margins(now, self.held_out_reference, self.settings.beta)
        return {"val_loss": ranking_losses(margins).mean().item(), "accuracy": share(margins > 0)}

    @torch.no_grad()
    def log_probabilities(self, model: GPT, pairs: EncodedPairs) -> Tensor:
        """Those of all pairs' answers, (2, number of pairs): chosen and rejected."""
        with self.run.compute.autocast():
            found = [
                answer_log_probabilities(model, rows).view(2, -1)
                for rows, _ in pairs.batches(self.settings.batch_size)
            ]
        return torch.cat(found, dim=1)


# ------------------------------------------------------------------------------------------------------------
# rewards


class GRPO:
    """Group relative policy optimization (Shao et al., 2024): make likelier what earns more than its group.

    The advantage is the reward less the group's mean (Liu et al., 2025), the loss a mean over tokens (Yu et
    al., 2025). There is no KL term. A rollout serves one update, so that no ratio of probabilities is to be
    clipped: it is 1.
    """

    def __init__(self, run: Run, settings: TuneSettings) -> None:
        self.run, self.settings = run, settings
        self.tasks, self.judge = chosen_tasks(settings.tasks), Judge(run.console.say)

    def update(self, step: int) -> tuple[Update, Figures]:
        """Rollout, advantage, loss, step."""
        run, settings = self.run, self.settings
        seed = derive_seed(settings.seed, "rollout", step)
        questions = draw_questions(self.tasks, seed, settings.prompts)
        asked = [problem for problem in questions for _ in range(settings.group)]
        prompts, answers = ask(run, settings, asked, seed)

        rewards = torch.tensor(self.judge.rewards(asked, answers), dtype=run.compute.weights_dtype())
        advantages = group_advantages(rewards.view(-1, settings.group)).flatten().to(run.device)

        def loss(rows: Rows, advantages: Tensor) -> Tensor:
            now = token_log_probabilities(run.model, answer_features(run.model, rows), rows)
            return policy_gradient_losses(now, advantages[rows.row_of]).sum()

        # Groups whose answers all earned the same teach nothing.
        learned = advantages.nonzero()[:, 0].tolist()
        parts = batches_of_rows(run, prompts, answers.tokens, learned)
        batches = ((rows, advantages[part]) for rows, part in parts)
        tokens = sum(len(answers.tokens[row]) for row in learned)
        updated = update(run, loss, Batch(batches, tokens), step)
        return updated, figures_of(answers, rewards, self.judge) | {"groups": len(learned) / len(asked)}

    def evaluate(self) -> Figures:
        """The mean reward of the most probable answers to problems that are for training, and no step's own.

        So the held-out ones choose nothing, not even the best checkpoint.
        """
        settings = self.settings
        seed = derive_seed(settings.seed, "examination")
        asked = draw_questions(self.tasks, seed, settings.eval_prompts)
        _, answers = ask(self.run, settings, asked, seed, temperature=0)
        rewards = torch.tensor(self.judge.rewards(asked, answers))
        figures = figures_of(answers, rewards, self.judge)
        return {"val_loss": 1 - figures["reward"]} | figures


def figures_of(answers: Answers, rewards: Tensor, judge: Judge) -> Figures:
    """The mean reward, the share of answers that ended by themselves, their mean length, checkers' errors."""
    figures: Figures = {
        "reward": rewards.mean().item(),
        "ended": sum(answers.ended) / len(answers.ended),
        "length": sum(map(len, answers.tokens)) / len(answers.tokens),
    }
    if judge.errors:
        figures["reward_errors"] = judge.errors.total()
    return figures


METHODS = {"dpo": DPO, "grpo": GRPO}


def share(values: Tensor) -> float:
    """The share of True."""
    return values.double().mean().item()


def in_words(figures: Figures) -> str:
    """Figures for a line on the terminal."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())


# ------------------------------------------------------------------------------------------------------------
# the loop, and what is done between updates


def tune_until_done(run: Run, state: RunState, requests: StopRequests) -> None:
    """Tune, and say how the run ended."""
    settings = run.settings
    assert isinstance(settings, TuneSettings), "tune.py reads these"
    method = METHODS[settings.method](run, settings)
    run.model.eval()  # nothing is dropped, so that answers are drawn from the very model that is trained
    run.console.start_bar(state.step, settings.max_iters)
    try:
        loop(run, method, state, requests)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"step {state.step + 1} does not fit into the GPU's memory; resume with half the --batch_size"
        ) from error
    finally:
        run.console.stop_bar()
    conclude(run, state, requests.received is not None)


def loop(run: Run, method: Any, state: RunState, requests: StopRequests) -> None:
    """Update, evaluate and save until `max_iters`, a signal, or the end of patience."""
    settings = run.settings
    clock, guard = Clock(state.step, state.seconds), LossGuard(None, scaled=run.scaler.is_enabled())
    saved_at = state.step if run.resumed else None
    while True:
        finished, stopping = state.step >= settings.max_iters, requests.received is not None
        due = finished or state.step % settings.eval_interval == 0
        if (due or stopping) and state.step != saved_at:
            clock.pause()
            state.seconds = clock.seconds
            if due:
                evaluate(run, method, state)
            save(run, state)
            saved_at = state.step
        if finished or stopping or out_of_patience(settings, state):
            return
        clock.start()
        updated, figures = method.update(state.step)
        state.step += 1
        state.sequences += settings.sequences_per_step()
        state.steps_without_targets += updated.targets == 0
        report = PendingReport(state.step, clock.seconds, updated, stop_asked=False, world=run.world).read()
        guard.check(report)
        due = state.step % settings.log_interval == 0 or state.step == settings.max_iters
        values = {
            "loss": report.loss,
            "lr": report.learning_rate,
            "grad_norm": report.gradient_norm,
        } | figures
        if due:
            run.record(state.step, "train", report.seconds, values)
        run.console.progress(state.step, in_words(figures), due or report.loss is None)


def evaluate(run: Run, method: Any, state: RunState) -> None:
    """Record the figures of what is held out, say them, and note whether they are the best so far."""
    figures = method.evaluate()
    run.record(state.step, "eval", state.seconds, figures)
    state.count_evaluation(figures["val_loss"])
    best = " (best)" if state.best_step == state.step else ""
    run.console.say(f"step {state.step}: held out: {in_words(figures)}{best}")


if __name__ == "__main__":
    run_script(tune, OPTIONS)
