"""A model made ready to generate: on its device, in the precision that is fastest there and close enough."""

import torch
from torch import Tensor

from engine import kernels
from engine.device import Compute, choose_dtype, choose_threads, find_device
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
    name = "float32" if dtype == "int8" else choose_dtype(dtype, device)
    Compute(device.type, name, False, choose_threads(threads, 1)).apply()
    model = found.model(device, getattr(torch, name)).eval()
    if dtype == "int8":
        kernels.quantize(model)
    elif dtype == "auto" and device.type == "cpu" and parameters(found) >= SMALLEST_TO_ROUND:
        return round_weights(found, model)
    return kernels.install(model, inference=True), None


def round_weights(found: Pretrained, exact: GPT) -> tuple[GPT, str | None]:
    """The fastest of int8, bf16 and the exact model itself whose divergence is at most LARGEST_DIVERGENCE."""
    kernels.install(exact, inference=True)
    for dtype, supported in (("int8", kernels.can_quantize), ("bfloat16", kernels.can_block)):
        if not supported():
            continue
        if dtype == "int8":
            model = kernels.quantize(found.model(torch.device("cpu"), torch.float32).eval())
        else:
            model = found.model(torch.device("cpu"), torch.bfloat16).eval()
        distance = divergence(exact, kernels.install(model, inference=True))
        if distance <= LARGEST_DIVERGENCE:
            return model, (
                f"weights in {dtype} for speed; on average the next token's distribution is {distance:.1g} "
                "nats from float32's, which --dtype=float32 brings back"
            )
    return exact, None


def parameters(found: Pretrained) -> int:
    """How many the model has."""
    return sum(count_parameters(found.config).values())


@torch.inference_mode()
def divergence(exact: GPT, rounded: GPT) -> float:
    """The mean KL divergence in nats of the rounded model's next token from the exact one's.

    Measured on tokens drawn at random, always the same ones; they strain a model more than text does.
    """
    length = min(CHECKED_TOKENS, exact.config.block_size)
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(exact.config.vocab_size, (1, length), generator=stream)

    def log_probabilities(model: GPT) -> Tensor:
        return model(ids).float().log_softmax(dim=-1)

    expected, got = log_probabilities(exact), log_probabilities(rounded)
    return (expected.exp() * (expected - got)).sum(dim=-1).mean().item()
