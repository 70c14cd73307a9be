"""The shape of a model: built empty, counted, and what its settings say."""

import dataclasses
from typing import Any

import torch

from engine.errors import UserError
from engine.settings import FROM_DATA, TrainSettings
from model import GPT, GPTConfig

MATRICES = ("embedding", "query", "key", "value", "output", "up", "down", "unembedding")
APART = ("positions", "norms", "biases", "shift")
BYTES = {"float32": 4, "bfloat16": 2}


def count_by_matrix(config: GPTConfig) -> dict[str, int]:
    """Parameters by matrix, all layers together, then the rest.

    A tied head has no matrix of its own, so its unembedding is 0. The sum is what the module holds.
    """
    width, layers, bias = config.n_embd, config.n_layer, int(config.bias)
    square = layers * width * width
    return {
        "embedding": config.vocab_size * width,
        "query": square,
        "key": square,
        "value": square,
        "output": square,
        "up": 4 * square,
        "down": 4 * square,
        "unembedding": 0 if config.tied_head else config.vocab_size * width,
        "positions": config.block_size * width if config.position == "learned" else 0,
        "norms": (2 * layers + 1) * width,
        "biases": bias * (layers * 9 * width + (2 * layers + 1) * width),
        "shift": width if config.token_shift else 0,
    }


def training_memory(config: GPTConfig, parameters: int, dtype: str) -> tuple[int, int]:
    """Bytes to train: (weights with gradients and AdamW's two moments, activations of one full sequence).

    Weights, gradients and moments stay float32; bfloat16 adds a copy of the weights for the products.
    Activations without recomputation: about 17 numbers for each channel of a block (Korthikanti et al., 2022,
    with fused attention), and the logits with their gradient in float32. An estimate, good to some 20%.
    """
    state = parameters * (16 + (2 if dtype == "bfloat16" else 0))
    blocks = 17 * config.n_layer * config.block_size * config.n_embd * BYTES[dtype]
    return state, blocks + 8 * config.block_size * config.vocab_size


def sampling_memory(config: GPTConfig, parameters: int, dtype: str) -> tuple[int, int]:
    """Bytes to sample: (weights, keys and values of one full sequence)."""
    cache = 2 * config.n_layer * config.block_size * config.n_embd
    return parameters * BYTES[dtype], cache * BYTES[dtype]


def shape_settings(config: GPTConfig) -> dict[str, Any]:
    """The settings that a model's shape determines."""
    names = {field.name for field in dataclasses.fields(TrainSettings)} - {"dropout"}
    return {name: value for name, value in dataclasses.asdict(config).items() if name in names}


def model_config(settings: TrainSettings, vocab_size: int, separator: int | None = None) -> GPTConfig:
    """The model's shape. A large vocabulary is padded to a multiple of 64, which GPUs multiply faster.

    Raises UserError for settings that do not fit together.
    """
    if vocab_size > 1024:
        vocab_size = -(-vocab_size // 64) * 64
    shape = {
        name: getattr(settings, name) for name in GPTConfig.__dataclass_fields__ if name not in FROM_DATA
    }
    try:
        return GPTConfig(vocab_size=vocab_size, separator=separator, **shape)
    except ValueError as error:
        raise UserError(str(error)) from error


def empty_model(config: GPTConfig, device: torch.device | str, dtype: torch.dtype = torch.float32) -> GPT:
    """A GPT on a device, with memory for its weights and nothing meaningful in it."""
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    model.to_empty(device=device)
    if config.tied_head:
        model.head.weight = model.token_embedding.weight
    return model


def count_parameters(config: GPTConfig) -> dict[str, int]:
    """Parameters by role, from the configuration alone; their sum is the number the module holds."""
    width, layers, bias = config.n_embd, config.n_layer, int(config.bias)
    return {
        "token_embedding": config.vocab_size * width,
        "position_embedding": config.block_size * width if config.position == "learned" else 0,
        "token_shift": width if config.token_shift else 0,
        "attention": layers * (4 * width * width + bias * 4 * width),
        "mlp": layers * (8 * width * width + bias * 5 * width),
        "norms": (2 * layers + 1) * (1 + bias) * width,
        "head": 0 if config.tied_head else config.vocab_size * width,
    }


def flops_per_token(config: GPTConfig, length: int | None = None) -> int:
    """Floating-point operations of one training token, forward and backward: 6 N + 12 L C T.

    N leaves out the position embedding, which is added and not multiplied (and the token embedding where an
    untied head does its multiplications). The formula is that of PaLM (Chowdhery et al., 2022, appendix B).
    `length` is T, by default `block_size`.
    """
    counts = count_parameters(config)
    looked_up = counts["position_embedding"] + (0 if config.tied_head else counts["token_embedding"])
    context = config.block_size if length is None else length
    return 6 * (sum(counts.values()) - looked_up) + 12 * config.n_layer * config.n_embd * context
