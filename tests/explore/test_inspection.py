"""engine/explore/inspection.py: what is shown is what the model computed."""

import contextlib
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.explore.inspection import inspect, layer_guesses, neighbours, watch_attention
from engine.kernels import attend_by_matmul, install
from model import GPT, GPTConfig


def random_model(**changes) -> GPT:
    """A float64 model of a random shape whose weights are large enough for attention to have preferences."""
    heads = random.randint(1, 4)
    shape = {"vocab_size": 37, "block_size": 24, "n_layer": random.randint(1, 4), "n_head": heads}
    model = GPT(
        GPTConfig(**(shape | {"n_embd": 8 * heads, "bias": random.random() < 0.5} | changes))
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def by_loops(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    """Attention weights (L, H, T, T), one number after the other."""
    x = model.token_embedding(ids) + model.position_embedding(torch.arange(len(ids)))
    config, T = model.config, len(ids)
    D = config.n_embd // config.n_head
    weights = torch.zeros(config.n_layer, config.n_head, T, T, dtype=torch.float64)
    for layer, block in enumerate(model.blocks):
        query, key, _ = block.attention.qkv(block.attention_norm(x)).split(config.n_embd, dim=-1)
        for head in range(config.n_head):
            part = slice(head * D, head * D + D)
            for i in range(T):
                scores = torch.stack([(query[i, part] * key[j, part]).sum() / D**0.5 for j in range(i + 1)])
                weights[layer, head, i, : i + 1] = scores.exp() / scores.exp().sum()
        x = block(x[None])[0]
    return weights


@pytest.mark.parametrize("length", [1, 2, 9, 24])
@torch.no_grad()
def test_attention_is_that_of_the_model_written_out_in_loops(length: int) -> None:
    model = random_model()
    ids = torch.randint(37, (length,))
    seen = inspect(model, ids)
    torch.testing.assert_close(seen.attention, by_loops(model, ids), rtol=1e-10, atol=1e-12)
    assert torch.allclose(seen.attention.sum(dim=-1), torch.ones(1, dtype=torch.float64), atol=1e-12)
    assert not seen.attention.triu(1).any()


@pytest.mark.parametrize("mask", [None, "of each head"])
@pytest.mark.parametrize("scale", [None, 0.2])
def test_the_weights_times_the_values_are_what_the_kernel_returns(mask: str | None, scale: float) -> None:
    """Whatever a changed model hands to the kernel: its own scale, or scores for distances, as ALiBi has."""
    model = random_model()
    query, key, value = torch.randn(3, 1, 4, 11, 8, dtype=torch.float64)
    added = None if mask is None else torch.randn(1, 4, 11, 11, dtype=torch.float64).tril() - triangle(11)
    with watch_attention(model) as weights:
        mixed = F.scaled_dot_product_attention(query, key, value, added, is_causal=added is None, scale=scale)
    assert len(weights) == 1
    torch.testing.assert_close(weights[0] @ value, mixed)
    scores = query @ key.mT * (8**-0.5 if scale is None else scale)
    scores = scores - triangle(11) if added is None else scores + added
    torch.testing.assert_close(weights[0], scores.softmax(dim=-1))


def triangle(T: int) -> torch.Tensor:
    """Infinity above the diagonal, 0 elsewhere."""
    return torch.full((T, T), torch.inf, dtype=torch.float64).triu(1)


@pytest.mark.parametrize("changes", [{}, {"position": "rotary"}, {"position": "rotary", "qk_norm": True}])
@torch.no_grad()
def test_the_weights_shown_are_those_that_made_each_layers_output(changes: dict) -> None:
    """Whatever happens to queries and keys: weights · values, through the output matrix, is the output."""
    model = random_model(**changes)
    taken = []
    for block in model.blocks:
        block.attention.register_forward_hook(
            lambda module, given, output: taken.append((module, given[0], output))
        )
    attention = inspect(model, torch.randint(37, (13,))).attention
    for weights, (module, x, output) in zip(attention, taken, strict=True):
        # (H, T, D)
        value = module.qkv(x)[0].chunk(3, dim=-1)[2].unflatten(-1, (module.n_head, -1)).transpose(0, 1)
        torch.testing.assert_close(module.out((weights @ value).transpose(0, 1).flatten(1)), output[0])


@torch.no_grad()
def test_logits_surprise_and_streams_are_those_of_an_ordinary_pass() -> None:
    model = random_model()
    ids = torch.randint(30, (15,))
    logits = model(ids[None])[0]
    seen = inspect(model, ids, n_tokens=30)
    torch.testing.assert_close(seen.last_logits, logits[-1, :30])
    seen = inspect(model, ids)
    loss = model(ids[None, :-1], ids[None, 1:]).item() / 14
    assert seen.surprise[0] is None
    assert sum(seen.surprise[1:]) / 14 == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(model.final_norm(seen.streams[-1]), model.features(ids[None])[0])


@pytest.mark.parametrize("fails", [False, True])
def test_a_pass_leaves_the_model_as_it_was(fails: bool) -> None:
    model = random_model(dropout=0.5).train()
    install(model, "matmul")
    ids = torch.randint(37, (10,))
    with torch.no_grad(), pytest.raises(IndexError) if fails else contextlib.nullcontext():
        inspect(model, ids + 1000 * fails)
    assert model.training and model.blocks[0].mlp.training
    assert {block.attention.attend for block in model.blocks} == {attend_by_matmul}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model.eval()
    before = model(ids[None])[0]
    inspect(model, ids)
    assert torch.equal(model(ids[None])[0], before)


def test_the_last_layers_guess_is_the_models_own() -> None:
    model = random_model()
    ids = torch.randint(37, (12,))
    guesses = layer_guesses(model, inspect(model, ids), 11, 5, 37)
    assert len(guesses) == model.config.n_layer + 1
    best = model(ids[None])[0][0, -1].softmax(dim=-1).topk(5)
    assert [index for index, _ in guesses[-1]] == best.indices.tolist()
    assert [value for _, value in guesses[-1]] == pytest.approx(best.values.tolist())


def test_neighbours_are_the_largest_cosines() -> None:
    model = random_model()
    weight = model.token_embedding.weight
    found = neighbours(model, 5, 4, 30)
    cosines = F.cosine_similarity(weight[5], weight[:30], dim=-1).tolist()
    expected = sorted((index for index in range(30) if index != 5), key=lambda index: -cosines[index])[:4]
    assert [index for index, _ in found] == expected
    assert [cosine for _, cosine in found] == pytest.approx([cosines[index] for index in expected], abs=1e-6)


def test_a_text_that_does_not_fit_is_refused() -> None:
    model = random_model()
    with pytest.raises(ValueError, match="empty"):
        inspect(model, torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="25 positions do not fit"):
        inspect(model, torch.zeros(25, dtype=torch.long))
    assert inspect(model, torch.zeros(24, dtype=torch.long)).attention.shape[-1] == 24
