"""What everything else relies on, for the model as model.py has it now, whatever was changed in it.

    python -m pytest tests/contract

Run it after a change of the model. A failure says which promise broke, and what that means.
"""

import math
from pathlib import Path

import pytest
import torch
from support.commands import command, several
from support.runs import losses, tensors

from engine.generation import KVCache, Sampling, generate, read
from engine.kernels import install
from engine.shape import count_parameters
from model import GPT, GPTConfig

SHAPE = dict(vocab_size=61, block_size=16, n_layer=2, n_head=2, n_embd=32)
CONFIGS = {
    "as it is": GPTConfig(**SHAPE),
    "rotary": GPTConfig(**SHAPE, position="rotary", qk_norm=True, activation="relu2", token_shift=True),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
EXACT = ["tiny.py", "--dtype=float64", "--dropout=0", "--sample_tokens=0"]
EXACT += ["--max_iters=6", "--eval_interval=6"]


def random_model(config: GPTConfig) -> GPT:
    """Weights near the initial ones, but with none that is the same as another, in float64."""
    model = GPT(config).double()
    model.init_weights(seed=torch.randint(10**6, ()).item())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def random_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(SHAPE["vocab_size"], (rows, length))


@every_config
def test_no_position_sees_a_later_one(config: GPTConfig) -> None:
    model, ids = random_model(config), random_ids(1, 12)
    changed = ids.clone()
    changed[0, 7:] = (ids[0, 7:] + 1) % SHAPE["vocab_size"]
    torch.testing.assert_close(
        model(ids)[:, :7],
        model(changed)[:, :7],
        rtol=0,
        atol=1e-12,
        msg="the model is not causal: a position sees a later one. The training loss is then too good, since "
        "the answer is in the input, and samples are nonsense.",
    )


@every_config
def test_every_parameter_gets_a_gradient(config: GPTConfig) -> None:
    model = random_model(config).train()
    model(random_ids(4, 16), random_ids(4, 16)).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle, (
        f"no gradient reaches {', '.join(idle)}: forward does not use it, or multiplies it by 0. It would "
        "never be trained; under DDP a parameter without a gradient stops the run."
    )


@every_config
def test_initial_weights_guess(config: GPTConfig) -> None:
    model = GPT(config)
    model.init_weights(seed=torch.randint(10**6, ()).item())
    loss = model(random_ids(64, 16), random_ids(64, 16)).item() / (64 * 16)
    expected = math.log(SHAPE["vocab_size"])
    assert loss == pytest.approx(expected, rel=0.03), (
        f"the initial loss is {loss:.3f}, not ln V = {expected:.3f}: initial weights are too large, and the "
        "first steps of training only shrink them. See GPT.initial_distribution."
    )


@every_config
def test_the_cache_changes_nothing(config: GPTConfig) -> None:
    model, ids = random_model(config), random_ids(3, 16)
    cache = KVCache(model, 3)
    with torch.no_grad():
        seen = [read(model, ids[:, :5], cache)]
        seen += [read(model, ids[:, t : t + 1], cache) for t in range(5, 16)]
        whole = model(ids)[:, 4:]
    torch.testing.assert_close(
        torch.stack(seen, dim=1),
        whole,
        rtol=0,
        atol=1e-10,
        msg="with the cache of keys and values the model computes something else than without: sample.py and "
        "chat.py would write other text than the model that was trained. What an attention layer needs of "
        "earlier positions has to pass through cache.extend, and positions count from cache.length.",
    )


@every_config
def test_the_faster_kernels_change_nothing(config: GPTConfig) -> None:
    model, ids = random_model(config), random_ids(3, 16)
    with torch.no_grad():
        plain = model(ids)
        torch.testing.assert_close(
            install(model)(ids),
            plain,
            rtol=0,
            atol=1e-10,
            msg="engine/kernels.py computes something else than the model: what is trained is not model.py.",
        )
        text = generate(install(model.float(), inference=True), ids[:, :3], 20, Sampling(temperature=0))
    assert text.shape == (3, 23)


@every_config
def test_the_printed_count_is_the_modules(config: GPTConfig) -> None:
    held = sum(parameter.numel() for parameter in GPT(config).parameters())
    assert sum(count_parameters(config).values()) == held, (
        "the printed number of parameters is not that of the module; FLOPs, MFU and count.py are wrong, too."
    )


def test_a_run_is_saved_resumed_and_sampled(place: Path) -> None:
    """The real commands on the model in the file: 6 steps at once, and 3 + 3 steps."""
    assert command(place, "train.py", *EXACT, "--out_dir=one").returncode == 0, "a plain run fails"
    part = [*EXACT, "--out_dir=part", "--max_iters=3", "--lr_decay_iters=6"]
    assert command(place, "train.py", *part).returncode == 0
    resumed = command(place, "train.py", *EXACT, "--out_dir=part", "--init_from=resume")
    assert resumed.returncode == 0, f"a checkpoint of this model cannot be resumed: {resumed.stderr}"
    whole, part_tensors = tensors(place / "one"), tensors(place / "part")
    differing = [name for name in whole if not torch.equal(whole[name], part_tensors[name])]
    assert not differing, f"a resumed run ends in other weights: {differing[:3]}; some state is not saved"
    sampled = command(place, "sample.py", "--out_dir=one", "--num_samples=1", "--max_new_tokens=40")
    assert sampled.returncode == 0, f"a trained model cannot be sampled from: {sampled.stderr}"


def test_two_processes_train_as_one(place: Path) -> None:
    assert command(place, "train.py", *EXACT, "--out_dir=one").returncode == 0, "a plain run fails"
    two = [*EXACT, "--out_dir=two", "--batch_size=2", "--gradient_accumulation_steps=4"]
    both = several(place, 2, "train.py", *two)
    assert both.returncode == 0, f"two processes fail: {both.stderr[-2000:]}"
    assert losses(place / "two") == pytest.approx(losses(place / "one"), rel=1e-10), (
        "two processes train otherwise than one: something in the model depends on the rows of its batch"
    )
