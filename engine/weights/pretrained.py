"""Weights from elsewhere: OpenAI's GPT-2, a folder in Hugging Face's layout, a nanoGPT checkpoint, a run.

    python sample.py --init_from=gpt2
    python train.py configs/finetune_shakespeare.py --init_from=FOLDER

Read are JSON and safetensors, and of nanoGPT's ckpt.pt the tensors and numbers alone (`weights_only=True`),
so that nothing in a download can run code.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from engine.errors import UserError
from engine.parallel.sharding import copy_into
from engine.text.byte_pairs import GPT2Tokenizer
from engine.text.characters import CharTokenizer
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict
from engine.text.tokenizer_files import read_tokenizer, same_ids
from engine.weights import checkpoint as checkpoints
from engine.weights.gpt2_layout import checked_config, config_from, rename, without_bias
from model import GPT, GPTConfig

# OpenAI's four sizes on the hub, each pinned to a revision.
GPT2_REVISIONS = {
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
}
HUB_FILES = ("config.json", "model.safetensors", "vocab.json", "merges.txt")
HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")
NANOGPT_FILE = "ckpt.pt"


@dataclass(frozen=True)
class Pretrained:
    """A model at rest: its shape, its tensors by our parameter names, and its tokenizer where known."""

    config: GPTConfig
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer | None
    source: str
    dataset: str | None = None  # the name of the one that a run was trained on

    def model(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        empty: Callable[..., GPT] = GPT.empty,
    ) -> GPT:
        """The model on a device, in the tensors' own precision unless one is given; `empty` builds it."""
        model = empty(self.config, device, dtype or self.tensors["token_embedding.weight"].dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                copy_into(parameter, self.tensors[name])
        return model

    def known_tokenizer(self) -> Tokenizer:
        """The tokenizer; UserError where none came with the weights."""
        if self.tokenizer is None:
            raise UserError(
                f"{self.source} brings no tokenizer; put its vocab.json and merges.txt (or tokenizer.json) "
                "beside the weights, or for a nanoGPT model of characters name its text: "
                f"python convert.py {self.source} --text input.txt --to run out/NAME"
            )
        return self.tokenizer

    def check_reads(self, tokenizer: Tokenizer, where: str) -> None:
        """Raise UserError where the ids of a tokenizer mean something else to this model."""
        if tokenizer.vocab_size > self.config.vocab_size or not (
            self.tokenizer is None or same_ids(self.tokenizer, tokenizer)
        ):
            raise UserError(
                f"{where} is written in another vocabulary than {self.source} reads; "
                f"prepare its text again with the tokenizer of these weights"
            )

    def with_block_size(self, block_size: int) -> "Pretrained":
        """The same with the first `block_size` position embeddings alone. UserError where it has fewer."""
        if block_size > self.config.block_size:
            raise UserError(
                f"block_size is {block_size}, but {self.source} has {self.config.block_size} positions; "
                f"take --block_size={self.config.block_size} or less"
            )
        positions = self.tensors["position_embedding.weight"][:block_size]
        return dataclasses.replace(
            self,
            config=dataclasses.replace(self.config, block_size=block_size),
            tensors=self.tensors | {"position_embedding.weight": positions},
        )


def read_pretrained(source: str, checkpoint: str = "best", text: Path | None = None) -> Pretrained:
    """What `source` names: gpt2 … gpt2-xl, OWNER/NAME@COMMIT on the hub, a folder, a nanoGPT ckpt.pt, a run.

    `checkpoint` says which one of a run; `text` is the text that a nanoGPT model of characters was trained
    on. Raises UserError for anything that cannot be read, or is no GPT-2.
    """
    path = Path(source)
    if source in GPT2_REVISIONS and not path.exists():
        return read_folder(download(f"openai-community/{source}", GPT2_REVISIONS[source]), source)
    if (match := HUB_NAME.fullmatch(source)) and not path.exists():
        return read_folder(download(match[1], match[2]), source)
    if path.is_file():
        return read_nanogpt(path, text)
    if not path.is_dir():
        raise UserError(
            f"{source} holds no checkpoint and names none: it can be {', '.join(GPT2_REVISIONS)}, "
            "OWNER/NAME@COMMIT on the hub, a run such as out/NAME, a folder with config.json and "
            "model.safetensors, or a nanoGPT ckpt.pt"
        )
    if checkpoints.checkpoint_folders(path) or (path / "metrics.jsonl").is_file():
        found = checkpoints.open_checkpoint(path, checkpoint)
        config = checkpoints.model_from(
            found, "meta"
        ).config  # takes no memory, and sees that the weights fit
        data = found.meta.get("data")
        dataset = data.get("name") if isinstance(data, dict) and isinstance(data.get("name"), str) else None
        tokenizer = tokenizer_from_dict(found.meta.get("tokenizer"))
        return Pretrained(config, found.tensors("model"), tokenizer, source, dataset)
    if (path / NANOGPT_FILE).is_file() and not (path / "config.json").is_file():
        return read_nanogpt(path / NANOGPT_FILE, text)
    return read_folder(path, source)


def download(repository: str, revision: str) -> Path:
    """The folder in which huggingface_hub keeps these files of a revision; it downloads the ones missing.

    Raises UserError where they cannot be had.
    """
    import huggingface_hub

    try:
        paths = [huggingface_hub.hf_hub_download(repository, name, revision=revision) for name in HUB_FILES]
    except OSError as error:  # whatever goes wrong on the way: huggingface_hub derives its errors from it
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the weights of {repository} cannot be had ({reason[0]}); where there is no network, "
            f"put {', '.join(HUB_FILES)} from https://huggingface.co/{repository} into a folder "
            f"and name it: --init_from=FOLDER"
        ) from error
    return Path(paths[0]).parent


# ------------------------------------------------------------------------------------------------------------
# Hugging Face's layout


def read_folder(folder: Path, source: str) -> Pretrained:
    """A folder in Hugging Face's GPT-2 layout: config, weights, tokenizer files. Raises UserError."""
    description = read_json(folder / "config.json", f"{source} holds no model in Hugging Face's layout")
    config = config_from(description, str(folder / "config.json"))
    tensors = rename(config, read_safetensors(folder), transposed=True, where=source)
    if config.bias and description.get("bias") is False:  # written by us, from a model without biases
        config, tensors = without_bias(config, tensors, source)
    tokenizer = read_tokenizer(folder)
    if tokenizer is None and config.vocab_size in (50257, 50304):
        tokenizer = GPT2Tokenizer()
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} entries and the model {config.vocab_size}; "
            f"one of the files belongs to another model"
        )
    return Pretrained(config, tensors, tokenizer, source)


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError; `missing` begins the sentence where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{missing}: there is no {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from model.safetensors or the shards in its index. Raises UserError."""
    names = ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / names[0]).is_file():
        listed = read_json(index, "").get("weight_map")
        if not isinstance(listed, dict) or not all(
            re.fullmatch(r"[\w.-]+\.safetensors", str(n)) for n in listed.values()
        ):
            raise UserError(f"{index}: weight_map must name safetensors files beside it")
        names = sorted(set(listed.values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise UserError(missing_weights(folder, path))
        try:
            tensors |= safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} is damaged or cut short ({error}); download or copy it again") from error
    return tensors


def missing_weights(folder: Path, path: Path) -> str:
    """The sentence for a folder without safetensors; pickled weights are named, and how to convert them."""
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if not pickled:
        return f"there are no weights in {folder}: {path} is missing"
    return (
        f"{folder} holds pickled weights only ({pickled[0]}), which can run code as they load; "
        'where you trust them, convert them: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


# ------------------------------------------------------------------------------------------------------------
# nanoGPT's checkpoints


def read_nanogpt(path: Path, text: Path | None) -> Pretrained:
    """The weights in a nanoGPT ckpt.pt; only tensors, numbers and texts are read. Raises UserError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle fails in any way it likes
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} cannot be read as a nanoGPT checkpoint ({reason}); nothing in it was run"
        ) from error
    arguments = content.get("model_args") if isinstance(content, dict) else None
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(arguments, dict) or not isinstance(weights, dict):
        raise UserError(f"{path} is no nanoGPT checkpoint: it lacks model_args or model")
    names = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    missing = [name for name in names if name not in arguments]
    if missing or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UserError(
            f"{path} is no nanoGPT checkpoint: model_args lacks {', '.join(missing) or 'nothing, model does'}"
        )
    values = {name: arguments[name] for name in names} | {"activation": "gelu", "tied_head": True}
    config = checked_config(values, str(path))
    tensors = rename(config, weights, transposed=False, where=str(path))
    return Pretrained(
        config, tensors, nanogpt_tokenizer(path, config, content.get("config"), text), str(path)
    )


def nanogpt_tokenizer(path: Path, config: GPTConfig, settings: Any, text: Path | None) -> Tokenizer | None:
    """GPT-2's BPE for its vocabulary; else the characters of `text`, or of nanoGPT's data/NAME/input.txt.

    nanoGPT's table of characters is a pickle, which is never opened. None where there is no text to be found.
    Raises UserError for a text that has another number of characters.
    """
    if text is None and config.vocab_size in (50257, 50304):
        return GPT2Tokenizer()
    name = settings.get("dataset") if isinstance(settings, dict) else None
    if text is None and isinstance(name, str) and re.fullmatch(r"[\w-]+", name):
        text = path.resolve().parent.parent / "data" / name / "input.txt"
        text = text if text.is_file() else None
    if text is None:
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
