"""The model against float64 loops and against GPT-2 in transformers, on fresh random weights."""

import dataclasses
import math

import pytest
import torch
from support.models import MODERN, SMALL, both, random_ids, random_model

from engine.kernels import ATTENTION, install
from engine.settings import TrainSettings
from engine.training.optimizer import make_optimizer
from model import GPT, CausalSelfAttention, GPTConfig, rotary_angles, rotate


@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_equals_a_loop_over_heads_and_positions(kernel: str, bias: bool) -> None:
    config = dataclasses.replace(SMALL, bias=bias)
    attention = CausalSelfAttention(config).double()
    attention.attend = ATTENTION[kernel]
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
    torch.testing.assert_close(attention(x, None, None, None), attention.out(mixed), rtol=0, atol=1e-12)


@both
@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
def test_no_position_sees_a_later_one(config: GPTConfig, kernel: str) -> None:
    model = random_model(config)
    install(model, kernel)
    embedded = []
    model.token_embedding.register_forward_hook(lambda _m, _i, out: embedded.append(out.requires_grad_()))
    logits = model(random_ids(1, 12))
    for t in range(12):
        (gradient,) = torch.autograd.grad(logits[0, t].sum(), embedded[0], retain_graph=True)
        assert (gradient[0, t + 1 :] == 0).all()
        assert (gradient[0, : t + 1].abs().amax(dim=-1) > 0).all()


@pytest.mark.parametrize("vocab_size", [65, 5000])
def test_the_loss_of_initial_weights_is_that_of_guessing(vocab_size: int) -> None:
    config = dataclasses.replace(SMALL, vocab_size=vocab_size, n_embd=64)
    model = GPT(config)
    model.init_weights(seed=torch.randint(10**6, ()).item())
    loss = model(random_ids(16, 24, config), random_ids(16, 24, config)) / (16 * 24)
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
    model(random_ids(4, 24), random_ids(4, 24)).backward()
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
    config = GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd, bias=True, activation=activation)
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
        torch.testing.assert_close(model(ids), reference(ids).logits, rtol=0, atol=1e-10)
        single, expected = model.float()(ids), reference.float()(ids).logits
    assert (single - expected).abs().max() <= 1e-5 * max(1, expected.abs().max().item())


def test_loss_is_the_sum_of_cross_entropies_without_the_targets_left_out() -> None:
    model, ids, targets = random_model(), random_ids(2, 10), random_ids(2, 10)
    logits = model(ids)
    by_hand = [-logits[b, t].log_softmax(0)[targets[b, t]] for b in range(2) for t in range(10)]
    assert model(ids, targets).item() == pytest.approx(torch.stack(by_hand).sum().item(), abs=1e-11)
    targets[0] = -100
    assert model(ids, targets).item() == pytest.approx(torch.stack(by_hand[10:]).sum().item(), abs=1e-11)


def test_without_targets_the_loss_is_0_and_so_is_its_gradient() -> None:
    model = random_model()
    loss = model(random_ids(2, 10), torch.full((2, 10), -100))
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and (parameter.grad == 0).all() for parameter in model.parameters())


def test_a_parameter_without_a_rule_for_its_initial_values_is_named() -> None:
    model = GPT(SMALL)
    model.blocks[1].mlp.gate = torch.nn.Parameter(torch.empty(3))
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.gate has no rule .* if kind == 'gate'"):
        model.init_weights(0)


def test_generated_tokens_follow_the_distribution_of_the_next_token() -> None:
    """One token after 20,000 equal prompts, with temperature and top-k."""
    model, prompt = random_model(), random_ids(1, 3)
    drawn = model.generate(prompt.repeat(20_000, 1), 1, temperature=2.0, top_k=4)[:, -1]
    logits = model(prompt)[0, -1] / 2.0
    expected = logits.masked_fill(logits < logits.topk(4).values[-1], -math.inf).softmax(0)
    share = torch.bincount(drawn, minlength=SMALL.vocab_size).double() / 20_000
    torch.testing.assert_close(share, expected, rtol=0, atol=0.02)
    assert (share[expected == 0] == 0).all()


def test_rotated_scores_depend_on_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    scores = []
    for shift in (0, 5, 900):
        at = [rotary_angles(torch.tensor([position]), 16) for position in (shift, shift + 3)]
        scores.append((rotate(query, *at[1]) * rotate(key, *at[0])).sum())
    torch.testing.assert_close(scores[1:], [scores[0]] * 2, rtol=1e-3, atol=1e-3)
    turned = rotate(query, *at[0])
    assert turned.norm().item() == pytest.approx(query.norm().item()) and not torch.allclose(turned, query)


def test_rotation_turns_each_pair_by_its_own_angle() -> None:
    x, position, width = torch.randn(8, dtype=torch.float64), 7, 8
    pairs = torch.complex(x[:4], x[4:])
    angles = torch.tensor([position * 10000.0 ** (-2 * i / width) for i in range(4)], dtype=torch.float64)
    expected = pairs * torch.polar(torch.ones_like(angles), angles)
    found = rotate(x[None], *rotary_angles(torch.tensor([position]), width))[0]
    torch.testing.assert_close(found, torch.cat((expected.real, expected.imag)), rtol=0, atol=1e-6)


def test_blocks_that_start_at_zero_leave_the_residual_stream_alone() -> None:
    model = GPT(MODERN)
    model.init_weights(3)
    ids = random_ids(2, 10)
    expected = model.head(model.final_norm(model.token_embedding(ids)))
    torch.testing.assert_close(model(ids), expected)


@pytest.mark.parametrize(
    "change", [{"n_head": 5}, {"n_layer": 0}, {"dropout": 1.0}, {"activation": "sigmoid"}]
)
def test_impossible_shapes_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(SMALL, **change)
