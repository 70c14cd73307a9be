"""Count a GPT: parameters by matrix, arithmetic, memory, and time to train.

    python count.py gpt3
    python count.py gpt2-xl --tokens 300e9 --flops 400e12
    python count.py configs/shakespeare_char.py
    python count.py out/shakespeare_char

A preset (gpt2, gpt2-medium, gpt2-large, gpt2-xl, gpt3), a configuration file or a run. Matrices are counted
apart from positions, norms and biases. gpt3 has the shape of GPT-3 175B (Brown et al., 2020, table 2.1),
with a head of its own.
"""

import dataclasses
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.command_line import Parser, read_settings, run_script
from engine.errors import UserError
from engine.settings import TrainSettings

if TYPE_CHECKING:  # torch comes with these; --help does without
    from model import GPTConfig

# n_layer, n_head, n_embd, block_size, tied_head. GPT-2: Radford et al. (2019) and the published weights.
PRESETS = {
    "gpt2": (12, 12, 768, 1024, True),
    "gpt2-medium": (24, 16, 1024, 1024, True),
    "gpt2-large": (36, 20, 1280, 1024, True),
    "gpt2-xl": (48, 25, 1600, 1024, True),
    "gpt3": (96, 96, 12288, 2048, False),
}
TOKENS_PER_PARAMETER = 20  # about the best use of a fixed amount of arithmetic (Hoffmann et al., 2022)


def main(arguments: Sequence[str]) -> None:
    """Count what the command line names and print it."""
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("what", help="a preset, a configuration file, or a run's folder")
    parser.add_argument("--cpu", action="store_true", help="apply the configuration file's part for CPUs")
    parser.add_argument(
        "--vocab_size", type=int, help="vocabulary, where the configuration's data is not prepared yet"
    )
    parser.add_argument("--tokens", type=float, help="tokens to train on (default: 20 for each parameter)")
    parser.add_argument(
        "--flops",
        type=float,
        default=400e12,
        help="FLOP/s that training reaches (default: 400e12, an H100 at 40%%)",
    )
    options = parser.parse_args(arguments)
    for name in ("tokens", "flops", "vocab_size"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} is {value}; it must be a number above 0")

    from engine.shape import count_by_matrix

    config = find_config(options.what, options.cpu, options.vocab_size)
    counts = count_by_matrix(config)
    tokens = options.tokens or float(TOKENS_PER_PARAMETER * sum(counts.values()))
    print("\n".join(report(options.what, config, counts, tokens, options.flops)))


def find_config(what: str, cpu: bool = False, vocab_size: int | None = None) -> "GPTConfig":
    """The shape that a preset, a configuration file or a run's folder stands for. Raises UserError."""
    from model import GPTConfig

    if what in PRESETS:
        n_layer, n_head, n_embd, block_size, tied = PRESETS[what]
        return GPTConfig(block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd, tied_head=tied)
    if Path(what).is_dir():
        from engine.weights.checkpoint import open_checkpoint

        return open_checkpoint(Path(what), "best").model_config()
    if what.endswith(".py"):
        from engine.data.dataset import DATA_FOLDER, read_meta
        from engine.shape import model_config

        settings = read_settings(TrainSettings, [what], "").settings(on_cpu=cpu)
        meta = DATA_FOLDER / settings.dataset / "meta.json"
        if vocab_size is None and not meta.is_file():
            raise UserError(
                f"the vocabulary of {what} is that of data/{settings.dataset}, which is not there; "
                f"prepare it, or add --vocab_size=50257 (GPT-2's)"
            )
        return model_config(settings, vocab_size or read_meta(meta)["vocab_size"])
    raise UserError(f"{what} is no preset ({', '.join(PRESETS)}), no configuration file and no run's folder")


def report(name: str, config: "GPTConfig", counts: dict[str, int], tokens: float, flops: float) -> list[str]:
    """The lines that are printed."""
    from engine.shape import APART, BYTES, MATRICES, sampling_memory, training_memory
    from model import flops_per_token

    matrices = sum(counts[key] for key in MATRICES)
    total = sum(counts.values())
    shape = ", ".join(
        f"{field.name} {getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if field.name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    )
    lines = [f"{name}: {shape}", "", f"{'matrix':<14}{'parameters':>20}{'share':>9}"]
    for key in MATRICES:
        shared = key == "unembedding" and config.tied_head
        share = "  (the embedding, used again)" if shared else f"{counts[key] / matrices:>9.2%}"
        lines.append(f"{key:<14}{counts[key]:>20,}{share}")
    lines.append(f"{'all matrices':<14}{matrices:>20,}{1:>9.2%}")
    lines += [f"{key:<14}{counts[key]:>20,}" for key in APART]
    lines += [f"{'everything':<14}{total:>20,}", ""]

    training = flops_per_token(config)
    lines.append(
        f"FLOPs per token at {config.block_size} positions: {training:,} to train, {training // 3:,} to read"
    )
    lines.append(f"{'memory':<10}{'to train':>12}{'+ a sequence':>14}{'to sample':>12}{'+ a sequence':>14}")
    for dtype in BYTES:
        sizes = training_memory(config, total, dtype) + sampling_memory(config, total, dtype)
        cells = [in_bytes(size) for size in sizes]
        lines.append(f"{dtype:<10}{cells[0]:>12}{cells[1]:>14}{cells[2]:>12}{cells[3]:>14}")
    work = tokens * training
    lines.append(
        f"training on {tokens:,.0f} tokens takes {work:.3g} FLOPs: "
        f"{in_time(work / flops)} at {flops:.3g} FLOP/s"
    )
    return lines


def in_bytes(size: float) -> str:
    """A size in the unit that gives one to four digits before the point, e.g. 1.86 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:,.4g} TiB" if size < 1000 else f"{size:,.0f} TiB"


def in_time(seconds: float) -> str:
    """A duration in the largest unit of which it has at least one, e.g. 4.1 hours."""
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.2g} seconds"


if __name__ == "__main__":
    run_script(main)
