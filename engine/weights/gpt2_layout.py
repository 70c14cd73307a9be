"""GPT-2's layout as other programs write it: names and shapes of weights, settings of config.json.

Hugging Face keeps the four matrices of a block as (in, out), we and nanoGPT as (out, in), like `nn.Linear`.

    blocks.3.mlp.up.weight  <->  transformer.h.3.mlp.c_fc.weight
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.errors import UserError
from model import GPT, GPTConfig

GPT2_NAMES = {
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
    "final_norm": "ln_f",
}
TRANSPOSED = ("attention.qkv.weight", "attention.out.weight", "mlp.up.weight", "mlp.down.weight")
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
# Settings of Hugging Face's GPT-2 that change what it computes, and the values that our model computes.
REQUIRED = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "layer_norm_epsilon": (1e-5,),
}


def config_from(description: Mapping[str, Any], where: str) -> GPTConfig:
    """Our configuration of a GPT-2 config.json, GPT-2's where silent. Raises UserError for other models."""
    if description.get("model_type") != "gpt2":
        raise UserError(
            f"{where} describes a model of type {description.get('model_type')!r}; only gpt2 can be read, "
            f"since other networks compute something else"
        )
    for name, accepted in REQUIRED.items():
        if description.get(name, accepted[0]) not in accepted:
            raise UserError(
                f"{where}: {name} is {description[name]}; this program computes {name}={accepted[0]} only"
            )
    width = description.get("n_embd", 768)
    if description.get("n_inner") not in (None, 4 * width if isinstance(width, int) else None):
        raise UserError(
            f"{where}: n_inner is {description['n_inner']}; this program's MLPs are 4 n_embd = {4 * width}"
        )
    activation = description.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise UserError(f"{where}: activation_function is {activation}; known are {', '.join(ACTIVATIONS)}")
    values = {
        "vocab_size": description.get("vocab_size", 50257),
        "block_size": description.get("n_positions", 1024),
        "n_layer": description.get("n_layer", 12),
        "n_head": description.get("n_head", 12),
        "n_embd": width,
        "dropout": description.get("resid_pdrop", 0.1),
        "bias": True,
        "activation": ACTIVATIONS[activation],
        "tied_head": description.get("tie_word_embeddings", True),
    }
    return checked_config(values, where)


def checked_config(values: Mapping[str, Any], where: str) -> GPTConfig:
    """A configuration from values that a stranger wrote. Raises UserError."""
    for field in dataclasses.fields(GPTConfig):
        if field.name in values:
            value = values[field.name]
            kind = (int, float) if field.type is float else (field.type,)
            if type(value) not in kind:
                raise UserError(
                    f"{where}: the value of {field.name} is {value!r}; it must be {field.type.__name__}"
                )
    try:
        return GPTConfig(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def gpt2_name(name: str) -> str:
    """GPT-2's name of our parameter: blocks.3.mlp.up.weight is transformer.h.3.mlp.c_fc.weight."""
    if name == "head.weight":
        return "lm_head.weight"
    place, _, kind = name.rpartition(".")
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", place)
    if match:
        return f"transformer.h.{match[1]}.{GPT2_NAMES[match[2]]}.{kind}"
    return f"transformer.{GPT2_NAMES[place]}.{kind}"


def rename(
    config: GPTConfig, foreign: Mapping[str, Tensor], *, transposed: bool, where: str
) -> dict[str, Tensor]:
    """Tensors under our names, as `config` asks for them: float64 stays, everything else becomes float32.

    `transposed` says that matrices are (in, out). Raises UserError for a tensor that is missing, has another
    shape, or has no place in GPT-2. Masks that older files carry are left out.
    """
    there = {}
    for name, tensor in foreign.items():
        name = name.removeprefix("_orig_mod.").removeprefix("module.")
        if not name.endswith((".attn.bias", ".attn.masked_bias")):
            there[name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"] = tensor
    width = config.n_embd
    take(there, f"blocks.{config.n_layer - 1}.attention_norm.weight", (width,), transposed, where)
    take(there, "token_embedding.weight", (config.vocab_size, width), transposed, where)
    take(there, "position_embedding.weight", (config.block_size, width), transposed, where)
    with torch.device("meta"):  # of a size that the weights bear out
        expected = {name: tuple(parameter.shape) for name, parameter in GPT(config).named_parameters()}
    tensors = {name: take(there, name, shape, transposed, where) for name, shape in expected.items()}
    for name in expected:
        del there[gpt2_name(name)]
    if config.tied_head:
        there.pop("lm_head.weight", None)  # a copy of the token embedding
    if there:
        raise UserError(
            f"{where}: the weights hold {min(there)}, which has no place in a GPT-2 of this configuration"
        )
    return tensors


def take(
    there: Mapping[str, Tensor], name: str, shape: tuple[int, ...], transposed: bool, where: str
) -> Tensor:
    """The tensor for our parameter, (out, in), in float64 or float32. UserError if it is missing or unfit."""
    tensor = there.get(gpt2_name(name))
    if tensor is None:
        raise UserError(f"{where}: the weights lack {gpt2_name(name)}, which the configuration asks for")
    if transposed and name.endswith(TRANSPOSED):
        tensor = tensor.mT
    if tensor.shape != shape or not tensor.is_floating_point():
        raise UserError(
            f"{where}: {gpt2_name(name)} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, "
            f"where the configuration asks for floating-point {list(shape)} (rows are outputs)"
        )
    return tensor.to(tensor.dtype if tensor.dtype == torch.float64 else torch.float32)


def without_bias(
    config: GPTConfig, tensors: dict[str, Tensor], where: str
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The model without its biases, which must be zero. Raises UserError where one is not."""
    for name, tensor in tensors.items():
        if name.endswith(".bias") and tensor.any():
            raise UserError(
                f"{where}: config.json says bias=false, but {gpt2_name(name)} is not zero; remove that line"
            )
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(".bias")}
    return dataclasses.replace(config, bias=False), kept
