"""A folder in Hugging Face's GPT-2 layout, read: config.json and model.safetensors, or its shards.

Settings of config.json that our model does not have are folded into the weights where that gives the same
function (other scales of the attention scores, another epsilon of the layer norms), else named and refused.
"""

import dataclasses
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import UserError
from engine.json_files import check_fields, dataclass_from, read_json_object
from engine.weights.gpt2_layout import gpt2_name, head_is_tied, tensors_from_gpt2, unwrap
from engine.weights.shapes import read_tensors
from model import GPTConfig

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
}
# Fields of config.json; transformers takes the names on the right for those on the left, and so do we.
FIELDS = {
    "model_type": str,
    "architectures": list[str] | None,
    "vocab_size": int,
    "n_positions": int,
    "n_layer": int,
    "n_head": int,
    "n_embd": int,
    "n_inner": int | None,
    "activation_function": str,
    "resid_pdrop": float,
    "layer_norm_epsilon": float,
    "scale_attn_weights": bool,
    "scale_attn_by_inverse_layer_idx": bool,
    "add_cross_attention": bool,
    "tie_word_embeddings": bool,
    "bias": bool,  # our own note: False where the zeros in the place of biases are none
}
OTHER_NAMES = {
    "n_positions": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
}
# Those that are a field of GPTConfig, whose defaults are GPT-2's too, but for dropout.
OUR_NAMES = {
    "vocab_size": "vocab_size",
    "n_positions": "block_size",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "resid_pdrop": "dropout",
    "tie_word_embeddings": "tied_head",
}
EPSILON = 1e-5  # of our layer norms


def read_model(folder: Path, source: str) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Configuration and tensors, by our names. Raises UserError for other models."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{source} holds no model in Hugging Face's layout: there is no {path}")
    description = with_our_names(read_json_object(path), str(path))
    check_model_type(description, str(path))
    config = config_from(description, str(path))
    weights = unwrap(read_safetensors(folder), source)
    # Where both matrices are stored and differ, transformers too believes the weights, not the setting.
    config = dataclasses.replace(config, tied_head=config.tied_head and head_is_tied(weights))
    tensors = tensors_from_gpt2(config, weights, transposed=True, where=source)
    fold_score_scales(description, config, tensors)
    fold_epsilon(description.get("layer_norm_epsilon", EPSILON), config, tensors)
    if description.get("bias") is False:
        return without_biases(config, tensors, source)
    return config, tensors


def with_our_names(description: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config.json, checked by type, fields with two names under the first of them."""
    fields = dict(description)
    for name, other in OTHER_NAMES.items():
        if fields.get("model_type") == "gpt2" and name not in fields and other in fields:
            fields[name] = fields[other]
    if "n_positions" not in fields and "n_ctx" in fields:  # the length of the mask, once a setting of its own
        fields["n_positions"] = fields["n_ctx"]
    return check_fields(fields, FIELDS, where, optional=FIELDS)


def config_from(description: Mapping[str, Any], where: str) -> GPTConfig:
    """Our configuration, GPT-2's where config.json is silent. Raises UserError for other models."""
    width = description.get("n_embd", 768)
    if description.get("n_inner") not in (None, 4 * width):
        raise UserError(
            f"{where}: n_inner is {description['n_inner']}; this program's MLPs are 4 n_embd = {4 * width}"
        )
    if description.get("add_cross_attention", False):
        raise UserError(f"{where}: add_cross_attention is true; this program has no cross-attention")
    if not 0 < description.get("layer_norm_epsilon", EPSILON) < 1:
        raise UserError(
            f"{where}: layer_norm_epsilon is {description['layer_norm_epsilon']}; it must be between 0 and 1"
        )
    activation = description.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise UserError(f"{where}: activation_function is {activation}; known are {', '.join(ACTIVATIONS)}")
    values = {ours: description[theirs] for theirs, ours in OUR_NAMES.items() if theirs in description}
    values = {"dropout": 0.1, "bias": True, "activation": ACTIVATIONS[activation]} | values
    return dataclass_from(GPTConfig, values, where)


def check_model_type(description: Mapping[str, Any], where: str) -> None:
    """Raise UserError where config.json describes another model; the oldest do not say."""
    kind = description.get("model_type", ", ".join(description.get("architectures") or []))
    is_gpt2 = kind == "gpt2" or ("model_type" not in description and kind.startswith("GPT2"))
    has_no_name = kind == "" and {"n_layer", "n_head", "n_embd"} <= description.keys()
    if not is_gpt2 and not has_no_name:
        raise UserError(
            f"{where} describes a model of type {kind or 'unknown'!r}; only gpt2 can be read, "
            f"since other networks compute something else"
        )


def fold_score_scales(description: Mapping[str, Any], config: GPTConfig, tensors: dict[str, Tensor]) -> None:
    """Multiply queries by what the scores of each layer are multiplied by, beyond our 1 / √D.

    The scale is 1 / √D only where `scale_attn_weights`, and with `scale_attn_by_inverse_layer_idx` layer
    number l, from 1 on, divides by l (Mistral, Karamcheti et al., 2021).
    """
    width = config.n_embd
    scale = 1.0 if description.get("scale_attn_weights", True) else math.sqrt(width // config.n_head)
    for layer in range(config.n_layer):
        divisor = layer + 1 if description.get("scale_attn_by_inverse_layer_idx", False) else 1
        if scale / divisor == 1:
            continue
        for kind in ("weight", "bias"):
            name = f"blocks.{layer}.attention.qkv.{kind}"
            queries, rest = tensors[name].split((width, 2 * width))
            tensors[name] = torch.cat((scaled(queries, scale / divisor), rest))


def fold_epsilon(epsilon: float, config: GPTConfig, tensors: dict[str, Tensor]) -> None:
    """Scale the residual stream so that our epsilon does in the layer norms what another one did before.

    A layer norm of s x with ε is that of x with ε / s². So all that adds to the stream is multiplied by
    s = √(ε / ε'); where the head is the token embedding, the final norm is divided by it.
    """
    if epsilon == EPSILON:
        return
    scale = math.sqrt(EPSILON / epsilon)
    scales = {"token_embedding.weight": scale, "position_embedding.weight": scale}
    for layer in range(config.n_layer):
        for name in ("attention.out", "mlp.down"):
            scales |= {f"blocks.{layer}.{name}.{kind}": scale for kind in ("weight", "bias")}
    if config.tied_head:
        scales |= {"final_norm.weight": 1 / scale, "final_norm.bias": 1 / scale}
    for name, factor in scales.items():
        tensors[name] = scaled(tensors[name], factor)


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """A tensor times a factor, rounded once to the tensor's precision."""
    return (tensor.double() * factor).to(tensor.dtype)


def without_biases(
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


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, perhaps in shards. Raises UserError."""
    names = ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / names[0]).is_file():
        listed = check_fields(read_json_object(index), {"weight_map": dict[str, str]}, str(index))
        names = sorted(set(listed["weight_map"].values()))
        if not all(re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
            raise UserError(f"{index}: weight_map must name safetensors files beside it")
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise UserError(missing_weights(folder, path))
        tensors |= read_tensors(path)
    return tensors


def missing_weights(folder: Path, path: Path) -> str:
    """What to say of a folder without safetensors, and how to convert pickled weights."""
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if not pickled:
        return f"there are no weights in {folder}: {path} is missing"
    line = (
        "from transformers import GPT2LMHeadModel as M; "
        f"M.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    )
    return (
        f"{folder} holds pickled weights only ({pickled[0]}), which can run code as they load; "
        f"where you trust them, convert them: python -c {shlex.quote(line)}"
    )
