"""An explorer of a small random model."""

from torch import nn

from engine.explore.explorer import Explorer
from engine.text.characters import CharTokenizer
from model import GPT, GPTConfig

CHARACTERS = "\n !&',-.:;<>?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz/\"="


def make_explorer(**changes) -> Explorer:
    """An explorer of a small random model of characters."""
    tokenizer = CharTokenizer.of_text(CHARACTERS)
    shape = {"vocab_size": tokenizer.vocab_size, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(**(shape | changes)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Explorer("a small one", model.eval(), tokenizer)
