"""Tune an assistant by preferences and rewards.

    python tune.py configs/assistant_preference.py      preferences (DPO), from the run assistant_chat
    python tune.py configs/assistant_reward.py          rewards of right answers (GRPO), from the same run
    python tune.py configs/assistant_reward_model.py    scores for answers; assistant_ppo.py: PPO on these
    python tune.py --preferences=pairs.jsonl --init_from=out/my_chat --learning_rate=1e-5 --max_iters=500
    python tune.py configs/assistant_reward.py --init_from=resume

Each method is a class: `update` reads like the algorithm, `evaluate` measures what it has learned. A step is
a function of the seed and its number, so a run that is stopped and resumed ends in the same weights as one
that is not.
"""

import contextlib
from collections.abc import Sequence

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
from engine.tuning import losses
from engine.tuning.preferences import EncodedPairs, pairs_of_run, pairs_of_step
from engine.tuning.rollout import Answers, Judge, ask, chosen_tasks, draw_questions
from engine.tuning.rows import (
    Rows,
    answer_features,
    answer_scores,
    log_probabilities,
    log_probabilities_of_pairs,
    scores,
)
from engine.tuning.setup import reference_model, reward_model, set_up
from model import derive_seed
from tasks import Problem
from train import update

Figures = dict[str, float]  # of a step or of an evaluation, by name


def main(arguments: Sequence[str]) -> int:
    """Tune with the settings of a command line; returns the exit status."""
    return tune(read_options(arguments))


def tune(sources: Sources) -> int:
    """Set up, then tune. Returns the exit status: 0, or 128 + the number of the signal that ended it."""
    world = join(sources.get("timeout"), sources.get("device"))
    with contextlib.ExitStack() as cleanup:
        started = set_up(sources, world, Console(world.is_main), cleanup)
        if started is None:
            return 0
        with StopRequests(world) as requests:
            tune_until_done(*started, requests)
        return 0 if requests.received is None else 128 + requests.received


# ------------------------------------------------------------------------------------------------------------
# methods. RewardModel and DPO learn from pairs of answers and differ in the margin; GRPO and PPO draw answers
# to questions and differ in the update. Inheritance says what is shared, no more.


class RewardModel:
    """A head that scores answers, learned from pairs of which one is preferred (Bradley and Terry, 1952)."""

    def __init__(self, run: Run, settings: TuneSettings) -> None:
        self.run, self.settings = run, settings
        self.pairs, self.held_out = pairs_of_run(run, settings)

    def margins(self, rows: Rows, pairs: EncodedPairs, numbers: list[int]) -> Tensor:
        """The score of the chosen answer less that of the rejected one, (B,), of the B pairs `numbers`."""
        chosen, rejected = answer_scores(self.run.model, rows).view(2, -1)
        return chosen - rejected

    def update(self, step: int) -> tuple[Update, Figures]:
        """The pairs of this step, margins, loss, step."""
        settings, margins = self.settings, []
        numbers = pairs_of_step(settings.seed, step, settings.prompts, len(self.pairs))

        def loss(rows: Rows, numbers: list[int]) -> Tensor:
            margins.append(self.margins(rows, self.pairs, numbers))
            return losses.ranking_losses(margins[-1]).sum()

        batch = Batch(self.pairs.batches(settings.batch_size, numbers), len(numbers))
        return update(self.run, loss, batch, step), {"accuracy": accuracy(torch.cat(margins))}

    @torch.no_grad()
    def evaluate(self) -> Figures:
        """The loss, and the share of held-out pairs that are ranked rightly."""
        batches = self.held_out.batches(self.settings.batch_size)
        with self.run.compute.autocast():
            margins = torch.cat([self.margins(rows, self.held_out, numbers) for rows, numbers in batches])
        loss = losses.ranking_losses(margins).mean().item()
        return {"val_loss": loss, "accuracy": accuracy(margins)}


class DPO(RewardModel):
    """Direct preference optimization (Rafailov et al., 2023): the model itself is the reward model.

    β times an answer's log-ratio to the reference takes the place of the head, so the first margins are 0.
    """

    def __init__(self, run: Run, settings: TuneSettings) -> None:
        super().__init__(run, settings)
        model = reference_model(run, str(settings.reference))
        with torch.no_grad(), run.compute.autocast():
            for pairs in (self.pairs, self.held_out):
                batches = pairs.batches(settings.batch_size)
                found = [log_probabilities_of_pairs(model, rows) for rows, _ in batches]
                pairs.reference = torch.cat(found, dim=1)

    def margins(self, rows: Rows, pairs: EncodedPairs, numbers: list[int]) -> Tensor:
        """β times the difference of the two answers' log-ratios to the reference, (B,)."""
        now = log_probabilities_of_pairs(self.run.model, rows)
        return losses.preference_margins(now, pairs.reference[:, numbers], self.settings.beta)


class GRPO:
    """Group relative policy optimization (Shao et al., 2024) of rewards that a program gives.

    The advantage is the reward less the group's mean (Liu et al., 2025), the loss a mean over tokens (Yu et
    al., 2025). There is no KL term. A rollout serves one update, so the ratio of probabilities is 1 and needs
    no clipping.
    """

    def __init__(self, run: Run, settings: TuneSettings) -> None:
        self.run, self.settings = run, settings
        self.tasks, self.judge = chosen_tasks(settings.tasks), Judge(run.console.say)

    def rollout(self, step: int) -> tuple[list[Problem], Answers]:
        """The questions of this step, each repeated for its group, and an answer to each."""
        seed, settings = derive_seed(self.settings.seed, "rollout", step), self.settings
        questions = draw_questions(self.tasks, seed, settings.prompts)
        asked = [problem for problem in questions for _ in range(settings.group)]
        return asked, ask(self.run, settings, asked, seed)

    def update(self, step: int) -> tuple[Update, Figures]:
        """Rollout, advantage, loss, step."""
        run, settings = self.run, self.settings
        asked, answers = self.rollout(step)
        rewards = self.judge.rewards(asked, answers)
        advantages = losses.group_advantages(rewards.view(-1, settings.group)).flatten()

        def loss(rows: Rows, numbers: list[int]) -> Tensor:
            now = log_probabilities(run.model, rows)
            return losses.policy_gradient_losses(now, advantages[numbers][rows.row_of]).sum()

        # A group whose answers all earned the same teaches nothing.
        learned = advantages.nonzero()[:, 0].tolist()
        batch = Batch(answers.batches(settings.batch_size, learned), int(answers.drawn[learned].sum()))
        figures = self.judge.figures(rewards, answers) | {"learned": len(learned) / len(asked)}
        return update(run, loss, batch, step), figures

    def evaluate(self) -> Figures:
        """How the most probable answers do on training problems, drawn apart from those of the steps.

        So the held-out problems choose nothing, not even the best checkpoint.
        """
        seed = derive_seed(self.settings.seed, "examination")
        asked = draw_questions(self.tasks, seed, self.settings.eval_prompts)
        answers = ask(self.run, self.settings, asked, seed, temperature=0)
        rewards = self.judge.rewards(asked, answers)
        return {"val_loss": self.validation_loss(rewards, answers)} | self.judge.figures(rewards, answers)

    def validation_loss(self, rewards: Tensor, answers: Answers) -> float:
        """The share of wrong answers: the lower, the better the checkpoint."""
        return 1 - rewards.mean().item()


class PPO(GRPO):
    """Proximal policy optimization (Schulman et al., 2017) of a reward model's scores (Ouyang et al., 2022).

    A second head, the value function, learns the return from each token on; the advantage is what exceeds it.
    Rollout and evaluation are those of GRPO; advantage and loss are not.
    """

    def __init__(self, run: Run, settings: TuneSettings) -> None:
        super().__init__(run, settings)
        self.reference = reference_model(run, str(settings.reference))
        self.reward_model = reward_model(run, str(settings.reward_model))

    def update(self, step: int) -> tuple[Update, Figures]:
        """Rollout, advantage, loss, and as many steps as there are epochs."""
        run, settings = self.run, self.settings
        asked, answers = self.rollout(step)
        drawn = answers.drawn

        scored, reference, values = self.scores_and_values(answers)
        returns = losses.returns_to_go(scored, answers.log_probabilities - reference, settings.beta)
        advantages = returns - values
        advantages = (advantages - advantages[drawn].mean()) / (advantages[drawn].std() + 1e-6)

        def loss(rows: Rows, numbers: list[int]) -> Tensor:
            """The clipped objective of the answers' tokens, and the squared error of their values."""
            features, here = answer_features(run.model, rows), drawn[numbers]
            now = log_probabilities(run.model, rows, features)
            before, advantage, target = (
                column[numbers][here] for column in (answers.log_probabilities, advantages, returns)
            )
            error = scores(run.model, features.detach()) - target
            return (losses.clipped_losses(now, before, advantage, settings.clip) + 0.5 * error.square()).sum()

        for _ in range(settings.epochs):
            batch = Batch(answers.batches(settings.batch_size), int(drawn.sum()))
            updated = update(run, loss, batch, step)
        figures = self.judge.figures(self.judge.rewards(asked, answers), answers)
        return updated, {"score": scored.mean().item()} | figures

    def validation_loss(self, rewards: Tensor, answers: Answers) -> float:
        """The mean score, negated: the lower, the better the checkpoint."""
        return -self.scores_of(answers).mean().item()

    @torch.no_grad()
    def scores_of(self, answers: Answers) -> Tensor:
        """The reward model's scores (B,) of answers; one that does not end scores less than any other."""
        found = answers.log_probabilities.new_zeros(len(answers.tokens))
        with self.run.compute.autocast():
            for rows, numbers in answers.batches(self.settings.batch_size):
                found[numbers] = answer_scores(self.reward_model, rows)
        ended = torch.tensor(answers.ended, device=found.device)
        return torch.where(ended, found, found.min() - 1)

    @torch.no_grad()
    def scores_and_values(self, answers: Answers) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B,); log-probabilities by the reference (B, A); the values of the second head (B, A)."""
        model, reference, size = self.run.model, self.reference, self.settings.batch_size
        with self.run.compute.autocast():
            before = answers.measure(lambda rows: log_probabilities(reference, rows), size)
            values = answers.measure(lambda rows: scores(model, answer_features(model, rows)), size)
        return self.scores_of(answers), before, values


METHODS = {"dpo": DPO, "reward": RewardModel, "ppo": PPO, "grpo": GRPO}
Method = RewardModel | GRPO  # or DPO and PPO, which derive from them


def accuracy(margins: Tensor) -> float:
    """The share of pairs that are ranked rightly."""
    return (margins > 0).double().mean().item()


def in_words(figures: Figures) -> str:
    """Figures for a line on the terminal."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())


# ------------------------------------------------------------------------------------------------------------
# the loop, and what is done between updates


def tune_until_done(run: Run, state: RunState, requests: StopRequests) -> None:
    """Tune, and print how the run ended."""
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


def loop(run: Run, method: Method, state: RunState, requests: StopRequests) -> None:
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
        if due:
            values = {"loss": report.loss, "lr": report.learning_rate, "grad_norm": report.gradient_norm}
            run.record(state.step, "train", report.seconds, values | figures)
        run.console.progress(state.step, in_words(figures), due or report.loss is None)


def evaluate(run: Run, method: Method, state: RunState) -> None:
    """Evaluate, record and print the figures, and note whether this is the best so far."""
    figures = method.evaluate()
    run.record(state.step, "eval", state.seconds, figures)
    state.count_evaluation(figures["val_loss"])
    best = " (best)" if state.best_step == state.step else ""
    run.console.say(f"step {state.step}: evaluation: {in_words(figures)}{best}")


if __name__ == "__main__":
    run_script(tune, OPTIONS)
