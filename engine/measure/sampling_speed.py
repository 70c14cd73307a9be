"""Measure sampling with the KV cache against recomputing the whole text for each token, and transformers."""

import copy
import importlib.util
import statistics
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine import kernels
from engine.device import find_device
from engine.generation import Sampling, stream
from engine.measure.timing import machine_limits, ratios, seconds_of, summary, synchronize, take_turns
from engine.shape import count_parameters, empty_model
from model import GPT, GPTConfig

SMALL = GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128, bias=False)
GPT2 = GPTConfig(bias=True, activation="gelu_tanh")
# Name, shape, types of the weights, tokens of the prompt, new tokens, sequences at once.
CASES = (
    ("0.8 M", SMALL, ("float32",), 1, 500, 1),
    ("0.8 M", SMALL, ("float32",), 1, 500, 16),
    ("124 M", GPT2, ("float32", "bfloat16", "int8"), 512, 40, 1),
    ("124 M", GPT2, ("float32", "bfloat16", "int8"), 512, 20, 4),
)


def measure_sampling(options: Namespace) -> None:
    """Print tokens per second with the cache, without it, and of transformers, measured in turns."""
    device = find_device(options.device)
    bandwidth = machine_limits(device)["bandwidth"]
    for name, config, dtypes, prompt, new, batch in CASES:
        print(f"{name}, {batch} at once, tokens per second:")
        ids = torch.randint(config.vocab_size, (batch, prompt), device=device)
        measure_case(config, dtypes, ids, new, max(3, options.rounds // 3), bandwidth)


def measure_case(
    config: GPTConfig, dtypes: Sequence[str], ids: Tensor, new: int, rounds: int, bandwidth: float
) -> None:
    """Print a line for each type of the weights and each baseline."""
    plain = empty_model(config, ids.device).eval()
    plain.init_weights(0)
    baselines: dict[str, Callable[[], float]] = {
        "no cache": partial(seconds_without_cache, plain, ids, 20 if ids.shape[1] == 1 else 1)
    }
    # Theirs has no way past the end of the block.
    if ids.shape[1] + new <= config.block_size and importlib.util.find_spec("transformers"):
        theirs = transformers_model(config, ids.device)
        baselines["transformers in bfloat16"] = partial(seconds_of_transformers, theirs, ids, new)
    models = {dtype: model for dtype in dtypes if (model := fast_model(plain, dtype)) is not None}
    ours = {dtype: partial(seconds_per_token, model, ids, new) for dtype, model in models.items()}
    times = take_turns(ours | baselines, rounds)
    for kind, seconds in times.items():
        line = f"    {kind}: {summary([len(ids) / one for one in seconds])}"
        if kind in ours:
            for other in baselines:
                line += f", {statistics.median(ratios(times[other], seconds)):.2f} times as fast as {other}"
            share = weight_bytes(config, kind) / statistics.median(seconds) / bandwidth
            line += f"; reads its weights at {share:.0%} of the memory's bandwidth"
        print(line)


def weight_bytes(config: GPTConfig, dtype: str) -> int:
    """Bytes of the weights that one token reads."""
    counts = count_parameters(config)
    itemsize = 1 if dtype == "int8" else getattr(torch, dtype).itemsize
    return (sum(counts.values()) - counts["positions"]) * itemsize


def fast_model(plain: GPT, dtype: str) -> GPT | None:
    """A copy with the fastest kernels and weights of this type; None where the device has no int8."""
    model = copy.deepcopy(plain)
    if dtype != "int8":
        model = model.to(getattr(torch, dtype))
    elif plain.token_embedding.weight.device.type == "cpu" and kernels.can_quantize():
        model = kernels.quantize(model)
    else:
        return None
    return kernels.install(model, inference=True)


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


def transformers_model(config: GPTConfig, device: torch.device) -> Any:
    """GPT-2 of this shape in the library transformers, in bf16; it has biases and GELU's tanh form."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    return model.eval().to(device, torch.bfloat16)


@torch.inference_mode()
def seconds_of_transformers(model: Any, ids: Tensor, new: int) -> float:
    """Seconds per token of its `generate` with its own cache, without those of the prompt."""

    def write(tokens: int) -> None:
        """Read the prompt and draw this many tokens."""
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=True,
            temperature=0.8,
            pad_token_id=0,
        )

    prompt = seconds_of(lambda: write(1), ids.device)
    return (seconds_of(lambda: write(new), ids.device) - prompt) / (new - 1)
