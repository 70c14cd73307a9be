"""What goes on inside a GPT while it reads a text: attention weights, surprise, each layer's guess.

Everything is taken from one plain pass of model.py. The pass is watched, not changed: the model's own
code runs, and what it hands to `scaled_dot_product_attention` is read on the way. A model that nobody
inspects does nothing more.

    seen = inspect(model, ids)          # ids (T,)
    seen.attention                      # (L, H, T, T); rows sum to 1, nothing above the diagonal
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from model import GPT, causal_mask


@dataclass(frozen=True)
class Inspection:
    """A text of T tokens as the model saw it; L layers, H heads, C channels, V tokens of the tokenizer."""

    ids: Tensor  # (T,)
    attention: Tensor  # (L, H, T, T)
    streams: Tensor  # (L + 1, T, C): the residual stream before the first block and after each
    last_logits: Tensor  # (V,)
    surprise: list[float | None]  # nats, -ln of the probability that each token had; None for the first


class WatchAttention(TorchFunctionMode):
    """While active, keeps the weights of each `scaled_dot_product_attention` call, (B, H, T, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.weights.append(attention_weights(args[0], args[1], args[3] if len(args) > 3 else None))
        return func(*args, **(kwargs or {}))


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ / √D + mask) of (B, H, T, D) (Vaswani et al., 2017), (B, H, T, T); None: causal."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is None:
        mask = causal_mask(query.shape[-2], query.dtype, query.device)
    return (scores + mask).softmax(dim=-1)


@torch.inference_mode()
def inspect(model: GPT, ids: Tensor, n_tokens: int | None = None) -> Inspection:
    """Read ids (T,) and keep what happens. `n_tokens` is the tokenizer's vocabulary where it is smaller.

    Raises ValueError for a text that is empty or longer than `block_size`.
    """
    if len(ids) == 0:
        raise ValueError("the text is empty; there is nothing to look at")
    model.eval()
    kernels = [block.attention.kernel for block in model.blocks]
    model.use_attention_kernel("sdpa")
    streams: list[Tensor] = []
    hooks = [
        model.blocks[0].register_forward_pre_hook(lambda block, arguments: streams.append(arguments[0][0]))
    ]
    hooks += [
        block.register_forward_hook(lambda block, arguments, output: streams.append(output[0]))
        for block in model.blocks
    ]
    try:
        with WatchAttention() as watch:
            features = model.features(ids[None])[0]  # (T, C)
    finally:
        for hook in hooks:
            hook.remove()
        for block, kernel in zip(model.blocks, kernels, strict=True):
            block.attention.kernel = kernel
    attention = torch.cat(watch.weights)
    assert attention.shape[:2] == (model.config.n_layer, model.config.n_head), (
        "every layer's attention was seen"
    )
    logits = model.head(features)[:, :n_tokens]
    losses = F.cross_entropy(logits[:-1].double(), ids[1:], reduction="none").tolist()
    return Inspection(ids, attention, torch.stack(streams), logits[-1], [None, *losses])


@torch.inference_mode()
def layer_guesses(
    model: GPT, seen: Inspection, position: int, count: int, n_tokens: int
) -> list[list[tuple]]:
    """What each layer would predict if it were the last: L + 1 lists of (id, probability).

    The final norm and the head are applied to the residual stream at `position` ("logit lens",
    nostalgebraist, 2020).
    """
    logits = model.head(model.final_norm(seen.streams[:, position]))[:, :n_tokens]  # (L + 1, V)
    best = logits.double().softmax(dim=-1).topk(min(count, n_tokens))
    return [
        list(zip(ids, probabilities, strict=True))
        for ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@torch.inference_mode()
def neighbours(model: GPT, token: int, count: int, n_tokens: int) -> list[tuple[int, float]]:
    """The tokens whose embeddings point most nearly the same way, with the cosine, the nearest first."""
    directions = F.normalize(model.token_embedding.weight[:n_tokens].float(), dim=-1)
    cosines = directions @ directions[token]
    cosines[token] = -math.inf  # the nearest is the token itself
    best = cosines.topk(min(count, n_tokens - 1))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
