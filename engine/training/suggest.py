"""Choose settings for the size of a data set where the user gives none; find settings that contradict.

Small data sets are read for many epochs, with dropout. From 30 million tokens on it is four epochs, which
teach nearly as much as new text would (Muennighoff et al., 2023), and from 3 billion tokens on it is one.
"""

from typing import Any

from engine.command_line import Sources
from engine.data.dataset import DATA_FOLDER, read_meta, tokens_of
from engine.settings import STARTS, TrainSettings

SMALL = dict(
    n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=64, learning_rate=1e-3, beta2=0.99
)  # fmt: skip
MEDIUM = dict(n_layer=8, n_head=8, n_embd=512, block_size=512, batch_size=64, learning_rate=1e-3)
# The smallest GPT-2, with nanoGPT's batch.
GPT2 = dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, batch_size=12)
# (largest number of training tokens, epochs, settings)
SIZES: list[tuple[float, float, dict[str, Any]]] = [
    (3e6, 30, SMALL | dict(dropout=0.2)),
    (3e7, 10, SMALL | dict(dropout=0.1)),
    (3e8, 4, MEDIUM),
    (3e9, 4, GPT2 | dict(gradient_accumulation_steps=20)),
    (float("inf"), 1, GPT2),
]
# Without an accelerator: a run of minutes, whatever the size of the data.
ON_CPU = dict(
    n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12, dropout=0.0, learning_rate=3e-3, beta2=0.99
)
CPU_STEPS = 2000
MIN_STEPS, MAX_STEPS = 500, 600_000
FROM_WEIGHTS = ("n_layer", "n_head", "n_embd", "block_size", "dropout")
FINETUNING = 1 / 20  # of the learning rate, so that pretrained weights are adapted and not replaced


def suggest(
    meta: dict[str, Any], on_cpu: bool, given: dict[str, Any], from_weights: bool = False
) -> dict[str, Any]:
    """Settings for the data set of a meta.json, without those that the user has `given`.

    They fit the given ones: the heads divide the width, and the steps depend on the batch. With
    `from_weights` the shape comes from the weights and is left out.
    """
    tokens = tokens_of(meta)
    epochs, shape = next((epochs, settings) for limit, epochs, settings in SIZES if tokens["train"] <= limit)
    chosen: dict[str, Any] = dict(ON_CPU if on_cpu else shape)
    if on_cpu or tokens["train"] <= 3e8:
        chosen["gradient_accumulation_steps"] = 1
    longest = max(1, min(tokens.values()) - 1)
    chosen["block_size"] = min(chosen["block_size"], 1 << (longest.bit_length() - 1))  # a power of two
    chosen |= given
    if "n_embd" in given and "n_head" not in given:
        numbers = range(1, chosen["n_head"] + 1)
        chosen["n_head"] = max(heads for heads in numbers if given["n_embd"] % heads == 0)
    if "n_head" in given and "n_embd" not in given:
        chosen["n_embd"] = given["n_head"] * max(1, round(chosen["n_embd"] / given["n_head"]))
    step = chosen["batch_size"] * chosen.get("gradient_accumulation_steps", 40) * chosen["block_size"]
    steps = min(MAX_STEPS, max(MIN_STEPS, round(epochs * tokens["train"] / step)))
    steps = given.get("max_iters", CPU_STEPS if on_cpu else steps)
    chosen |= {
        "max_iters": steps,
        "warmup_iters": min(2000, steps // 20),
        "eval_interval": max(MIN_STEPS // 10, min(1000, steps // 10)),
        "log_interval": 1 if steps < 100 else 10,
    }
    left_out = set(given)
    if "learning_rate" in given:  # beta2 belongs to the learning rate that it is suggested with
        left_out.add("beta2")
    if given.get("decay_lr") is False:
        left_out.add("warmup_iters")
    if from_weights:
        left_out |= set(FROM_WEIGHTS)
        chosen["learning_rate"] = FINETUNING * chosen.get("learning_rate", 6e-4)
    return {name: value for name, value in chosen.items() if name not in left_out}


def names_dataset(sources: Sources) -> bool:
    """Whether the user names a data set. Without one the defaults are GPT-2's on OpenWebText."""
    return "dataset" in sources.file | sources.command_line


def settings_for_data(sources: Sources, on_cpu: bool) -> dict[str, Any]:
    """The settings that the user leaves out, chosen for the prepared data set that they name."""
    meta = read_meta(DATA_FOLDER / sources.get("dataset") / "meta.json")
    return suggest(meta, on_cpu, sources.given(on_cpu), sources.get("init_from") not in STARTS)


def find_contradictions(settings: TrainSettings, training_tokens: int) -> list[str]:
    """A sentence, with figures, for each consequence of the settings that nobody can want."""
    found = []
    rate, steps, warmup = settings.learning_rate, settings.max_iters, settings.warmup_iters
    end = settings.lr_decay_iters
    if settings.decay_lr and warmup > steps > 0:
        found.append(
            f"warmup_iters {warmup:,} is beyond the last step, {steps:,}, so the learning rate never exceeds "
            f"{rate * steps / (warmup + 1):.2g} of {rate:.2g}"
        )
    elif settings.decay_lr and end is not None and end <= warmup < steps:
        found.append(
            f"lr_decay_iters {end:,} is not beyond the warm-up of {warmup:,} steps, so after it the learning "
            f"rate is {settings.lowest_learning_rate():.2g} at once"
        )
    tokens = settings.sequences_per_step() * settings.block_size
    if tokens > training_tokens:
        found.append(
            f"a step of batch_size × gradient_accumulation_steps × block_size = {tokens:,} tokens reads the "
            f"{training_tokens:,} training tokens {tokens / training_tokens:.1f} times"
        )
    return found
