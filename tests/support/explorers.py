"""An explorer of a small random model, its model as a run, and parts to change the model with."""

from pathlib import Path

import torch
from torch import Tensor, nn

from engine.explore.explorer import Explorer
from engine.text.characters import CharTokenizer
from engine.weights.saving import save_checkpoint
from model import GPT, MLP, GPTConfig

CHARACTERS = "\n !&',-.:;<>?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz/\"="


def make_explorer(**changes) -> Explorer:
    """An explorer of a small random model of characters."""
    tokenizer = CharTokenizer.of_text(CHARACTERS)
    shape = {"vocab_size": tokenizer.vocab_size, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(**(shape | changes)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Explorer("a small one", model.eval(), tokenizer)


def save_run(explorer: Explorer, run: Path) -> Path:
    """The explorer's model as a run with one checkpoint."""
    meta = {"step": 1, "model": vars(explorer.model.config), "tokenizer": explorer.tokenizer.to_dict()}
    save_checkpoint(run, meta, {"model": dict(explorer.model.named_parameters())})
    return run


class NoAttention(nn.Module):
    """In the place of a block's attention: adds nothing to the residual stream."""

    def forward(self, x: Tensor, *context: object) -> Tensor:
        """Zeros in the shape of x, (B, T, C)."""
        return torch.zeros_like(x)


class GatedMLP(MLP):
    """In the place of a block's MLP: one more layer, without biases, whose output gates the MLP's."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return super().forward(x) * self.gate(x).sigmoid()
