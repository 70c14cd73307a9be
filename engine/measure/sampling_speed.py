"""Measure sampling with the KV cache against recomputing the whole text for each token."""

import copy
import statistics
from argparse import Namespace

import torch
from torch import Tensor

from engine import kernels
from engine.device import find_device
from engine.generation import Sampling, stream
from engine.measure.timing import machine_limits, ratios, seconds_of, summary, synchronize
from engine.shape import count_parameters, empty_model
from model import GPT, GPTConfig

SMALL = GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128, bias=False)
GPT2 = GPTConfig(bias=False)
# Name, shape, type of the weights, tokens of the prompt, new tokens, and sequences at once.
CASES = (
    ("0.8 M", SMALL, torch.float32, 1, 500, 1),
    ("0.8 M", SMALL, torch.float32, 1, 500, 16),
    ("124 M fp32", GPT2, torch.float32, 512, 40, 1),
    ("124 M bf16", GPT2, torch.bfloat16, 512, 80, 1),
)


def measure_sampling(options: Namespace) -> None:
    """Print tokens per second with and without the cache, measured in turns."""
    device = find_device(options.device)
    limits = machine_limits(device)
    for name, config, dtype, prompt, new, batch in CASES:
        plain = empty_model(config, device, dtype).eval()
        plain.init_weights(0)
        fast = kernels.install(copy.deepcopy(plain), inference=True)
        ids = torch.randint(config.vocab_size, (batch, prompt), device=device)
        rates, naive = [], []
        for _ in range(max(3, options.rounds // 3)):
            rates.append(batch / seconds_per_token(fast, ids, new))
            naive.append(batch / seconds_without_cache(plain, ids, 20 if prompt == 1 else 1))
        ratio = statistics.median(ratios(rates, naive))
        counts = count_parameters(config)
        weights = (sum(counts.values()) - counts["positions"]) * dtype.itemsize
        read = statistics.median(rates) / batch * weights / limits["bandwidth"]
        print(
            f"{name}, {batch} at once: {summary(rates)} tokens/s with the cache, "
            f"{summary(naive)} without: {ratio:.1f} times as fast; "
            f"reads its weights at {read:.0%} of the memory's bandwidth"
        )


def seconds_per_token(model: GPT, ids: Tensor, new: int) -> float:
    """Seconds per token once the prompt is in the cache."""
    tokens = stream(model, ids, new, Sampling(temperature=0.8))
    next(tokens)
    synchronize(ids.device)
    return seconds_of(lambda: list(tokens), ids.device) / (new - 1)


@torch.inference_mode()
def seconds_without_cache(model: GPT, ids: Tensor, new: int) -> float:
    """Seconds per token without a cache, for a text of a full block."""
    block = model.config.block_size
    text = ids.repeat(1, block) if ids.shape[1] == 1 else ids

    def draw() -> None:
        nonlocal text
        for _ in range(new):
            logits = model.head(model.features(text[:, -block:])[:, -1])
            text = torch.cat((text, logits.float().softmax(-1).multinomial(1)), dim=1)

    synchronize(ids.device)
    return seconds_of(draw, ids.device) / new
