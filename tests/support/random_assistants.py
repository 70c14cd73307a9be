"""Small assistants of random weights, whose answers end now and then, and preferences for them."""

import dataclasses
import json
import random
from pathlib import Path

import torch

from engine.text.characters import ByteTokenizer
from engine.text.roles import ChatTokenizer
from engine.weights.saving import save_checkpoint
from model import GPT, GPTConfig
from support.models import random_model

TOKENIZER = ChatTokenizer(ByteTokenizer())
BLOCK = 96


def random_assistant(dtype: torch.dtype = torch.float64, ends: bool = True, **shape: object) -> GPT:
    """A model that ends an answer with a probability of about a tenth at each token, or never."""
    config = GPTConfig(
        TOKENIZER.vocab_size,
        **{  # pyright: ignore[reportArgumentType]
            "block_size": BLOCK, "n_layer": 2, "n_head": 2, "n_embd": 32, "bias": True, "position": "rotary",
            "tied_head": False, "token_shift": True, "separator": TOKENIZER.separator, **shape,
        },
    )  # fmt: skip
    model = random_model(config, torch.float64)
    with torch.no_grad():
        direction = torch.ones(config.n_embd, dtype=torch.float64)
        direction[::2] = -1
        model.final_norm.weight.fill_(1)
        model.final_norm.bias.copy_(direction)
        model.head.weight.mul_(0.3)
        model.head.weight[TOKENIZER.base.vocab_size :] = -direction
        if ends:
            model.head.weight[TOKENIZER.end_of_turn] = 0.11 * direction
    return model.to(dtype).eval()


def save_assistant(name: str = "assistant_chat", ends: bool = True) -> Path:
    """A finished run of such a model."""
    model, folder = random_assistant(torch.float32, ends), Path("out", name)
    meta = {
        "model": dataclasses.asdict(model.config),
        "step": 1,
        "tokenizer": TOKENIZER.to_dict(),
        "settings": {"max_iters": 1},
    }
    save_checkpoint(folder, meta, {"model": dict(model.named_parameters())})
    (folder / "config.json").write_text("{}")
    return folder


def write_preferences(number: int, name: str = "pairs.jsonl") -> str:
    """A file of so many pairs, as texts and as messages."""
    lines = []
    for index in range(number):
        prompt, chosen, rejected = (
            f"question {index}",
            "abc"[: random.randint(1, 3)],
            "xyzxy"[: index % 4 + 2],
        )
        if index % 2:
            turn = {"role": "assistant", "content": chosen}
            lines.append(
                {"prompt": [{"role": "user", "content": prompt}], "chosen": [turn], "rejected": rejected}
            )
        else:
            lines.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    Path(name).write_text("\n".join(map(json.dumps, lines)))
    return name
