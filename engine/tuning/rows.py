"""Conversations with their answers as rows of a batch; a model's log-probabilities and scores of the answers.

B rows of T tokens, padded on the right, hold N tokens of answers. Values of these tokens are flat, (N,), row
after row, so that nothing is computed for questions and padding.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.text.roles import ChatTokenizer
from model import GPT

SCORE = "score.weight"  # the scalar head's parameter, which is saved as a part of its own


class Rows(NamedTuple):
    """A batch of prompts with answers."""

    ids: Tensor  # (B, T)
    answered: Tensor  # (B, T - 1) bool: position t predicts a token of the answer
    tokens: Tensor  # (N,): the answers' tokens
    row_of: Tensor  # (N,): the rows in which they stand
    last: Tensor  # (B,): where each row ends
    n_tokens: int  # of the tokenizer, where the model's vocabulary is padded


def make_rows(
    tokenizer: ChatTokenizer,
    prompts: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    device: torch.device | str,
) -> Rows:
    """Rows of prompts, ids up to the assistant's role, and answers, ids with the end of the turn."""
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    ids = np.full((len(prompts), max(lengths)), tokenizer.end_of_turn)
    answered = np.zeros((len(prompts), max(lengths) - 1), dtype=bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : lengths[row]] = np.concatenate((prompt, answer))
        answered[row, len(prompt) - 1 : lengths[row] - 1] = True
    columns = ids, answered, ids[:, 1:][answered], answered.nonzero()[0], np.array(lengths) - 1
    ids, answered, tokens, row_of, last = (torch.from_numpy(array).to(device) for array in columns)
    return Rows(ids, answered, tokens, row_of, last, tokenizer.vocab_size)


def answer_features(model: GPT, rows: Rows) -> Tensor:
    """The features (N, C) that each token of the answers is predicted from."""
    return model.features(rows.ids[:, :-1])[rows.answered]


def log_probabilities(model: GPT, rows: Rows, features: Tensor | None = None) -> Tensor:
    """The log-probability (N,) of each token of the answers; `features` (N, C), if already there."""
    features = answer_features(model, rows) if features is None else features
    logits = model.head(features)[:, : rows.n_tokens].to(model.head.weight.dtype)
    return -F.cross_entropy(logits, rows.tokens, reduction="none")


def log_probabilities_of_pairs(model: GPT, rows: Rows) -> Tensor:
    """The log-probability of each answer, (2, B), in rows of B chosen answers and then B rejected ones."""
    of_tokens = log_probabilities(model, rows)
    return of_tokens.new_zeros(len(rows.ids)).index_add(0, rows.row_of, of_tokens).view(2, -1)


# ------------------------------------------------------------------------------------------------------------
# a scalar head beside the model's own


def add_score_head(model: GPT, tensors: Mapping[str, Tensor] | None = None) -> GPT:
    """Give a model a scalar head (1, C), zero unless `tensors` hold it; returns the model."""
    weight = model.final_norm.weight
    model.score = nn.Linear(model.config.n_embd, 1, bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        model.score.weight.copy_(tensors[SCORE] if tensors else torch.zeros(1, model.config.n_embd))
    return model


def scores(model: GPT, features: Tensor) -> Tensor:
    """Scores (…) of features (…, C)."""
    weight = model.get_parameter(SCORE)
    return F.linear(features, weight).squeeze(-1).to(weight.dtype)


def answer_scores(model: GPT, rows: Rows) -> Tensor:
    """The score (B,) of each answer, read where it ends."""
    features = model.features(rows.ids)
    return scores(model, features[torch.arange(len(rows.ids), device=features.device), rows.last])
