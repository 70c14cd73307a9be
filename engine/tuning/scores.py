"""A scalar head beside the model's own: what an answer is worth, or what is still to be expected of it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.tuning.rows import Rows
from model import GPT

WEIGHT = "score.weight"  # the parameter's name, and that of its part in a checkpoint before the dot


def add_score_head(model: GPT, tensors: Mapping[str, Tensor] | None = None) -> GPT:
    """The model with a head (1, C) that is saved beside it; it scores all 0 unless `tensors` hold it."""
    weight = model.final_norm.weight
    model.score = nn.Linear(model.config.n_embd, 1, bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        model.score.weight.copy_(tensors[WEIGHT] if tensors else torch.zeros(1, model.config.n_embd))
    return model


def scores(model: GPT, features: Tensor) -> Tensor:
    """Scores (…) of features (…, C)."""
    weight = model.get_parameter(WEIGHT)
    return F.linear(features, weight).squeeze(-1).to(weight.dtype)


def answer_scores(model: GPT, rows: Rows) -> Tensor:
    """The score (B,) of each answer, read where it ends."""
    features = model.features(rows.ids)
    return scores(model, features[torch.arange(len(rows.ids), device=features.device), rows.last])
