"""Answers drawn from the model that is tuned, with the log-probabilities of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.generation import Sampling, new_cache, next_token, read, uniform_numbers
from engine.text.roles import ChatTokenizer
from model import GPT


@dataclass(frozen=True)
class Answers:
    """Answers to so many prompts, row by row."""

    tokens: list[np.ndarray]  # with the end of the turn, or what else stopped it
    log_probabilities: list[Tensor]  # of these tokens, as they were drawn
    texts: list[str]
    ended: list[bool]  # by themselves


@torch.no_grad()
def draw_answers(
    model: GPT,
    tokenizer: ChatTokenizer,
    prompts: Sequence[np.ndarray],
    limit: int,
    seed: int,
    temperature: float = 1.0,
) -> Answers:
    """An answer of up to `limit` tokens to each prompt, ids up to the assistant's role; all at once.

    Row b draws from a stream of its own, a function of (seed, b). Any special token stops an answer. At
    temperature 1, as in tuning, tokens are drawn from the very distribution that is trained.
    """
    device = model.token_embedding.weight.device
    longest, n_tokens = max(map(len, prompts)), tokenizer.vocab_size
    padding = [longest - len(prompt) for prompt in prompts]  # on the left, where nothing sees it
    padded = [
        np.pad(prompt, (pad, 0), constant_values=tokenizer.separator)
        for prompt, pad in zip(prompts, padding, strict=True)
    ]
    starts = torch.tensor(padding, device=device)
    special = torch.tensor([tokenizer.is_special(index) for index in range(n_tokens)], device=device)
    sampling = Sampling(temperature)
    uniforms = uniform_numbers(seed, 0, len(prompts), device)
    cache = new_cache(model, len(prompts), starts, 0)
    text = torch.from_numpy(np.stack(padded)).to(device)  # (B, T)
    logits = read(model, text, cache)[:, :n_tokens]
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    drawn: list[Tensor] = []
    found: list[Tensor] = []
    for _ in range(limit):
        token = next_token(logits, text, starts, sampling, uniforms)
        logits = logits.to(model.head.weight.dtype)
        found.append(logits.log_softmax(dim=-1).gather(1, token[:, None])[:, 0])
        drawn.append(token)
        stopped |= special[token]
        if stopped.all():
            break
        logits = read(model, token[:, None], cache)[:, :n_tokens]
    return _until_stopped(tokenizer, torch.stack(drawn, dim=1), torch.stack(found, dim=1), special)


def _until_stopped(
    tokenizer: ChatTokenizer, drawn: Tensor, log_probabilities: Tensor, special: Tensor
) -> Answers:
    """The answers in rows of tokens (B, T), each up to its first special token."""
    stops = special[drawn]
    first = torch.where(stops.any(dim=1), stops.int().argmax(dim=1), drawn.shape[1]).tolist()
    tokens = [row[: end + 1] for row, end in zip(drawn.cpu().numpy(), first, strict=True)]
    return Answers(
        tokens,
        [row[: end + 1] for row, end in zip(log_probabilities, first, strict=True)],
        [tokenizer.decode(row[:end].tolist()) for row, end in zip(tokens, first, strict=True)],
        [bool(row[-1] == tokenizer.end_of_turn) for row in tokens],
    )
