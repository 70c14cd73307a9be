"""count.py: against the module's own parameters, and against figures that others published."""

import random
import subprocess
import sys

import pytest
import torch

from count import PRESETS, find_config, in_bytes, in_time
from engine.errors import UserError
from engine.shape import APART, MATRICES, count_by_matrix
from model import GPT, GPTConfig, count_parameters


def of_module(config: GPTConfig) -> dict[str, int]:
    """The same table, counted on a module without memory, by the names of its parameters."""
    with torch.device("meta"):
        model = GPT(config)
    counts = dict.fromkeys((*MATRICES, *APART), 0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            counts["biases"] += parameter.numel()
        elif name == "token_shift":
            counts["shift"] += parameter.numel()
        elif "norm" in name:
            counts["norms"] += parameter.numel()
        elif name.endswith("qkv.weight"):
            for key, part in zip(("query", "key", "value"), parameter.chunk(3), strict=True):
                counts[key] += part.numel()
        else:
            role = {"token_embedding": "embedding", "position_embedding": "positions", "head": "unembedding"}
            role |= {"out": "output", "up": "up", "down": "down"}
            counts[role[name.split(".")[-2]]] += parameter.numel()
    return counts


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_counted_as_the_module_counts_itself(preset: str) -> None:
    config = find_config(preset)
    assert count_by_matrix(config) == of_module(config)
    assert sum(count_by_matrix(config).values()) == sum(count_parameters(config).values())


def test_any_shape_is_counted_as_the_module_counts_itself() -> None:
    for _ in range(20):
        heads = random.randint(1, 4)
        config = GPTConfig(
            vocab_size=random.randint(2, 300),
            block_size=random.randint(1, 64),
            n_layer=random.randint(1, 5),
            n_head=heads,
            n_embd=heads * 2 * random.randint(1, 8),
            position=random.choice(("learned", "rotary")),
            bias=random.random() < 0.5,
            tied_head=random.random() < 0.5,
            token_shift=random.random() < 0.5,
        )
        assert count_by_matrix(config) == of_module(config), config


def test_gpt3_is_counted_as_in_the_published_count_and_gpt2_as_its_weights() -> None:
    """175,181,291,520: Sanderson, 3Blue1Brown, "Transformers, the tech behind LLMs" (2024), chapters 5-7."""
    gpt3 = count_by_matrix(find_config("gpt3"))
    assert sum(gpt3[name] for name in MATRICES) == 175_181_291_520
    assert gpt3["up"] == gpt3["down"] == 57_982_058_496
    assert gpt3["embedding"] == gpt3["unembedding"] == 617_558_016
    assert gpt3["query"] == gpt3["output"] == 14_495_514_624
    assert sum(count_by_matrix(find_config("gpt2")).values()) == 124_439_808
    published = {"gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
    for preset, parameters in published.items():
        assert sum(count_by_matrix(find_config(preset)).values()) == parameters


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
    assert sum(count_by_matrix(small).values()) == 804_096


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
