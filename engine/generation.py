"""Generate text token by token: KV cache, sampling, streaming.

    ids = generate(model, prompt, 100, Sampling(temperature=0.8, top_k=200), seed=7)      # (B, T + 100)
    for token in stream(model, prompt, 100): ...                                           # (B,) each

`GPT.generate` in model.py is the specification: up to `block_size` tokens both see the same logits and hand
the same probabilities to the draw.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import kernels
from engine.text.tokenizer import Tokenizer
from model import GPT, derive_seed, next_token_probabilities

UNIFORMS_AT_ONCE = 256  # random numbers of a sample that are drawn together
REPLACEMENT = "\ufffd"  # what bytes that are no UTF-8 decode to


@dataclass(frozen=True)
class Sampling:
    """Options for drawing the next token. Raises ValueError for invalid ones."""

    temperature: float = 1.0  # 0: always the most probable token
    top_k: int | None = None  # among the k most probable tokens, and ties with the last of them
    top_p: float | None = None  # among the fewest most probable that reach p together (Holtzman et al., 2020)
    min_p: float | None = None  # among those this share as probable as the first (Nguyen et al., 2024)
    repetition_penalty: float = 1.0  # divides the logits of tokens in the text (Keskar et al., 2019)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (most probable token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or None to keep every token")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} is {share}; it must be above 0 and at most 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; it must be above 0, and 1 for none"
            )

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution (B, V) that the next token is drawn from, for logits (B, V)."""
        logits = logits.to(exact_dtype(logits.device))
        if self.min_p is not None and self.temperature > 0:
            least = logits.amax(dim=-1, keepdim=True) + self.temperature * math.log(self.min_p)
            logits = logits.masked_fill(logits < least, -math.inf)
        probabilities = next_token_probabilities(logits, self.temperature, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
            before = running_sum(ordered) - ordered
            kept = ordered.masked_fill(before >= self.top_p, 0.0)
            probabilities = torch.zeros_like(probabilities).scatter_(-1, order, kept)
            probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
        return probabilities


class KVCache:
    """Keys and values of past positions, so that a new token costs one position.

    Pass it to `GPT.features`, then add the new positions to `length`. `starts` (B,) holds the index at which
    each row's text, or its last document, begins; None: all at 0.
    """

    def __init__(self, model: GPT, batch: int, starts: Tensor | None = None) -> None:
        self.size, self.dtype = model.config.block_size, kernels.cache_dtype(model)
        self.layers = [LayerCache(self) for _ in model.blocks]
        self.last_embedding = model.token_embedding.weight.new_zeros(batch, model.config.n_embd)
        self.starts = starts
        self.length = 0


class LayerCache:
    """One layer's keys and values; memory is allocated when the first ones come."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._stored: tuple[Tensor, Tensor] | None = None  # each (B, H, size, D)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, T, D) of new positions; returns those of all so far, (B, H, S, D)."""
        B, H, T, D = key.shape
        if self._stored is None:
            shape, dtype = (B, H, self._cache.size, D), self._cache.dtype
            self._stored = key.new_zeros(shape, dtype=dtype), key.new_zeros(shape, dtype=dtype)
        keys, values = self._stored
        first, last = self._cache.length, self._cache.length + T
        keys.narrow(2, first, T).copy_(key)
        values.narrow(2, first, T).copy_(value)
        return keys.narrow(2, 0, last), values.narrow(2, 0, last)


def generate(
    model: GPT,
    ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    *,
    seed: int = 0,
    n_tokens: int | None = None,
) -> Tensor:
    """Prompts (B, T) continued by `max_new_tokens`: (B, T + max_new_tokens). For the options see `stream`."""
    new = list(stream(model, ids, max_new_tokens, sampling, seed=seed, n_tokens=n_tokens))
    return torch.cat((ids, torch.stack(new, dim=1)), dim=1) if new else ids


@torch.inference_mode()
def stream(
    model: GPT,
    ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    *,
    seed: int = 0,
    first_index: int = 0,
    n_tokens: int | None = None,
    starts: Tensor | None = None,
) -> Iterator[Tensor]:
    """Continue prompts (B, T) one token at a time; yields each step's tokens, (B,).

    Row b draws from a stream of its own, a function of (`seed`, `first_index` + b), so a sample does not
    depend on the batch that it is drawn in. `n_tokens` is the tokenizer's vocabulary where the model's is
    padded: no id beyond it is drawn. `starts` (B,) marks where each row's text begins in prompts padded on
    the left. Raises ValueError for an empty prompt.

    The model sees at most `block_size` positions. When they are full, the older half is dropped and the newer
    read again, so it always sees half of them or more.
    """
    batch, length = ids.shape
    if length == 0:
        raise ValueError("the prompt is empty; generation needs at least one token to continue")
    block_size, end = model.config.block_size, length + max_new_tokens
    text = torch.cat((ids, ids.new_empty(batch, max_new_tokens)), dim=1)
    uniforms = uniform_numbers(seed, first_index, batch, ids.device)
    first = max(0, length - block_size)  # a prompt may be longer than what the model sees
    cache = new_cache(model, batch, starts, first)
    logits = read(model, ids[:, first:], cache)
    while length < end:
        token = next_token(logits[:, :n_tokens], text[:, :length], starts, sampling, uniforms)
        text[:, length] = token
        length += 1
        yield token
        if length == end:
            return
        if cache.length < block_size:
            logits = read(model, token[:, None], cache)
        else:
            first = length - max(1, block_size // 2)
            cache = new_cache(model, batch, starts, first)
            logits = read(model, text[:, first:length], cache)


def new_cache(model: GPT, batch: int, starts: Tensor | None, first: int) -> KVCache:
    """An empty cache for texts from index `first` on."""
    return KVCache(model, batch, None if starts is None else (starts - first).clamp(min=0))


def read(model: GPT, ids: Tensor, cache: KVCache) -> Tensor:
    """Run the model on ids (B, T) that follow the cached ones; returns the last position's logits (B, V)."""
    with kernels.attention_for_decoding(ids.device):
        features = model.features(ids, cache)
    cache.length += ids.shape[1]
    return model.head(features[:, -1])


def next_token(
    logits: Tensor, text: Tensor, starts: Tensor | None, sampling: Sampling, uniforms: Iterator[Tensor]
) -> Tensor:
    """The next token (B,) of each row, from logits (B, V) after the text (B, T)."""
    if sampling.repetition_penalty != 1:
        logits = penalise(logits, text, starts, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    return invert_cumulative(sampling.probabilities(logits), next(uniforms))


def penalise(logits: Tensor, text: Tensor, starts: Tensor | None, penalty: float) -> Tensor:
    """Logits (B, V), those of tokens in the text (B, T) divided by the penalty, or multiplied if negative.

    Keskar et al., 2019 (CTRL). Left padding before `starts` (B,) does not count as text.
    """
    if starts is not None:
        positions = torch.arange(text.shape[1], device=text.device)
        text = torch.where(positions < starts[:, None], text[:, -1:], text)
    inside = text.clamp(max=logits.shape[-1] - 1)
    known = logits.gather(-1, inside)
    return logits.scatter(-1, inside, torch.where(known > 0, known / penalty, known * penalty))


def uniform_numbers(seed: int, first_index: int, rows: int, device: torch.device) -> Iterator[Tensor]:
    """Uniform random numbers (B,), endlessly; each row has its own generator."""
    streams = [
        torch.Generator().manual_seed(derive_seed(seed, "sample", first_index + row)) for row in range(rows)
    ]
    while True:
        drawn = torch.stack([torch.rand(UNIFORMS_AT_ONCE, generator=stream) for stream in streams])
        yield from drawn.to(device).unbind(dim=1)


def invert_cumulative(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw a token (B,) from each row of (B, V): the first whose cumulative sum passes its uniform number."""
    cumulative = running_sum(probabilities)
    passed = uniforms[:, None].to(cumulative.dtype) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, passed, right=True).squeeze(-1)


def running_sum(values: Tensor) -> Tensor:
    """The cumulative sum over the last dimension.

    CUDA has no deterministic form of it and refuses where one is asked for, so there the CPU adds up.
    """
    if values.is_cuda and torch.are_deterministic_algorithms_enabled():
        return values.cpu().cumsum(dim=-1).to(values.device)
    return values.cumsum(dim=-1)


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device computes in it: MPS does not, and few Intel GPUs do."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


class TextStream:
    """Decodes tokens one at a time; joined, the pieces equal decoding all at once, up to the end.

    The text ends before the text `stop`, or the first of several, or at the token `end`, if given. A
    character that may be incomplete is held back, and so is what may be the beginning of `stop`.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: str | Sequence[str] | None = None, end: int | None = None
    ) -> None:
        self.tokenizer, self.end = tokenizer, end
        self.stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        self.stopped = False
        self._ids: list[int] = []  # tokens whose text has not been taken over in whole
        self._taken = 0  # characters of their text that have
        self._held = ""

    def push(self, token: int) -> str:
        """Add a token; returns the text that can be shown now."""
        if self.stopped:
            return ""
        if token == self.end:
            return self.finish()
        self._ids.append(token)
        text = self.tokenizer.decode(self._ids)
        # Bytes of an incomplete character decode to one U+FFFD, and the next token may change it.
        complete = len(text) - text.endswith(REPLACEMENT)
        self._held += text[self._taken : complete]
        self._taken = complete
        if complete == len(text):
            self._ids.clear()
            self._taken = 0
        return self._release(self._begun_stop())

    def finish(self) -> str:
        """End the text; returns what was held back."""
        if self.stopped:
            return ""
        self._held += self.tokenizer.decode(self._ids)[self._taken :]
        self._ids.clear()
        rest = self._release(0)
        self.stopped = True
        return rest

    def _begun_stop(self) -> int:
        """The number of characters at the end of the held text that may begin a stop text."""
        begun = (
            size for stop in self.stops for size in range(1, len(stop)) if self._held.endswith(stop[:size])
        )
        return max(begun, default=0)

    def _release(self, kept: int) -> str:
        """Release the held text but its last `kept` characters, or up to the first stop text in it."""
        found = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        self.stopped = bool(found)
        size = min(found) if found else len(self._held) - kept
        shown, self._held = self._held[:size], self._held[size:]
        return shown
