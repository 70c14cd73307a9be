"""Sampling through the cache against the plain `GPT.generate`, loops, and the distribution itself."""

import math

import pytest
import torch
from support.models import SMALL, both, random_ids, random_model
from torch.nn import functional as F

from engine.generation import KVCache, Sampling, TextStream, generate, invert_cumulative, penalise, stream
from model import GPT, GPTConfig, next_token_probabilities


def read_all(model: GPT, ids: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """The logits (B, T, V) of ids that continue a cache."""
    logits = model.head(model.features(ids, cache))
    cache.length += ids.shape[1]
    return logits


@both
@pytest.mark.parametrize("batch", [1, 3])
def test_the_cache_changes_nothing_at_any_length(config: GPTConfig, batch: int) -> None:
    model = random_model(config)
    ids = random_ids(batch, SMALL.block_size)
    full = model(ids)
    for prefix in range(1, SMALL.block_size):
        cache = KVCache(model, batch)
        first = read_all(model, ids[:, :prefix], cache)
        rest = [read_all(model, ids[:, t : t + 1], cache) for t in range(prefix, SMALL.block_size)]
        torch.testing.assert_close(torch.cat([first, *rest], dim=1), full, rtol=0, atol=1e-12)


@both
def test_greedy_text_equals_the_uncached_loop_for_prompts_of_different_lengths(config: GPTConfig) -> None:
    model = random_model(config)
    lengths = [1, 4, 7]
    prompts = [random_ids(1, length) for length in lengths]
    new = SMALL.block_size - max(lengths)
    padded = torch.cat([F.pad(prompt, (max(lengths) - prompt.shape[1], 0)) for prompt in prompts])
    starts = torch.tensor([max(lengths) - length for length in lengths])
    tokens = list(stream(model, padded, new, Sampling(temperature=0), starts=starts))
    together = torch.cat((padded, torch.stack(tokens, dim=1)), dim=1)
    for row, prompt in enumerate(prompts):
        text = prompt
        for _ in range(new):
            text = torch.cat((text, model(text)[:, -1].argmax(-1, keepdim=True)), dim=1)
        assert torch.equal(together[row, starts[row] :], text[0])


@both
def test_generation_goes_on_past_the_block_and_sees_at_least_half_of_it(config: GPTConfig) -> None:
    model = random_model(config)
    text = random_ids(2, 5)
    out = generate(model, text, 60, Sampling(temperature=0))
    block, length, first = SMALL.block_size, 5, 0
    for _ in range(60):
        if length - first > block:
            first = length - block // 2
        text = torch.cat((text, model(text[:, first:])[:, -1].argmax(-1, keepdim=True)), dim=1)
        length += 1
    assert torch.equal(out, text)


@both
def test_a_sample_depends_on_seed_and_index_not_on_its_batch(config: GPTConfig) -> None:
    model = random_model(config)
    prompt = random_ids(1, 3)
    sampling = Sampling(temperature=1.3, top_k=20)
    together = generate(model, prompt.repeat(4, 1), 40, sampling, seed=9)
    for index in range(4):
        alone = torch.cat(list(stream(model, prompt, 40, sampling, seed=9, first_index=index)))
        assert torch.equal(together[index, 3:], alone)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, generate(model, prompt.repeat(4, 1), 40, sampling, seed=10))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, None, None), (0.7, 5, None), (2.0, None, 0.6), (0.5, 8, 0.9)]
)
def test_probabilities_equal_a_loop_over_the_vocabulary(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = torch.randn(30, dtype=torch.float64)
    weights = {token: math.exp(logits[token] / temperature) for token in range(30)}
    ranked = sorted(weights, key=weights.get, reverse=True)[:top_k]
    total = sum(weights[token] for token in ranked)
    kept, reached = [], 0.0
    for token in ranked:
        if top_p is not None and reached >= top_p:
            break
        kept.append(token)
        reached += weights[token] / total
    total = sum(weights[token] for token in kept)
    expected = torch.tensor([weights[token] / total if token in kept else 0.0 for token in range(30)])
    found = Sampling(temperature, top_k, top_p).probabilities(logits[None])[0]
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6)


def test_min_p_keeps_what_is_near_the_most_probable() -> None:
    logits = torch.randn(4, 30)
    plain, cut = (Sampling(min_p=min_p).probabilities(logits) for min_p in (None, 0.3))
    kept = plain >= 0.3 * plain.amax(-1, keepdim=True)
    torch.testing.assert_close(cut, plain * kept / (plain * kept).sum(-1, keepdim=True))


def test_the_repetition_penalty_touches_what_stands_in_the_text() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    text = torch.tensor([[3, 0, 1, 0]])
    assert penalise(logits, text, None, 2.0).tolist() == [[1.0, -4.0, 1.0, 0.25]]
    assert penalise(logits, text, torch.tensor([1]), 2.0).tolist() == [[1.0, -4.0, 1.0, 0.5]]
    model = random_model()
    out = generate(model, random_ids(1, 1), 20, Sampling(temperature=0, repetition_penalty=1e9))
    assert len(set(out[0].tolist())) == 21  # greedy text that cannot repeat itself


def test_draws_follow_the_distribution_and_never_take_an_impossible_token() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]], dtype=torch.float64)
    uniforms = torch.rand(20_000)
    tokens = invert_cumulative(probabilities.expand(20_000, -1), uniforms)
    share = torch.bincount(tokens, minlength=6).double() / 20_000
    torch.testing.assert_close(share, probabilities[0], rtol=0, atol=0.02)
    assert (share[probabilities[0] == 0] == 0).all()
    extremes = invert_cumulative(probabilities.expand(2, -1), torch.tensor([0.0, 1 - 2**-24]))
    assert extremes.tolist() == [1, 4]


def test_padding_of_the_vocabulary_is_never_drawn() -> None:
    model = random_model()
    out = generate(model, random_ids(8, 2) % 10, 100, Sampling(temperature=50.0), n_tokens=10)
    assert out.max().item() < 10


@both
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=5), Sampling(temperature=0)])
def test_up_to_block_size_each_draw_gets_the_probabilities_of_the_plain_loop(
    config: GPTConfig, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fast sampler's tokens, read by `GPT.generate`'s own steps: logits and probabilities to 1e-12."""
    model, prompt = random_model(config), random_ids(3, 2)
    handed: list[torch.Tensor] = []

    def note(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        handed.append(probabilities)
        return invert_cumulative(probabilities, uniforms)

    monkeypatch.setattr("engine.generation.invert_cumulative", note)
    text = generate(model, prompt, config.block_size - 2, sampling, seed=5)
    if sampling.temperature == 0:
        assert torch.equal(text, model.generate(prompt, config.block_size - 2, temperature=0))
        return
    for length, probabilities in enumerate(handed, start=2):
        plain = next_token_probabilities(model(text[:, :length])[:, -1], sampling.temperature, sampling.top_k)
        torch.testing.assert_close(probabilities, plain, rtol=0, atol=1e-12)
    assert len(handed) == config.block_size - 2


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"min_p": 1.5}, {"repetition_penalty": 0.0}],
)
def test_impossible_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


PIECES = [
    b"\x80",
    b"\xe2",
    b"\xe2\x82",
    b"\xac",
    b"\xf0\x9f",
    b"\x98\x80",
    b"\xff",
    b"A",
    b"b\n",
    "é€😀".encode(),
    b"\xef\xbf\xbd",
]


class Pieces:
    """A tokenizer whose tokens are pieces of bytes, whole characters or not."""

    def decode(self, ids: list[int]) -> str:
        return b"".join(PIECES[index] for index in ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("stop", [None, "b\nb", "A€", "\ufffd\ufffdA", "AAb"])
def test_streamed_text_is_the_decoded_text_up_to_the_stop(stop: str | None) -> None:
    """Random tokens of bytes that make characters, halves of them, and none."""
    for _ in range(500):
        ids = torch.randint(len(PIECES), (torch.randint(1, 30, ()).item(),)).tolist()
        streamed = TextStream(Pieces(), stop)
        text = "".join(streamed.push(token) for token in ids) + streamed.finish()
        whole = Pieces().decode(ids)
        assert text == (whole if stop is None else whole.split(stop)[0]), ids


def test_three_stray_bytes_and_a_euro_sign() -> None:
    streamed = TextStream(Pieces())
    assert [streamed.push(token) for token in (0, 0, 0, 2, 3)] == ["", "\ufffd", "\ufffd", "\ufffd", "€"]


def test_the_end_token_ends_a_text_and_is_not_shown() -> None:
    streamed = TextStream(Pieces(), stop="b\nb", end=7)
    assert [streamed.push(token) for token in (9, 8, 7, 9)] == ["é€😀", "", "b\n", ""]
    assert streamed.stopped and streamed.finish() == ""
