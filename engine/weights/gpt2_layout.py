"""GPT-2's layout as other programs write it: names and shapes of weights, there and back.

Hugging Face keeps the four matrices of a block as (in, out), we and nanoGPT as (out, in), like `nn.Linear`.

    blocks.3.mlp.up.weight  <->  transformer.h.3.mlp.c_fc.weight
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from engine.errors import UserError
from engine.weights.shapes import check_fits, parameter_shapes
from model import GPTConfig

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
GPT2_VOCABULARY_SIZES = (50257, 50304)  # GPT-2's own, and padded to a multiple of 64
TRANSPOSED = ("attention.qkv.weight", "attention.out.weight", "mlp.up.weight", "mlp.down.weight")
# What wraps a module and leaves its own name in those of the parameters: torch.compile, FSDP, recomputation
# at any depth; DDP and trainers that keep the network in a field, in front.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
OUTER_WRAPPERS = ("module", "model")


def gpt2_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """What GPT-2's layout has a place for: our names, and shapes as (out, in)."""
    width = config.n_embd
    block = {
        "attention_norm": (width,),
        "attention.qkv": (3 * width, width),
        "attention.out": (width, width),
        "mlp_norm": (width,),
        "mlp.up": (4 * width, width),
        "mlp.down": (width, 4 * width),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (config.vocab_size, width),
        "position_embedding.weight": (config.block_size, width),
    }
    modules = {f"blocks.{layer}.{name}": block[name] for layer in range(config.n_layer) for name in block}
    for name, shape in (modules | {"final_norm": (width,)}).items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes if config.tied_head else shapes | {"head.weight": (config.vocab_size, width)}


def gpt2_name(name: str) -> str:
    """GPT-2's name of our parameter, as above. Raises UserError for one that GPT-2 does not have."""
    if name == "head.weight":
        return "lm_head.weight"
    place, _, kind = name.rpartition(".")
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", place)
    block, module = (f"h.{match[1]}.", match[2]) if match else ("", place)
    if module not in GPT2_NAMES:
        raise UserError(f"{name} has no place in GPT-2's layout: this model is more than a GPT-2")
    return f"transformer.{block}{GPT2_NAMES[module]}.{kind}"


def unwrapped(name: str) -> str:
    """A foreign weight's own name: module._orig_mod.transformer.wte.weight is transformer.wte.weight."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in OUTER_WRAPPERS:
        del parts[0]
    if parts[0] not in ("transformer", "lm_head"):
        parts.insert(0, "transformer")
    return ".".join(parts)


def unwrap(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Foreign weights by their own names, without the attention masks of older files.

    Raises UserError where two of them have the same name.
    """
    tensors: dict[str, Tensor] = {}
    for stored_name, tensor in weights.items():
        name = unwrapped(stored_name)
        if name in tensors:
            raise UserError(f"{where}: the weights hold {name} twice, once as {stored_name}")
        if not name.endswith((".attn.bias", ".attn.masked_bias")):
            tensors[name] = tensor
    return tensors


def head_is_tied(weights: Mapping[str, Tensor]) -> bool:
    """Whether the head can be the token embedding: not where both are there and differ."""
    head, embedding = weights.get("lm_head.weight"), weights.get("transformer.wte.weight")
    return head is None or embedding is None or torch.equal(head, embedding)


def tensors_from_gpt2(
    config: GPTConfig, weights: Mapping[str, Tensor], *, transposed: bool, where: str
) -> dict[str, Tensor]:
    """Unwrapped weights under our names, as `config` asks for them: float64 stays, the rest becomes float32.

    `transposed` says that matrices are (in, out). Raises UserError for a tensor that is missing, has another
    shape, or has no place in GPT-2. Where the head is tied, one of it and the token embedding is enough.
    """
    left = dict(weights)
    if config.tied_head:
        head = left.pop("lm_head.weight", None)
        if head is not None:
            left.setdefault("transformer.wte.weight", head)
    shapes = parameter_shapes(config, left, where)
    swapped = {name for name in shapes if transposed and name.endswith(TRANSPOSED)}
    expected = {gpt2_name(name): shape[::-1] if name in swapped else shape for name, shape in shapes.items()}
    check_fits(expected, left, where, "the weights", "the configuration", "they do not belong together")
    tensors = {}
    for name in shapes:
        tensor = left[gpt2_name(name)]
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{where}: {gpt2_name(name)} is {kind}, and weights are floating-point numbers")
        precision = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        tensors[name] = (tensor.mT if name in swapped else tensor).to(precision)
    return tensors


def tensors_for_gpt2(
    config: GPTConfig, tensors: Mapping[str, Tensor], *, transposed: bool
) -> dict[str, Tensor]:
    """A model's tensors by GPT-2's names, with zeros for each bias that the model lacks.

    Raises UserError for what has no place in the layout, and for what is missing in it.
    """
    shapes = gpt2_shapes(config)
    like = next(iter(tensors.values()))
    zeros = {name: like.new_zeros(shape) for name, shape in shapes.items() if name.endswith(".bias")}
    complete, where = zeros | dict(tensors), "this model cannot be converted"
    check_fits(shapes, complete, where, "the model", "GPT-2's layout", "it is no GPT-2")
    swapped = {name for name in shapes if transposed and name.endswith(TRANSPOSED)}
    ordered = {name: complete[name].mT if name in swapped else complete[name] for name in shapes}
    return {gpt2_name(name): tensor.contiguous() for name, tensor in ordered.items()}
