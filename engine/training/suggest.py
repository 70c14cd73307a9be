"""Settings for a data set that comes without a configuration file, from its size. Imports no torch.

The smallest models see a text often and need dropout; from 30 million tokens on four epochs are made, which
teach nearly as much as fresh text would (Muennighoff et al., 2023), and from 3 billion on one.
"""

from typing import Any

from engine.data.dataset import tokens_of

SMALL = dict(
    n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=64, learning_rate=1e-3, beta2=0.99
)  # fmt: skip
MEDIUM = dict(n_layer=8, n_head=8, n_embd=512, block_size=512, batch_size=64, learning_rate=1e-3)
GPT2 = dict(
    n_layer=12, n_head=12, n_embd=768, block_size=1024, batch_size=12
)  # its smallest, and nanoGPT's batch
# Up to so many training tokens: epochs, and the settings.
SIZES: list[tuple[float, float, dict[str, Any]]] = [
    (3e6, 30, SMALL | dict(dropout=0.2)),
    (3e7, 10, SMALL | dict(dropout=0.1)),
    (3e8, 4, MEDIUM),
    (3e9, 4, GPT2 | dict(gradient_accumulation_steps=20)),
    (float("inf"), 1, GPT2),
]
# Without an accelerator: minutes, whatever the data's size.
ON_CPU = dict(
    n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12, dropout=0.0, learning_rate=3e-3, beta2=0.99
)
CPU_STEPS = 2000
FEWEST_STEPS, MOST_STEPS = 500, 600_000


def suggest(meta: dict[str, Any], on_cpu: bool, given: dict[str, Any]) -> dict[str, Any]:
    """Settings for the data set that a meta.json describes; those `given` on the command line are left out.

    What depends on a given setting follows it: the heads divide the width, and the steps fit the batch.
    """
    tokens = tokens_of(meta)
    epochs, shape = next((epochs, settings) for limit, epochs, settings in SIZES if tokens["train"] <= limit)
    chosen: dict[str, Any] = dict(ON_CPU if on_cpu else shape)
    if on_cpu or tokens["train"] <= 3e8:
        chosen["gradient_accumulation_steps"] = 1
    longest = max(1, min(tokens.values()) - 1)
    chosen["block_size"] = min(chosen["block_size"], 1 << (longest.bit_length() - 1))
    chosen |= given
    if "n_embd" in given and "n_head" not in given:
        chosen["n_head"] = max(
            heads for heads in range(1, chosen["n_head"] + 1) if given["n_embd"] % heads == 0
        )
    if "n_head" in given and "n_embd" not in given:
        chosen["n_embd"] = given["n_head"] * max(1, round(chosen["n_embd"] / given["n_head"]))
    step = chosen["batch_size"] * chosen.get("gradient_accumulation_steps", 40) * chosen["block_size"]
    steps = (
        CPU_STEPS if on_cpu else min(MOST_STEPS, max(FEWEST_STEPS, round(epochs * tokens["train"] / step)))
    )
    steps = given.get("max_iters", steps)
    chosen |= {
        "max_iters": steps,
        "warmup_iters": min(2000, steps // 20),
        "eval_interval": max(1, min(1000, steps // 10)),
        "log_interval": 1 if steps < 100 else 10,
    }
    return {name: value for name, value in chosen.items() if name not in given}
