"""A model made ready to generate: on its device, in the precision that is fastest there and close enough."""

import torch
from torch import Tensor

from engine import kernels
from engine.device import Compute, choose_dtype, choose_threads, find_device
from engine.generation import KVCache
from engine.shape import count_parameters
from engine.weights.pretrained import Pretrained
from model import GPT

SMALLEST_TO_ROUND = 2**24  # parameters; on a CPU smaller models stay in its caches, and gain nothing
LARGEST_DIVERGENCE = 2e-3  # nats, of the next token's distribution from that of float32, on average
CHECKED_TOKENS = 128  # on which it is measured


def ready_to_generate(
    found: Pretrained, device_name: str, dtype: str, threads: int | None
) -> tuple[GPT, str | None]:
    """The model with the fastest kernels, and a remark on its precision if it was chosen here.

    With `dtype` "auto" a large model on a CPU gets weights in int8 or bf16, where the processor computes in
    them and the next token's distribution hardly changes. Nothing is timed, so a machine always makes the
    same choice. Raises UserError for what this machine does not have.
    """
    device = find_device(device_name)
    if dtype == "int8":
        kernels.require_int8(device)
    chosen = "int8" if dtype == "int8" else choose_dtype(dtype, device)
    Compute(device.type, "float32" if chosen == "int8" else chosen, False, choose_threads(threads, 1)).apply()
    is_large = sum(count_parameters(found.config).values()) >= SMALLEST_TO_ROUND
    if dtype == "auto" and device.type == "cpu" and is_large:
        return round_weights(found, device)
    return load(found, device, chosen), None


def round_weights(found: Pretrained, device: torch.device) -> tuple[GPT, str | None]:
    """The model in the first of int8, bf16 and float32 that this CPU supports and that diverges little.

    One model at a time is in memory, beside the tensors that it is made of.
    """
    expected = log_probabilities(found.model(device, torch.float32).eval())
    for dtype, is_supported in (("int8", kernels.can_quantize), ("bfloat16", kernels.can_block)):
        if is_supported():
            model = load(found, device, dtype)
            distance = divergence(expected, log_probabilities(model))
            if distance <= LARGEST_DIVERGENCE:
                return model, (
                    f"weights in {dtype} for speed: a seed may give other text than in float32 "
                    f"(KL divergence of the next token {distance:.4f} nats on average); "
                    "--dtype=float32 for the exact weights"
                )
    return load(found, device, "float32"), None


def load(found: Pretrained, device: torch.device, dtype: str) -> GPT:
    """The model with weights of this type and the fastest kernels."""
    model = found.model(device, torch.float32 if dtype == "int8" else getattr(torch, dtype)).eval()
    if dtype == "int8":
        kernels.quantize(model)
    return kernels.install(model, inference=True)


@torch.inference_mode()
def log_probabilities(model: GPT) -> Tensor:
    """Those of the next token after each of T tokens, (T, V), read through a cache as in generation.

    The tokens are drawn at random, always the same ones.
    """
    length = min(CHECKED_TOKENS, model.config.block_size)
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, length), generator=stream)
    return model.head(model.features(ids, KVCache(model, 1))[0]).float().log_softmax(dim=-1)


def divergence(expected: Tensor, got: Tensor) -> float:
    """The mean KL divergence in nats of distributions `got` from `expected`, both as logarithms (T, V)."""
    return (expected.exp() * (expected - got)).sum(dim=-1).mean().item()
