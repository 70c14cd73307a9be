"""Weights on disk, and against the module that the code builds: compared before any memory is taken."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from engine.errors import UserError
from model import GPT, GPTConfig

# What a model's description cannot do without. Other fields may be newer than it, and default to GPT-2's way.
SIZES = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
LARGEST_SIZE = 2**28  # a matrix of n_embd × 4 n_embd float64 still has a size in bytes that 64 bits can hold


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped: who copies slices reads no more. Raises UserError."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); download or copy it again") from error


def parameter_shapes(
    config: GPTConfig, stored: Mapping[str, Tensor], where: str
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of a GPT, from the module itself, on the meta device.

    Raises UserError for a configuration, perhaps a stranger's, that is too large even for the meta device.
    """
    if config.n_layer > len(stored):
        raise UserError(
            f"{where}: n_layer is {config.n_layer}, but there are weights of at most {len(stored)} layers"
        )
    for name in SIZES:
        if getattr(config, name) > LARGEST_SIZE:
            raise UserError(
                f"{where}: {name} is {getattr(config, name)}; no model is larger than {LARGEST_SIZE}"
            )
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in GPT(config).named_parameters()}


def check_fits(
    shapes: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, Tensor],
    where: str,
    holder: str = "the checkpoint",
    wanted_by: str = "the model",
    reason: str = "the code has changed since",
) -> None:
    """Raise UserError where tensors have not these names and shapes, naming the first difference.

    `holder` is what holds the tensors and `wanted_by` what asks for the shapes; `reason` ends the sentence.
    """
    differences = [f"{name} is in {holder} and not in {wanted_by}" for name in stored if name not in shapes]
    for name, shape in shapes.items():
        if name not in stored:
            differences.append(f"{name} is in {wanted_by} and not in {holder}")
        elif tuple(stored[name].shape) != shape:
            differences.append(
                f"{name} is {list(stored[name].shape)} in {holder} and {list(shape)} in {wanted_by}"
            )
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise UserError(f"{where}: {differences[0]}{more}: {reason}")
