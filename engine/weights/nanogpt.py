"""A nanoGPT ckpt.pt, read: tensors, numbers and texts of a pickle, and no code.

The weights have GPT-2's names, and matrices as (out, in).
"""

import re
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import UserError
from engine.json_files import dataclass_from
from engine.text.byte_pairs import GPT2Tokenizer
from engine.text.characters import CharTokenizer
from engine.text.tokenizer import Tokenizer
from engine.weights.gpt2_layout import GPT2_VOCABULARY_SIZES, head_is_tied, tensors_from_gpt2, unwrap
from engine.weights.shapes import SIZES
from model import GPTConfig

NANOGPT_FILE = "ckpt.pt"
ARGUMENTS = (*SIZES, "dropout", "bias")  # fields of model_args; the sizes must be there
STRUCT_CODES = {"f2": "e", "f4": "f", "f8": "d", "i4": "i", "i8": "q"}  # NumPy's types of plain numbers


def read_nanogpt(path: Path, text: Path | None) -> tuple[GPTConfig, dict[str, Tensor], Tokenizer | None]:
    """Configuration, tensors by our names, and tokenizer where it is known. Raises UserError."""
    content = load_without_code(path)
    found: dict = content if isinstance(content, dict) else {}
    arguments, stored = found.get("model_args"), found.get("model")
    if not isinstance(arguments, dict) or not isinstance(stored, dict):
        raise UserError(f"{path} is no nanoGPT checkpoint: it lacks model_args or model")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in stored.items()):
        raise UserError(f"{path} is no nanoGPT checkpoint: its model holds more than tensors")
    weights = unwrap(stored, str(path))
    values = {name: arguments[name] for name in ARGUMENTS if name in arguments}
    values |= {"activation": "gelu", "tied_head": head_is_tied(weights)}
    if "bias" not in values:  # of before February 2023; biases were no setting, GELU was its tanh form
        values |= {"bias": "transformer.ln_f.bias" in weights, "activation": "gelu_tanh"}
    config = dataclass_from(GPTConfig, values, f"{path}: model_args", required=SIZES)
    tensors = tensors_from_gpt2(config, weights, transposed=False, where=str(path))
    return config, tensors, find_tokenizer(path, config, found.get("config"), text)


def load_without_code(path: Path) -> Any:
    """The content of a ckpt.pt: tensors, numbers, texts, lists and dictionaries. Raises UserError.

    Some numbers are NumPy's: PlainDtype and plain_number read them, so that no function of NumPy is called.
    """
    scalars = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    stand_ins = [(PlainDtype, "numpy.dtype"), *((plain_number, name) for name in scalars)]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle fails in any way it likes
        raise UserError(
            f"{path} cannot be read as a nanoGPT checkpoint ({reason_of(error)}); nothing in it was run"
        ) from error


def reason_of(error: Exception) -> str:
    """Why torch.load refused a file; its page-long message advises to load all of it."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    refused = re.search(r"GLOBAL ([\w.]+)", message)
    if refused:
        return f"it holds {refused[1]}, which is no tensor, number or text"
    said = message.rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    return said.split("\n")[0].strip()[:160]


class PlainDtype:
    """Stands for numpy.dtype where a pickle names the type of a plain number, such as "f8"."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in STRUCT_CODES:
            raise ValueError(f"it holds a NumPy value of type {name!r}, which is no plain number")
        self.code = STRUCT_CODES[name]
        self.byte_order = "<"

    def __setstate__(self, state: tuple) -> None:
        self.byte_order = {"<": "<", ">": ">"}[state[1]]


def plain_number(dtype: PlainDtype, content: bytes) -> float:
    """Stands for NumPy's scalar: the Python number that these bytes are."""
    return struct.unpack(dtype.byte_order + dtype.code, content)[0]


def find_tokenizer(path: Path, config: GPTConfig, settings: Any, text: Path | None) -> Tokenizer | None:
    """GPT-2's BPE for its vocabulary; else the characters of `text`, or of nanoGPT's data/NAME/input.txt.

    nanoGPT's table of characters is a pickle, which is never opened. Raises UserError for another text.
    """
    if text is None:
        if config.vocab_size in GPT2_VOCABULARY_SIZES:
            return GPT2Tokenizer()
        name = settings.get("dataset") if isinstance(settings, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            return None
        text = path.resolve().parents[1] / "data" / name / "input.txt"
        if not text.is_file():
            return None
    try:
        tokenizer = CharTokenizer.of_text(text.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text} cannot be read as text: {error}") from error
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{text} has {tokenizer.vocab_size} different characters and the model {config.vocab_size} "
            "entries; give the text that it was trained on: --text FILE"
        )
    return tokenizer
