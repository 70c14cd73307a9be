"""The losses of tuning, as functions of log-probabilities, scores and rewards alone."""

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
