"""Answers drawn from the model that is tuned, with the log-probabilities of their tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.conversation.answering import pad_left
from engine.generation import Sampling, new_cache, next_token, read, uniform_numbers
from engine.text.roles import ChatTokenizer
from engine.tuning.rows import Rows, make_rows
from model import GPT


@dataclass(frozen=True)
class Answers:
    """Answers to B prompts, of up to A tokens."""

    tokenizer: ChatTokenizer
    prompts: Sequence[np.ndarray]
    tokens: list[np.ndarray]  # of each answer, with the end of the turn or what else stopped it
    drawn: Tensor  # (B, A) bool: where an answer has a token
    log_probabilities: Tensor  # (B, A): of the tokens as they were drawn; 0 elsewhere
    texts: list[str]
    ended: list[bool]  # by themselves

    def batches(self, numbers: Sequence[int], batch_size: int) -> Iterator[tuple[Rows, list[int]]]:
        """Rows of the answers of these numbers, and these: short ones first, so that little is padded."""
        ordered = sorted(numbers, key=lambda number: len(self.prompts[number]) + len(self.tokens[number]))
        for first in range(0, len(ordered), batch_size):
            part = ordered[first : first + batch_size]
            prompts, answers = ([column[number] for number in part] for column in (self.prompts, self.tokens))
            yield make_rows(self.tokenizer, prompts, answers, self.drawn.device), part

    @torch.no_grad()
    def measure(self, of_tokens: Callable[[Rows], Tensor], batch_size: int) -> Tensor:
        """What a function gives for the tokens of answers, (N,) for rows, in the answers' places: (B, A)."""
        found = torch.zeros_like(self.log_probabilities)
        for rows, numbers in self.batches(range(len(self.tokens)), batch_size):
            part = torch.zeros_like(found[numbers])
            part[self.drawn[numbers]] = of_tokens(rows)
            found[numbers] = part
        return found


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
    device, n_tokens = model.token_embedding.weight.device, tokenizer.vocab_size
    text, starts = pad_left(tokenizer, prompts, device)
    special = torch.tensor([tokenizer.is_special(index) for index in range(n_tokens)], device=device)
    sampling, uniforms = Sampling(temperature), uniform_numbers(seed, 0, len(prompts), device)
    cache = new_cache(model, len(prompts), starts, 0)
    cache.size = text.shape[1] + limit
    logits = read(model, text, cache)
    goes_on = torch.ones(len(prompts), dtype=torch.bool, device=device)
    tokens, drawn, found = [], [], []  # of each step, (B,)
    while goes_on.any() and len(tokens) < limit:
        if tokens:
            logits = read(model, tokens[-1][:, None], cache)
        logits = logits[:, :n_tokens].to(model.head.weight.dtype)
        tokens.append(next_token(logits, text, starts, sampling, uniforms))
        drawn.append(goes_on)
        found.append(logits.log_softmax(dim=-1).gather(1, tokens[-1][:, None])[:, 0] * goes_on)
        goes_on = goes_on & ~special[tokens[-1]]
    was_drawn = torch.stack(drawn, dim=1)
    lengths = was_drawn.sum(dim=1).tolist()
    rows = [row[:n] for row, n in zip(torch.stack(tokens, dim=1).cpu().numpy(), lengths, strict=True)]
    return Answers(
        tokenizer, prompts, rows, was_drawn, torch.stack(found, dim=1),
        [tokenizer.decode(row[: len(row) - tokenizer.is_special(int(row[-1]))].tolist()) for row in rows],
        [bool(row[-1] == tokenizer.end_of_turn) for row in rows],
    )  # fmt: skip
