"""count.py: the module's own parameters, against formulas, and against figures that others published."""

import random
import subprocess
import sys
from dataclasses import replace

import pytest
from torch import nn

import model as model_file
from count import PRESETS, activation_bytes, find_config, in_bytes, in_time
from engine.errors import UserError
from engine.shape import MATRICES, count_parameters, flops_per_token
from model import GPTConfig


def by_formula(config: GPTConfig) -> dict[str, int]:
    """Parameters by role, from the configuration alone."""
    width, layers, bias = config.n_embd, config.n_layer, int(config.bias)
    square = layers * width * width
    return {
        "embedding": config.vocab_size * width,
        "query": square,
        "key": square,
        "value": square,
        "output": square,
        "up": 4 * square,
        "down": 4 * square,
        "unembedding": 0 if config.tied_head else config.vocab_size * width,
        "positions": config.block_size * width if config.position == "learned" else 0,
        "norms": (2 * layers + 1) * width,
        "biases": bias * (layers * 9 * width + (2 * layers + 1) * width),
        "shift": width if config.token_shift else 0,
    }


def flops_by_formula(config: GPTConfig, length: int) -> int:
    """6 N + 12 L C T, N without what is looked up."""
    counts = by_formula(config)
    looked_up = counts["positions"] + (0 if config.tied_head else counts["embedding"])
    return 6 * (sum(counts.values()) - looked_up) + 12 * config.n_layer * config.n_embd * length


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_counted_as_by_the_formulas(preset: str) -> None:
    config = find_config(preset)
    assert count_parameters(config) == by_formula(config)
    assert flops_per_token(config) == flops_by_formula(config, config.block_size)
    assert flops_per_token(config, 10) == flops_by_formula(config, 10)


def test_any_shape_is_counted_as_by_the_formulas() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed)
    for _ in range(20):
        heads = draw.randint(1, 4)
        config = GPTConfig(
            vocab_size=draw.randint(2, 300),
            block_size=draw.randint(1, 64),
            n_layer=draw.randint(1, 5),
            n_head=heads,
            n_embd=heads * 2 * draw.randint(1, 8),
            position=draw.choice(("learned", "rotary")),
            bias=draw.random() < 0.5,
            tied_head=draw.random() < 0.5,
            token_shift=draw.random() < 0.5,
        )
        assert count_parameters(config) == by_formula(config), config
        assert flops_per_token(config) == flops_by_formula(config, config.block_size), config


def test_a_parameter_of_no_known_role_is_counted_as_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gated(model_file.MLP):
        """An MLP with one matrix more."""

        def __init__(self, config: GPTConfig) -> None:
            super().__init__(config)
            self.gate = nn.Linear(config.n_embd, 7, bias=True)

    plain = GPTConfig(vocab_size=11, block_size=9, n_layer=3, n_head=1, n_embd=5, bias=False)
    expected = count_parameters(plain) | {"biases": 3 * 7, "other": 3 * 5 * 7}
    monkeypatch.setattr(model_file, "MLP", Gated)
    changed = replace(plain, dropout=0.5)  # not the shape that has been counted already
    assert count_parameters(changed) == expected
    assert flops_per_token(changed) - flops_per_token(plain) == 6 * (3 * 7 + 3 * 5 * 7)


def test_gpt3_is_counted_as_in_the_published_count_and_gpt2_as_its_weights() -> None:
    """175,181,291,520: Sanderson, 3Blue1Brown, "Transformers, the tech behind LLMs" (2024), chapters 5-7."""
    gpt3 = count_parameters(find_config("gpt3"))
    assert sum(gpt3[name] for name in MATRICES) == 175_181_291_520
    assert gpt3["up"] == gpt3["down"] == 57_982_058_496
    assert gpt3["embedding"] == gpt3["unembedding"] == 617_558_016
    assert gpt3["query"] == gpt3["output"] == 14_495_514_624
    assert sum(count_parameters(find_config("gpt2")).values()) == 124_439_808
    published = {"gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
    for preset, parameters in published.items():
        assert sum(count_parameters(find_config(preset)).values()) == parameters


def test_activations_of_a_sequence_are_about_those_of_the_published_formula() -> None:
    """34 bytes a channel of a block in half precision (Korthikanti et al., 2022, without scores), and logits.

    Theirs has a byte a channel for each of two masks of dropout, which GPT-3's shape here lacks; ours keeps
    the residual stream in four bytes, not two.
    """
    config = find_config("gpt3")
    copies, sequence = activation_bytes(config, "bfloat16")
    channels = config.n_layer * config.block_size * config.n_embd
    logits = 4 * config.block_size * config.vocab_size
    assert sequence == pytest.approx((34 - 2 + 2 * 2) * channels + logits, rel=0.1)
    matrices = sum(count_parameters(config)[name] for name in MATRICES if name != "embedding")
    assert copies == pytest.approx(2 * matrices, rel=0.001)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "count.py", *arguments], capture_output=True, text=True)


def test_the_command_prints_the_table() -> None:
    finished = run("gpt3", "--tokens", "300e9", "--flops", "1e15")
    assert finished.returncode == 0, finished.stderr
    assert "175,181,291,520" in finished.stdout
    assert finished.stdout.count("57,982,058,496") == 2
    assert "10.2 years" in finished.stdout  # 300e9 tokens × 1.09e12 FLOPs / 1e15 FLOP/s = 3.23e8 s


def test_a_configuration_file_is_counted_with_and_without_its_part_for_cpus() -> None:
    large = find_config("configs/shakespeare_char.py", vocab_size=65)
    small = find_config("configs/shakespeare_char.py", cpu=True, vocab_size=65)
    assert (large.n_layer, small.n_layer, small.n_embd, small.vocab_size) == (6, 4, 128, 65)
    assert sum(count_parameters(small).values()) == 804_096


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gpt5"], "gpt5 is no preset"),
        (["gpt2", "--tokens", "-1"], "--tokens is -1.0"),
        (["configs/nothing.py"], "there is no configuration file"),
        (["gpt2", "--flops", "much"], "invalid float value"),
    ],
)
def test_a_wrong_command_gets_one_line(arguments: list[str], sentence: str) -> None:
    finished = run(*arguments)
    assert finished.returncode == 2
    assert sentence in finished.stderr
    assert len(finished.stderr.splitlines()) == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_config(str(tmp_path))


def test_sizes_and_times_are_written_in_fitting_units() -> None:
    assert [in_bytes(size) for size in (1000, 2**20, 1.5 * 2**30, 2**41)] == [
        "1000 B",
        "1 MiB",
        "1.5 GiB",
        "2 TiB",
    ]
    assert [in_time(seconds) for seconds in (1.5, 90, 7200, 86400 * 2)] == [
        "1.5 seconds",
        "1.5 minutes",
        "2.0 hours",
        "2.0 days",
    ]
