"""Checkpoints to damage."""

import dataclasses
import json
from pathlib import Path

import torch

from engine.settings import TrainSettings
from engine.text.characters import CharTokenizer
from engine.training.optimizer import make_optimizer
from engine.weights.checkpoint import hash_of_meta
from engine.weights.saving import save_checkpoint
from engine.weights.training_state import optimizer_tensors
from model import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=5, block_size=8, n_layer=2, n_head=2, n_embd=16, bias=False)


def reseal(folder: Path, **change: object) -> None:
    """Change a meta.json and make its own hash right again, as a stranger would."""
    meta = json.loads((folder / "meta.json").read_text()) | change
    meta["sha256"] = hash_of_meta(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def save_one(run: Path, step: int, seed: int = 0) -> GPT:
    """A checkpoint of a random model after one optimizer step."""
    model = GPT(CONFIG)
    model.init_weights(seed)
    optimizer = make_optimizer(model, TrainSettings())
    ids = torch.arange(16).view(2, 8) % 5
    model(ids, ids).backward()
    optimizer.step()
    meta = {"model": dataclasses.asdict(CONFIG), "step": step, "tokenizer": CharTokenizer("abcde").to_dict()}
    parts = {
        "model": dict(model.named_parameters()),
        "optimizer": optimizer_tensors(model, optimizer),
    }
    save_checkpoint(run, meta, parts)
    return model
