"""The losses of tuning, as functions of log-probabilities, scores and rewards alone."""

import torch
from torch import Tensor
from torch.nn import functional as F


def preference_margins(now: Tensor, reference: Tensor, beta: float) -> Tensor:
    """How much more than the reference a model prefers what is chosen, (B,).

    Both give log-probabilities (2, B) of the chosen and the rejected answers:
    β (log π(chosen) / π_ref(chosen) - log π(rejected) / π_ref(rejected)), Rafailov et al., 2023.
    """
    chosen, rejected = now - reference
    return beta * (chosen - rejected)


def ranking_losses(margins: Tensor) -> Tensor:
    """-log σ(margin), (B,): Bradley and Terry, 1952. ln 2 where nothing is preferred."""
    return -F.logsigmoid(margins)


def group_advantages(rewards: Tensor) -> Tensor:
    """Rewards (Q, G) of G answers to each question, less the question's mean; exactly 0 where all are equal.

    Shao et al., 2024, without the division by the deviation, which favours questions that are nearly always
    or nearly never answered rightly (Liu et al., 2025).
    """
    differ = rewards.amax(dim=1, keepdim=True) > rewards.amin(dim=1, keepdim=True)
    return torch.where(differ, rewards - rewards.mean(dim=1, keepdim=True), 0.0)


def policy_gradient_losses(log_probabilities: Tensor, advantages: Tensor) -> Tensor:
    """-A log π, token by token, (N,): Williams, 1992. Each token counts the same (Yu et al., 2025)."""
    return -advantages * log_probabilities


def returns_to_go(scores: Tensor, log_ratios: Tensor, beta: float) -> Tensor:
    """The return from each token of answers on, (B, A): the score (B,) less the cost of what follows.

    A token costs β times its log-ratio to the reference, (B, A) (Ouyang et al., 2022). Nothing is discounted.
    """
    return scores[:, None] - beta * log_ratios.flip(1).cumsum(1).flip(1)


def clipped_losses(now: Tensor, drawn: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's objective for each token, negated, (N,), from log-probabilities (N,) now and as drawn.

    A ratio gains nothing beyond 1 ± clip: Schulman et al., 2017.
    """
    ratios = (now - drawn).exp()
    return -torch.minimum(ratios * advantages, ratios.clamp(1 - clip, 1 + clip) * advantages)
