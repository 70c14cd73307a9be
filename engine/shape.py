"""The shape of a model: built empty, counted, and what its settings say."""

import dataclasses
import functools
from typing import Any

import torch

from engine.errors import UserError
from engine.settings import FROM_DATA, TrainSettings
from model import GPT, GPTConfig

MATRICES = ("embedding", "query", "key", "value", "output", "up", "down", "unembedding")
APART = ("positions", "norms", "biases", "shift")
# The role of a parameter by the end of its name; the first match counts.
ROLES = {
    "bias": "biases",
    "norm.weight": "norms",
    "token_embedding.weight": "embedding",
    "position_embedding.weight": "positions",
    "token_shift": "shift",
    "attention.out.weight": "output",
    "mlp.up.weight": "up",
    "mlp.down.weight": "down",
    "head.weight": "unembedding",
}


@functools.lru_cache
def count_parameters(config: GPTConfig) -> dict[str, int]:
    """Number of parameters by role, summed over layers, counted on an empty model.

    A tied head has no matrix of its own, so its unembedding is 0. Parameters without a known role are
    "other", an entry that exists only if there are any. The result is cached: do not change it.
    """
    with torch.device("meta"):
        model = GPT(config)
    counts: dict[str, int] = dict.fromkeys((*MATRICES, *APART), 0)
    for name, parameter in model.named_parameters():
        if name.endswith("attention.qkv.weight") and parameter.shape[0] == 3 * parameter.shape[1]:
            for role, part in zip(("query", "key", "value"), parameter.chunk(3), strict=True):
                counts[role] += part.numel()
        else:
            role = next((role for ending, role in ROLES.items() if name.endswith(ending)), "other")
            counts[role] = counts.get(role, 0) + parameter.numel()
    return counts


def flops_per_token(config: GPTConfig, length: int | None = None) -> int:
    """Floating-point operations of one training token, forward and backward: 6 N + 12 L C T.

    N excludes embeddings, which are looked up and not multiplied; a tied token embedding counts as the head.
    The formula is that of PaLM (Chowdhery et al., 2022, appendix B). `length` is T, by default `block_size`.
    """
    counts = count_parameters(config)
    embeddings = counts["positions"] + (0 if config.tied_head else counts["embedding"])
    context = config.block_size if length is None else length
    return 6 * (sum(counts.values()) - embeddings) + 12 * config.n_layer * config.n_embd * context


def shape_settings(config: GPTConfig) -> dict[str, Any]:
    """The settings that a model's shape determines."""
    names = {field.name for field in dataclasses.fields(TrainSettings)} - {"dropout"}
    return {name: value for name, value in vars(config).items() if name in names}


def model_config(settings: TrainSettings, vocab_size: int, separator: int | None = None) -> GPTConfig:
    """The model's shape. A large vocabulary is padded to a multiple of 64, which GPUs multiply faster.

    Raises UserError for settings that do not fit together.
    """
    names = (field.name for field in dataclasses.fields(GPTConfig) if field.name not in FROM_DATA)
    shape = {name: getattr(settings, name) for name in names}
    try:
        return GPTConfig(vocab_size=padded(vocab_size), separator=separator, **shape)
    except ValueError as error:
        raise UserError(str(error)) from error


def padded(vocab_size: int) -> int:
    """The rows of the embedding for a vocabulary: a large one's to a multiple of 64."""
    return vocab_size if vocab_size <= 1024 else -(-vocab_size // 64) * 64


def empty_model(config: GPTConfig, device: torch.device | str, dtype: torch.dtype = torch.float32) -> GPT:
    """A GPT on a device, with memory for its weights and nothing meaningful in it."""
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    model.to_empty(device=device)
    if config.tied_head:
        model.head.weight = model.token_embedding.weight
    return model
