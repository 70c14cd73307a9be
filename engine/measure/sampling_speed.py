"""The speed of sampling."""

import copy
import statistics
import time
from typing import Any

from engine.measure.training_speed import machine_limits, summary


def measure_sampling(options: Any) -> None:
    """Tokens per second with the cache, as sample.py draws them, against recomputing the text for each."""
    import torch

    from engine.kernels import keep_freed_memory, pack_for_generation
    from model import GPT, GPTConfig, count_parameters

    limits = machine_limits()
    keep_freed_memory()
    small = GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128, bias=False)
    large = GPTConfig(bias=False)
    for name, config, prompt, new, batches, dtype in (
        ("0.8 M", small, 1, 500, (1, 16), torch.float32),
        ("124 M fp32", large, 512, 40, (1,), torch.float32),
        ("124 M bf16", large, 512, 80, (1,), torch.bfloat16),
    ):
        model = GPT.empty(config, "cpu", dtype).eval()
        model.init_weights(0)
        plain = copy.deepcopy(model)
        pack_for_generation(model)
        weights = (
            sum(count_parameters(config).values()) - config.block_size * config.n_embd
        ) * plain.head.weight.itemsize
        for batch in batches:
            ids = torch.randint(config.vocab_size, (batch, prompt))
            rates, naive = [], []
            for _ in range(max(3, options.rounds // 3)):
                rates.append(batch / seconds_per_token(model, ids, new))
                naive.append(batch / seconds_without_cache(plain, ids, 20 if prompt == 1 else 1))
            ratio = statistics.median(ours / theirs for ours, theirs in zip(rates, naive, strict=True))
            read = statistics.median(rates) / batch * weights / limits["bandwidth"]
            print(
                f"{name}, {batch} at once: {summary(rates)} tokens/s with the cache, "
                f"{summary(naive)} without: {ratio:.1f} times as fast; "
                f"reads its weights at {read:.0%} of the memory's bandwidth"
            )


def seconds_per_token(model: Any, ids: Any, new: int) -> float:
    """Seconds of one decoding step after the prompt has been read."""
    tokens = model.stream(ids, new, temperature=0.8)
    next(tokens)
    began = time.perf_counter()
    count = sum(1 for _ in tokens)
    return (time.perf_counter() - began) / count


def seconds_without_cache(model: Any, ids: Any, new: int) -> float:
    """Seconds of a token where each one recomputes the last `block_size` positions."""
    import torch

    block = model.config.block_size
    ids = (
        torch.cat((ids, ids[:, :1].repeat(1, block)), dim=1)[:, : max(block, ids.shape[1])]
        if ids.shape[1] == 1
        else ids
    )
    began = time.perf_counter()
    with torch.inference_mode():
        for _ in range(new):
            logits = model.head(model.features(ids[:, -block:])[:, -1])
            ids = torch.cat((ids, logits.float().softmax(-1).multinomial(1)), dim=1)
    return (time.perf_counter() - began) / new
