"""Count a GPT: parameters by matrix, arithmetic, memory, and time to train.

    python count.py
    python count.py gpt3
    python count.py gpt2-xl --tokens 300e9 --flops 400e12
    python count.py configs/shakespeare_char.py
    python count.py out/shakespeare_char

Presets are gpt2, gpt2-medium, gpt2-large, gpt2-xl, and gpt3: the shape of GPT-3 175B (Brown et al., 2020,
table 2.1), with a head of its own. Matrices are counted apart from positions, norms and biases.

Memory to train is that of weights, gradients and AdamW's two moments, all in float32 (bfloat16 adds a copy of
the weights for the products), and for each sequence what the backward pass needs, with a GPU's attention.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.command_line import Parser, read_early, read_settings, run_script
from engine.errors import UserError
from engine.settings import TrainSettings

TOKENS_PER_PARAMETER = 20  # about the best use of a fixed amount of arithmetic (Hoffmann et al., 2022)


def read_options(arguments: Sequence[str]) -> Namespace:
    """The command line, checked. Raises UserError."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("what", nargs="?", help="a preset, a configuration file, or a run's folder (default: the newest run)")
    add("--cpu", action="store_true", help="apply the configuration file's part for CPUs")
    add("--vocab_size", type=int, help="vocabulary, where the configuration's data is not prepared yet")
    add("--tokens", type=float, help="tokens to train on (default: 20 for each parameter)")
    reached = "FLOP/s that training reaches (default: 400e12, an H100 at 40%%)"
    add("--flops", type=float, default=400e12, help=reached)
    options = parser.parse_args(arguments)
    for name in ("tokens", "flops", "vocab_size"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} is {value}; it must be a number above 0")
    return options


# Above the slow imports, so that --help and mistakes are answered at once.
OPTIONS = read_early(read_options) if __name__ == "__main__" else None

from engine.data.dataset import DATA_FOLDER, read_meta
from engine.device import Compute
from engine.runs import newest_run, similar_run
from engine.shape import MATRICES, count_parameters, flops_per_token, model_config
from engine.training.memory import TrainingMemory
from engine.training.suggest import names_dataset, settings_for_data
from engine.weights.checkpoint import open_checkpoint
from model import GPTConfig

# GPT-2's shapes: Radford et al. (2019) and the published weights.
GPT2 = GPTConfig(bias=True, activation="gelu_tanh")
PRESETS = {
    "gpt2": GPT2,
    "gpt2-medium": replace(GPT2, n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": replace(GPT2, n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": replace(GPT2, n_layer=48, n_head=25, n_embd=1600),
    "gpt3": replace(GPT2, n_layer=96, n_head=96, n_embd=12288, block_size=2048, tied_head=False),
}


def main(arguments: Sequence[str]) -> None:
    """Count as a command line says."""
    count(read_options(arguments))


def count(options: Namespace) -> None:
    """Print the tables of a model's parameters and costs."""
    what = options.what or str(newest_run("to count"))
    config = find_config(what, options.cpu, options.vocab_size)
    parameters = sum(count_parameters(config).values())
    tokens = options.tokens or float(TOKENS_PER_PARAMETER * parameters)
    print("\n".join(table(what, config)), flush=True)
    print("\n".join(costs(config, parameters, tokens, options.flops)))


def find_config(what: str, cpu: bool = False, vocab_size: int | None = None) -> GPTConfig:
    """The shape of a preset, a configuration file or a run. Raises UserError."""
    if what in PRESETS:
        return PRESETS[what]
    if Path(what).is_dir():
        return open_checkpoint(Path(what), "best").model_config()
    if what.endswith(".py"):
        sources = read_settings(TrainSettings, [what], "")
        meta = DATA_FOLDER / sources.get("dataset") / "meta.json"
        if meta.is_file() and names_dataset(sources) and sources.nanogpt_mark is None:
            sources.file |= settings_for_data(sources, cpu)
        settings = sources.settings(on_cpu=cpu)
        if vocab_size is None and not meta.is_file():
            raise UserError(
                f"the vocabulary of {what} is that of data/{settings.dataset}, which is not there; "
                f"prepare it, or add --vocab_size=50257 (GPT-2's)"
            )
        return model_config(settings, vocab_size or read_meta(meta)["vocab_size"])
    kinds = f"no preset ({', '.join(PRESETS)}), no configuration file and no run's folder"
    raise UserError(f"{what} is {kinds}{similar_run(what, PRESETS)}")


def table(name: str, config: GPTConfig) -> list[str]:
    """The shape, and the parameters by role."""
    counts = count_parameters(config)
    matrices = sum(counts[role] for role in MATRICES)
    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    shape = ", ".join(f"{field} {getattr(config, field)}" for field in names)
    lines = [f"{name}: {shape}", "", f"{'matrix':<14}{'parameters':>20}{'share':>9}"]
    for role in MATRICES:
        shared = role == "unembedding" and config.tied_head
        share = "  (the embedding, used again)" if shared else f"{counts[role] / matrices:>9.2%}"
        lines.append(f"{role:<14}{counts[role]:>20,}{share}")
    lines.append(f"{'all matrices':<14}{matrices:>20,}{1:>9.2%}")
    lines += [f"{role:<14}{count:>20,}" for role, count in counts.items() if role not in MATRICES]
    return [*lines, f"{'everything':<14}{sum(counts.values()):>20,}", ""]


def costs(config: GPTConfig, parameters: int, tokens: float, flops: float) -> list[str]:
    """Arithmetic, memory and time, in lines."""
    training = flops_per_token(config)
    lines = [
        f"FLOPs per token at {config.block_size} positions: {training:,} to train, {training // 3:,} to read",
        f"{'memory':<10}{'to train':>12}{'+ a sequence':>14}{'to sample':>12}{'+ a sequence':>14}",
    ]
    for dtype, size in {"float32": 4, "bfloat16": 2}.items():
        copies, sequence = activation_bytes(config, dtype)
        cache = 2 * config.n_layer * config.block_size * config.n_embd * size  # keys and values
        train, sample = in_bytes(16 * parameters + copies), in_bytes(parameters * size)
        lines.append(f"{dtype:<10}{train:>12}{in_bytes(sequence):>14}{sample:>12}{in_bytes(cache):>14}")
    work = tokens * training
    time = f"{in_time(work / flops)} at {flops:.3g} FLOP/s"
    return [*lines, f"training on {tokens:,.0f} tokens takes {work:.3g} FLOPs: {time}"]


def activation_bytes(config: GPTConfig, dtype: str) -> tuple[int, int]:
    """Bytes that autograd saves on a GPU, for copies of the weights and for a sequence."""
    compute = Compute("cuda", dtype, False, 1)

    def saved(sequences: int) -> int:
        """Bytes saved for a batch. All blocks save the same, so one and two blocks are counted."""
        shapes = (replace(config, n_layer=layers) for layers in (1, 2))
        memories = (TrainingMemory(shape, TrainSettings(), compute) for shape in shapes)
        one, two = (memory.saved_bytes(sequences) for memory in memories)
        return one + (config.n_layer - 1) * (two - one)

    first, second = saved(1), saved(2)
    return 2 * first - second, second - first


def in_bytes(size: float) -> str:
    """A size with one to four digits before the point, e.g. 1.86 GiB."""
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
    run_script(count, OPTIONS)
