"""Muon and the schedules, against singular value decompositions and formulas."""

import math

import pytest
import torch

from engine.settings import TrainSettings
from engine.training.muon import orthogonalise, orthogonalise_directly, split_qkv
from engine.training.optimizer import clip_gradients, learning_rate_factor, make_optimizer
from model import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16, bias=False)


@pytest.mark.parametrize("shape", [(64, 64), (64, 256)])
def test_bf16_as_on_gpus_orthogonalises_as_well_as_float32(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, -2, 64, dtype=torch.float64)
    x = (left * values) @ right
    x = (x / (x.norm() * 1.01)).float()[None]
    distances = []
    for dtype in (torch.float32, torch.bfloat16):
        found = orthogonalise_directly(x.to(dtype)).double()[0]
        distances.append((found - left @ right).norm().item() / 8)  # 8 is the norm of the exact answer
    assert distances[1] < distances[0] + 0.02


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 64), (2, 64, 16), (1, 1, 8)])
def test_orthogonalising_gives_the_singular_vectors_with_values_of_one(shape: tuple[int, ...]) -> None:
    """Singular values drawn between 0.02 and 1 come out within 2% of 1, vectors unchanged."""
    batch, rows, columns = shape
    least = min(rows, columns)
    left = torch.linalg.qr(torch.randn(batch, rows, least, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(batch, columns, least, dtype=torch.float64))[0]
    values = torch.empty(batch, least, dtype=torch.float64).uniform_(0.3, 1) * 7
    found = orthogonalise(left * values[:, None] @ right.mT)
    torch.testing.assert_close(
        torch.linalg.svdvals(found), torch.ones(batch, least, dtype=torch.float64), rtol=0.02, atol=0
    )
    torch.testing.assert_close(found, left @ right.mT, rtol=0, atol=0.02)


def test_a_muon_step_is_the_formula() -> None:
    settings = TrainSettings(optimizer="muon", muon_learning_rate=0.1, muon_momentum=0.8, weight_decay=0.2)
    model = GPT(CONFIG).double()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, settings)
    average = {name: torch.zeros_like(parameter) for name, parameter in before.items()}
    for _ in range(2):
        for group in optimizer.param_groups:
            group["lr"] = group["max_lr"]
        gradients = {}
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name] = torch.randn_like(parameter)
        optimizer.step()
        for name, parameter in model.named_parameters():
            if name.startswith("blocks.") and parameter.dim() == 2:
                average[name] = 0.8 * average[name] + 0.2 * gradients[name]
                direction = 0.2 * gradients[name] + 0.8 * average[name]
                parts = []
                for weight, part in zip(split_qkv(before[name]), split_qkv(direction), strict=True):
                    scale = 0.1 * math.sqrt(max(1, weight.shape[0] / weight.shape[1]))
                    parts.append(weight * (1 - 0.1 * 0.2) - scale * orthogonalise(part[None])[0])
                torch.testing.assert_close(parameter.detach(), torch.cat(parts), rtol=0, atol=1e-12)
                before[name] = parameter.detach().clone()


def test_muon_leaves_the_rest_to_adamw() -> None:
    models = [GPT(CONFIG).double() for _ in range(2)]
    optimizers = []
    for model, kind in zip(models, ("muon", "adamw"), strict=True):
        model.init_weights(1)
        optimizers.append(make_optimizer(model, TrainSettings(optimizer=kind)))
    for _ in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            for number, (name, parameter) in enumerate(model.named_parameters()):
                parameter.grad = torch.full_like(parameter, 0.1 * number + len(name))
            optimizer.step()
    rest = [
        name
        for name, parameter in models[0].named_parameters()
        if not (name.startswith("blocks.") and parameter.dim() == 2)
    ]
    for name in rest:
        assert torch.equal(models[0].get_parameter(name), models[1].get_parameter(name)), name
    assert not torch.equal(models[0].blocks[0].mlp.up.weight, models[1].blocks[0].mlp.up.weight)


def test_every_parameter_is_in_one_group_of_muon() -> None:
    model = GPT(CONFIG)
    groups = make_optimizer(model, TrainSettings(optimizer="muon")).param_groups
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))
    assert len(groups[0]["params"]) == 4 * CONFIG.n_layer


def test_clipping_equals_pytorchs() -> None:
    for largest in (0.5, 100.0):
        pairs = []
        for _ in range(2):
            torch.manual_seed(5)
            parameters = [torch.nn.Parameter(torch.randn(3, 4)) for _ in range(4)]
            for parameter in parameters:
                parameter.grad = torch.randn(3, 4)
            pairs.append(parameters)
        norm = clip_gradients(pairs[0], largest)
        assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(pairs[1], largest))
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(*pairs, strict=True))
    assert torch.equal(clip_gradients(pairs[0], 0.0), norm)


def test_the_linear_schedule_stays_high_and_then_falls() -> None:
    settings = TrainSettings(
        learning_rate=2.0, min_lr=0.0, warmup_iters=2, max_iters=100, schedule="linear", decay_share=0.4
    )
    factors = [learning_rate_factor(step, settings) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 3) and factors[2:61] == [1.0] * 59
    assert factors[80] == pytest.approx(0.5) and factors[100] == 0.0
