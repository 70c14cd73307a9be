"""Look inside a GPT while it reads a text: attention weights, surprise, each layer's prediction.

One plain forward pass of model.py runs, and hooks record what it computes.

    seen = inspect(model, ids)          # ids (T,)
    seen.attention                      # (L, H, T, T); rows sum to 1, nothing above the diagonal

L counts the layers that have attention (all of them in GPT-2), H the heads of one layer.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import UserError
from engine.kernels import modules_with
from model import GPT


@dataclass(frozen=True)
class Inspection:
    """What the model computed for a text of T tokens; C channels, V tokens of the tokenizer."""

    ids: Tensor  # (T,)
    attention: Tensor  # (L, H, T, T)
    streams: Tensor  # (blocks + 1, T, C): the residual stream before the first block and after each
    last_logits: Tensor  # (V,)
    surprise: list[float | None]  # nats, -ln of the probability that each token had; None for the first


@contextmanager
def watch_attention(model: GPT) -> Iterator[list[Tensor]]:
    """Record the attention weights (B, H, T, T) of each layer, in the order of the forward pass.

    Any attention is linear in the values, so with the identity matrix as values it returns its weights.
    """
    weights: list[Tensor] = []

    def attend_and_keep(
        attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *mask_and_dropout: Any
    ) -> Tensor:
        """The attention's output, as it is; its weights are appended to the list."""
        T = value.shape[-2]
        identity = torch.eye(T, dtype=value.dtype, device=value.device).expand(*value.shape[:-1], T)
        weights.append(attend(query, key, identity, mask_and_dropout[0], 0.0))
        return attend(query, key, value, *mask_and_dropout)

    plain = {layer: layer.attend for layer in modules_with(model, "attend")}
    try:
        for layer, attend in plain.items():
            layer.attend = functools.partial(attend_and_keep, attend)
        yield weights
    finally:
        for layer, attend in plain.items():
            layer.attend = attend


@contextmanager
def watch_streams(model: GPT) -> Iterator[list[Tensor]]:
    """Record the residual stream (B, T, C) before the first block and after each block."""
    streams: list[Tensor] = []
    hooks = [model.blocks[0].register_forward_pre_hook(lambda _, given: streams.append(given[0]))]
    for block in model.blocks:
        hooks.append(block.register_forward_hook(lambda *given: streams.append(given[-1])))
    try:
        yield streams
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def inspect(model: GPT, ids: Tensor, n_tokens: int | None = None) -> Inspection:
    """Run the model on ids (T,) and return what it computed.

    `n_tokens` is the tokenizer's vocabulary if the model's is padded. Raises ValueError for a text that is
    empty or longer than `block_size`, and UserError for a model whose layers differ in their heads.
    """
    if len(ids) == 0:
        raise ValueError("the text is empty; there is nothing to look at")
    was_training = model.training
    model.eval()
    try:
        with watch_attention(model) as weights, watch_streams(model) as streams:
            features = model.features(ids[None])[0]  # (T, C)
    finally:
        model.train(was_training)
    logits = model.head(features)[:, :n_tokens]
    losses = F.cross_entropy(logits[:-1].double(), ids[1:], reduction="none").tolist()
    return Inspection(ids, _stack_layers(weights, ids), torch.cat(streams), logits[-1], [None, *losses])


def _stack_layers(weights: list[Tensor], ids: Tensor) -> Tensor:
    """The weights of all layers, (1, H, T, T) each, as (L, H, T, T); (0, 0, T, T) for none."""
    if not weights:
        return torch.zeros(0, 0, len(ids), len(ids), device=ids.device)
    heads = sorted({layer.shape[1] for layer in weights})
    if len(heads) > 1:
        numbers = " and ".join(map(str, heads))
        raise UserError(f"this model's layers have {numbers} heads; only one number for all can be shown")
    return torch.cat(weights)


@torch.inference_mode()
def layer_guesses(
    model: GPT, seen: Inspection, position: int, count: int, n_tokens: int
) -> list[list[tuple[int, float]]]:
    """What each layer would predict if it were the last: a list of (id, probability), most probable first.

    The final norm and the head are applied to the residual stream at `position` ("logit lens",
    nostalgebraist, 2020). The first list is that of the embedding.
    """
    logits = model.head(model.final_norm(seen.streams[:, position]))[:, :n_tokens]  # (blocks + 1, V)
    best = logits.double().softmax(dim=-1).topk(min(count, n_tokens))
    return [
        list(zip(ids, probabilities, strict=True))
        for ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@torch.inference_mode()
def neighbours(model: GPT, token: int, count: int, n_tokens: int) -> list[tuple[int, float]]:
    """The tokens with the most similar embeddings, and the cosines, most similar first."""
    directions = F.normalize(model.token_embedding.weight[:n_tokens].float(), dim=-1)
    cosines = directions @ directions[token]
    cosines[token] = -math.inf  # the nearest is the token itself
    best = cosines.topk(min(count, n_tokens - 1))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
