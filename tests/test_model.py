"""The model against float64 loops and against GPT-2 in transformers, on fresh random weights."""

import dataclasses
import math

import pytest
import torch
from support.models import MODERN, SMALL, both, random_ids, random_model
from torch.nn import functional as F

from engine.settings import TrainSettings
from engine.training.optimizer import make_optimizer
from model import (
    GPT,
    CausalSelfAttention,
    GPTConfig,
    KVCache,
    count_parameters,
    draw,
    drop,
    flops_per_token,
    next_token_probabilities,
    penalise,
    rotary_angles,
    rotate,
)


@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_equals_a_loop_over_heads_and_positions(kernel: str, bias: bool) -> None:
    config = dataclasses.replace(SMALL, bias=bias)
    attention = CausalSelfAttention(config).double()
    attention.kernel = kernel
    x = torch.randn(2, 9, config.n_embd, dtype=torch.float64)
    query, key, value = attention.qkv(x).split(config.n_embd, dim=-1)
    width = config.n_embd // config.n_head
    mixed = torch.zeros_like(x)
    for row in range(2):
        for head in range(config.n_head):
            channels = slice(head * width, (head + 1) * width)
            for t in range(9):
                scores = [
                    (query[row, t, channels] @ key[row, s, channels]) / math.sqrt(width) for s in range(t + 1)
                ]
                weights = torch.stack(scores).softmax(0)
                mixed[row, t, channels] = sum(w * value[row, s, channels] for s, w in enumerate(weights))
    torch.testing.assert_close(attention(x), attention.out(mixed), rtol=0, atol=1e-12)


@both
@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
def test_no_position_sees_a_later_one(config: GPTConfig, kernel: str) -> None:
    model = random_model(config)
    model.use_attention_kernel(kernel)
    embedded = []
    model.token_embedding.register_forward_hook(lambda _m, _i, out: embedded.append(out.requires_grad_()))
    logits, _ = model(random_ids(1, 12))
    for t in range(12):
        (gradient,) = torch.autograd.grad(logits[0, t].sum(), embedded[0], retain_graph=True)
        assert gradient[0, t + 1 :].abs().max().item() == 0 if t < 11 else True
        assert (gradient[0, : t + 1].abs().amax(dim=-1) > 0).all()


@pytest.mark.parametrize("vocab_size", [65, 5000])
def test_the_loss_of_initial_weights_is_that_of_guessing(vocab_size: int) -> None:
    config = dataclasses.replace(SMALL, vocab_size=vocab_size, n_embd=64)
    model = GPT(config)
    model.init_weights(seed=torch.randint(10**6, ()).item())
    _, loss = model(random_ids(16, 24, config), random_ids(16, 24, config))
    assert loss.item() == pytest.approx(math.log(vocab_size), rel=0.02)


def test_initial_weights_depend_on_seed_and_name_alone() -> None:
    deep, shallow, other = (
        GPT(SMALL),
        GPT(dataclasses.replace(SMALL, n_layer=3, vocab_size=7)),
        GPT(SMALL),
    )
    torch.manual_seed(1)
    deep.init_weights(5)
    torch.manual_seed(2)
    shallow.init_weights(5)
    other.init_weights(6)
    same = dict(shallow.named_parameters())
    for name, parameter in deep.named_parameters():
        if parameter.dim() > 1:
            assert not torch.equal(parameter, dict(other.named_parameters())[name])
            if parameter.shape == same[name].shape:
                assert torch.equal(parameter, same[name])
    spread = deep.blocks[0].mlp.down.weight.std().item()
    assert spread == pytest.approx(0.02 / math.sqrt(2 * SMALL.n_layer), rel=0.1)
    assert deep.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_every_parameter_is_initialised_optimised_once_and_gets_a_gradient() -> None:
    model = GPT(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    model.init_weights(0)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    settings = TrainSettings()
    groups = make_optimizer(model, settings).param_groups
    optimised = [parameter for group in groups for parameter in group["params"]]
    assert len(optimised) == len(set(optimised)) == len(list(model.parameters()))
    decayed = [parameter for group in groups if group["weight_decay"] for parameter in group["params"]]
    assert all(parameter.dim() >= 2 for parameter in decayed) and len(decayed) == 2 + 4 * SMALL.n_layer
    model(random_ids(4, 24), random_ids(4, 24))[1].backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters()
    )


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_embd", "vocab_size", "block_size"),
    [(1, 1, 8, 11, 5), (2, 4, 32, 100, 33), (4, 3, 48, 257, 64)],
)
def test_logits_equal_those_of_gpt2_in_transformers(
    activation: str, n_layer: int, n_head: int, n_embd: int, vocab_size: int, block_size: int
) -> None:
    transformers = pytest.importorskip("transformers")
    config = GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd, activation=activation)
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocab_size, n_positions=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
            activation_function={"gelu": "gelu", "gelu_tanh": "gelu_new"}[activation],
        )
    ).double().eval()  # fmt: skip
    model = random_model(config)
    names = {
        "token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f", "blocks": "h",
        "attention_norm": "ln_1", "mlp_norm": "ln_2", "qkv": "c_attn", "attention": "attn", "up": "c_fc",
    }  # fmt: skip
    weights = {}
    for name, parameter in model.named_parameters():
        parts = [names.get(part, part) for part in name.split(".")]
        parts = ["c_proj" if part in ("out", "down") else part for part in parts]
        linear = any(part.startswith("c_") for part in parts) and parameter.dim() == 2
        weights["transformer." + ".".join(parts)] = parameter.T if linear else parameter
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    ids = random_ids(3, block_size, config)
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[0], reference(ids).logits, rtol=0, atol=1e-10)
        single, expected = model.float()(ids)[0], reference.float()(ids).logits
    assert (single - expected).abs().max() <= 1e-5 * max(1, expected.abs().max().item())


@both
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied_head", [True, False])
def test_counted_parameters_are_the_modules(config: GPTConfig, bias: bool, tied_head: bool) -> None:
    config = dataclasses.replace(config, bias=bias, tied_head=tied_head)
    with torch.device("meta"):
        model = GPT(config)
    assert sum(count_parameters(config).values()) == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_gpt2_has_its_published_number_of_parameters() -> None:
    assert sum(count_parameters(GPTConfig()).values()) == 124_439_808


def test_flops_are_those_of_the_matrix_products() -> None:
    config = dataclasses.replace(SMALL, bias=False)
    width, layers = config.n_embd, config.n_layer
    # Multiply-adds of one token, head included.
    products = 12 * width * width * layers + config.vocab_size * width
    norms = (2 * layers + 1) * width
    attention = 2 * layers * width * config.block_size  # scores and mix, over the whole block
    assert flops_per_token(config) == 6 * (products + norms) + 6 * attention


def test_loss_is_the_mean_cross_entropy_and_leaves_out_masked_targets() -> None:
    model, ids, targets = random_model(), random_ids(2, 10), random_ids(2, 10)
    logits, loss = model(ids, targets)
    by_hand = [-logits[b, t].log_softmax(0)[targets[b, t]] for b in range(2) for t in range(10)]
    assert loss.item() == pytest.approx(torch.stack(by_hand).mean().item(), abs=1e-12)
    targets[0] = -100
    assert model(ids, targets)[1].item() == pytest.approx(torch.stack(by_hand[10:]).mean().item(), abs=1e-12)


@both
@pytest.mark.parametrize("batch", [1, 3])
def test_the_cache_changes_nothing_at_any_length(config: GPTConfig, batch: int) -> None:
    model = random_model(config)
    ids = random_ids(batch, SMALL.block_size)
    full = model(ids)[0]
    for prefix in range(1, SMALL.block_size):
        cache = KVCache(model, batch)
        first = model.head(model.features(ids[:, :prefix], cache))
        rest = [model.head(model.features(ids[:, t : t + 1], cache)) for t in range(prefix, SMALL.block_size)]
        torch.testing.assert_close(torch.cat([first, *rest], dim=1), full, rtol=0, atol=1e-12)


@both
def test_greedy_text_equals_the_uncached_loop_for_prompts_of_different_lengths(config: GPTConfig) -> None:
    model = random_model(config)
    lengths = [1, 4, 7]
    prompts = [random_ids(1, length) for length in lengths]
    new = SMALL.block_size - max(lengths)
    padded = torch.cat([F.pad(prompt, (max(lengths) - prompt.shape[1], 0)) for prompt in prompts])
    starts = torch.tensor([max(lengths) - length for length in lengths])
    together = model.generate(padded, new, temperature=0, starts=starts)
    for row, prompt in enumerate(prompts):
        text = prompt
        for _ in range(new):
            text = torch.cat((text, model(text)[0][:, -1].argmax(-1, keepdim=True)), dim=1)
        assert torch.equal(together[row, starts[row] :], text[0])


@both
def test_generation_goes_on_past_the_block_and_sees_at_least_half_of_it(config: GPTConfig) -> None:
    model = random_model(config)
    text = random_ids(2, 5)
    out = model.generate(text, 60, temperature=0)
    block, length, first = SMALL.block_size, 5, 0
    for _ in range(60):
        if length - first > block:
            first = length - block // 2
        text = torch.cat((text, model(text[:, first:])[0][:, -1].argmax(-1, keepdim=True)), dim=1)
        length += 1
    assert torch.equal(out, text)


@both
def test_a_sample_depends_on_seed_and_index_not_on_its_batch(config: GPTConfig) -> None:
    model = random_model(config)
    prompt = random_ids(1, 3)
    together = model.generate(prompt.repeat(4, 1), 40, temperature=1.3, top_k=20, seed=9)
    alone = [
        model.generate(prompt, 40, temperature=1.3, top_k=20, seed=9, first_index=index) for index in range(4)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(
        together, model.generate(prompt.repeat(4, 1), 40, temperature=1.3, top_k=20, seed=10)
    )


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
    found = next_token_probabilities(logits[None], temperature, top_k, top_p)[0]
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6)


def test_rotated_scores_depend_on_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    scores = []
    for shift in (0, 5, 900):
        at = [rotary_angles(torch.tensor([position]), 16, torch.float64) for position in (shift, shift + 3)]
        scores.append((rotate(query, *at[1]) * rotate(key, *at[0])).sum())
    torch.testing.assert_close(scores[1:], [scores[0]] * 2, rtol=1e-5, atol=1e-5)
    turned = rotate(query, *at[0])
    assert turned.norm().item() == pytest.approx(query.norm().item()) and not torch.allclose(turned, query)


def test_rotation_turns_each_pair_by_its_own_angle() -> None:
    x, position, width = torch.randn(8, dtype=torch.float64), 7, 8
    pairs = torch.complex(x[:4], x[4:])
    angles = torch.tensor([position * 10000.0 ** (-2 * i / width) for i in range(4)], dtype=torch.float64)
    expected = pairs * torch.polar(torch.ones_like(angles), angles)
    found = rotate(x[None], *rotary_angles(torch.tensor([position]), width, torch.float64))[0]
    torch.testing.assert_close(found, torch.cat((expected.real, expected.imag)), rtol=0, atol=1e-6)


def test_blocks_that_start_at_zero_leave_the_residual_stream_alone() -> None:
    model = GPT(MODERN)
    model.init_weights(3)
    ids = random_ids(2, 10)
    expected = model.head(model.final_norm(model.token_embedding(ids)))
    torch.testing.assert_close(model(ids)[0], expected)


def test_min_p_keeps_what_is_near_the_most_probable() -> None:
    logits = torch.randn(4, 30)
    plain, cut = (next_token_probabilities(logits, 1.0, None, None, min_p) for min_p in (None, 0.3))
    kept = plain >= 0.3 * plain.amax(-1, keepdim=True)
    torch.testing.assert_close(cut, plain * kept / (plain * kept).sum(-1, keepdim=True))


def test_the_repetition_penalty_touches_what_stands_in_the_text() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    text = torch.tensor([[3, 0, 1, 0]])
    assert penalise(logits, text, None, 2.0).tolist() == [[1.0, -4.0, 1.0, 0.25]]
    assert penalise(logits, text, torch.tensor([1]), 2.0).tolist() == [[1.0, -4.0, 1.0, 0.5]]
    model = random_model()
    out = model.generate(random_ids(1, 1), 20, temperature=0, repetition_penalty=1e9)
    assert len(set(out[0].tolist())) == 21  # greedy text that cannot repeat itself


def test_draws_follow_the_distribution_and_never_take_an_impossible_token() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]], dtype=torch.float64)
    uniforms = torch.rand(20_000)
    tokens = draw(probabilities.expand(20_000, -1), uniforms)
    share = torch.bincount(tokens, minlength=6).double() / 20_000
    torch.testing.assert_close(share, probabilities[0], rtol=0, atol=0.02)
    assert (share[probabilities[0] == 0] == 0).all()
    extremes = draw(probabilities.expand(2, -1), torch.tensor([0.0, 1 - 2**-24]))
    assert extremes.tolist() == [1, 4]


def test_padding_of_the_vocabulary_is_never_drawn() -> None:
    model = random_model()
    out = model.generate(random_ids(8, 2) % 10, 100, temperature=50.0, n_tokens=10)
    assert out.max().item() < 10


@pytest.mark.parametrize(
    "change", [{"n_head": 5}, {"n_layer": 0}, {"dropout": 1.0}, {"activation": "sigmoid"}]
)
def test_impossible_shapes_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_without_whole_logits_is_the_same(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that do not divide the rows, left-out targets, an outer factor: gradients to 1e-12."""
    plain = random_model(dataclasses.replace(SMALL, tied_head=tied))
    chunked = random_model(plain.config)
    chunked.load_state_dict(plain.state_dict())
    ids, targets = random_ids(3, 20), random_ids(3, 20)
    targets[torch.rand(targets.shape) < 0.3] = -100
    logits, expected = plain(ids, targets)
    (expected * 3).backward()
    monkeypatch.setattr("model.LARGEST_LOGITS", logits.numel() - 1)
    monkeypatch.setattr("model.LARGEST_CHUNK", 7 * SMALL.vocab_size)
    nothing, loss = chunked(ids, targets)
    (loss * 3).backward()
    assert nothing is None
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    for mine, theirs in zip(chunked.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(chunked(ids, targets)[1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_chunked_loss_keeps_autocasts_precision(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(SMALL, torch.float32)
    ids, targets = random_ids(3, 20), random_ids(3, 20)
    gradients = []
    for largest in (2**28, 1):
        monkeypatch.setattr("model.LARGEST_LOGITS", largest)
        model.zero_grad()
        with torch.autocast("cpu", dtype):
            model(ids, targets)[1].backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[0].norm()


@pytest.mark.parametrize("share", [0.1, 0.5, 1e-9, 0.99])
def test_dropout_zeroes_its_share_and_keeps_the_mean(share: float) -> None:
    """Independently, scaled so that the expected value stays, and in the gradient just where in the value."""
    x = torch.ones(301, 1001, dtype=torch.float64, requires_grad=True)
    y = drop(x, share, training=True)
    kept = y != 0
    n, spread = x.numel(), math.sqrt(share * (1 - share) * x.numel())
    assert abs((~kept).sum().item() - share * n) < 6 * spread + 1
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - share)), rtol=2e-3, atol=0)
    assert y.mean().item() == pytest.approx(1, abs=8 * spread / n / (1 - share) + 1e-3)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)
    neighbours = (kept[:, 1:] & kept[:, :-1]).double().mean().item()
    assert neighbours == pytest.approx((1 - share) ** 2, abs=0.01)
    assert drop(x, share, training=False) is x and drop(x, 0.0, training=True) is x
