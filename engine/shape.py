"""Parameters matrix by matrix, and the memory that they take."""

import dataclasses
from typing import Any

from engine.settings import TrainSettings
from model import GPTConfig

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
    """The model's shape. A large vocabulary is padded to a multiple of 64, which GPUs multiply faster."""
    if vocab_size > 1024:
        vocab_size = -(-vocab_size // 64) * 64
    return GPTConfig(
        vocab_size=vocab_size,
        block_size=settings.block_size,
        n_layer=settings.n_layer,
        n_head=settings.n_head,
        n_embd=settings.n_embd,
        dropout=settings.dropout,
        bias=settings.bias,
        activation=settings.activation,
        tied_head=settings.tied_head,
        position=settings.position,
        qk_norm=settings.qk_norm,
        zero_init=settings.zero_init,
        token_shift=settings.token_shift,
        separator=separator,
    )
