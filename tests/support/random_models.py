"""Models of random weights, made by `transformers`: the oracle of the tests around GPT-2's layout."""

import dataclasses
import json
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from engine.shape import empty_model
from engine.text.characters import CharTokenizer
from engine.text.tokenizer import Tokenizer
from engine.text.tokenizer_files import tokenizer_files
from engine.weights.pretrained import read_pretrained
from engine.weights.saving import save_checkpoint
from model import GPT, GPTConfig


def random_gpt2(seed: int, **shape) -> GPT2LMHeadModel:
    """A small GPT-2 in evaluation mode, every weight drawn anew, biases and LayerNorms too."""
    torch.manual_seed(seed)
    values = dict(vocab_size=97, n_positions=24, n_layer=2, n_head=2, n_embd=16) | shape
    model = GPT2LMHeadModel(GPT2Config(**values, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape) + (parameter.dim() == 1))
    return model


def save_folder(model: GPT2LMHeadModel, folder: Path) -> Path:
    """The model in Hugging Face's layout, with a tokenizer of three characters in place of GPT-2's own."""
    model.save_pretrained(folder)
    small = tokenizer_files(CharTokenizer.of_text("abc"), model.config.n_positions)
    (folder / "tokenizer.json").write_bytes(small["tokenizer.json"])
    return folder


def largest_difference(folder: Path, reference: GPT2LMHeadModel, dtype: torch.dtype, seed: int = 0) -> float:
    """The largest difference between our logits for what lies in a folder and theirs, on random ids."""
    ours = read_pretrained(str(folder)).model(dtype=dtype).eval()
    config = reference.config
    stream = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (2, config.n_positions), generator=stream)
    with torch.no_grad():
        return (ours(ids) - reference.to(dtype)(ids).logits).abs().max().item()


def edit_json(path: Path, **changes) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def save_nanogpt(model: GPT2LMHeadModel, path: Path, prefix: str = "", **extra) -> Path:
    """The model as nanoGPT saves one: `nn.Linear` matrices, model_args, and tensors among the figures."""
    weights = {}
    for name, tensor in model.state_dict().items():
        conv1d = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        weights[prefix + name] = tensor.T.contiguous() if conv1d else tensor
    config = model.config
    arguments = dict(
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        block_size=config.n_positions,
        vocab_size=config.vocab_size,
        dropout=0.0,
        bias=True,
    )
    content = {"model": weights, "model_args": arguments, "iter_num": 7, "best_val_loss": torch.tensor(1.5)}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content | {"optimizer": {"state": {}}, "config": {"dataset": "letters"}} | extra, path)
    return path


def save_run(
    config: GPTConfig, tokenizer: Tokenizer, folder: Path, seed: int, dtype: torch.dtype = torch.float32
) -> GPT:
    """A run folder of ours that holds a model of random weights; returns the model."""
    model = empty_model(config, "cpu", dtype)
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=stream, dtype=dtype) * 0.1 + (parameter.dim() == 1)
            )
    meta = {"model": dataclasses.asdict(config), "tokenizer": tokenizer.to_dict(), "step": 3}
    save_checkpoint(folder, meta, {"model": dict(model.named_parameters())})
    return model.eval()
