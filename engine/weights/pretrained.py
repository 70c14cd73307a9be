"""Weights from elsewhere: OpenAI's GPT-2, a folder in Hugging Face's layout, a nanoGPT checkpoint, a run.

    python sample.py --init_from=gpt2
    python train.py configs/finetune_shakespeare.py --init_from=FOLDER

Nothing in a download can run code: of nanoGPT's ckpt.pt the tensors and numbers alone are read.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.download import hub_errors, reach_hub
from engine.errors import UserError
from engine.runs import checkpoint_folders, similar_run
from engine.settings import NEWEST
from engine.shape import empty_model, padded
from engine.text.byte_pairs import GPT2Tokenizer
from engine.text.characters import NumberTokenizer
from engine.text.roles import ChatTokenizer
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict
from engine.text.tokenizer_files import UnsupportedTokenizer, read_tokenizer, same_ids
from engine.weights import checkpoint as checkpoints
from engine.weights import hugging_face
from engine.weights.gpt2_layout import GPT2_VOCABULARY_SIZES
from engine.weights.nanogpt import NANOGPT_FILE, read_nanogpt
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


@dataclass(frozen=True)
class Pretrained:
    """A model at rest: its shape, tensors by our names, and tokenizer where known."""

    config: GPTConfig
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer | None
    source: str
    dataset: str | None = None  # the name of the one that a run was trained on
    tokenizer_problem: str | None = None  # why there is no tokenizer, though files of one are there

    def model(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        empty: Callable[..., GPT] = empty_model,
    ) -> GPT:
        """The model, in the tensors' own precision unless one is given; `empty` builds it."""
        dtype = dtype or self.tensors["token_embedding.weight"].dtype
        return checkpoints.load_weights(empty(self.config, device, dtype), self.tensors)

    def known_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises UserError where there is none that can be read."""
        if self.tokenizer_problem is not None:
            raise UserError(self.tokenizer_problem)
        if self.tokenizer is None:
            raise UserError(
                f"{self.source} brings no tokenizer; put its vocab.json and merges.txt (or tokenizer.json) "
                "beside the weights, or for a nanoGPT model of characters name its text: "
                f"python convert.py {self.source} --text input.txt --to run out/NAME"
            )
        return self.tokenizer

    def chat_tokenizer(self) -> ChatTokenizer:
        """The tokenizer of an assistant. Raises UserError where it has no tokens for roles."""
        tokenizer = self.known_tokenizer()
        if not isinstance(tokenizer, ChatTokenizer):
            raise UserError(
                f"{self.source} is no assistant: its vocabulary has no tokens for the turns of a "
                f"conversation; tune it on conversations first: docs/assistant.md"
            )
        return tokenizer

    def check_reads(self, tokenizer: Tokenizer, where: str) -> None:
        """Raise UserError where the ids of a tokenizer mean something else to this model.

        Where its own tokenizer cannot be read, token ids that were made elsewhere are taken, and text is not.
        """
        if self.tokenizer_problem is not None and not isinstance(tokenizer, NumberTokenizer):
            raise UserError(f"{where} is text, and {self.tokenizer_problem}")
        if tokenizer.vocab_size > self.config.vocab_size or not (
            self.tokenizer is None or same_ids(self.tokenizer, tokenizer)
        ):
            raise UserError(
                f"{where} is written in another vocabulary than {self.source} reads; "
                f"prepare its text again with the tokenizer of these weights"
            )

    def with_roles_of(self, tokenizer: Tokenizer) -> "Pretrained":
        """The same for a tokenizer that has tokens for roles after those of this model's; else as it is.

        The rows of the added tokens are the mean of the others.
        """
        if not isinstance(tokenizer, ChatTokenizer) or self.tokenizer is None:
            return self
        if not same_ids(self.tokenizer, tokenizer.base):
            return self
        known, rows = self.tokenizer.vocab_size, padded(tokenizer.vocab_size)
        tensors = dict(self.tensors)
        for name in ("token_embedding.weight", "head.weight"):
            if name in tensors:  # a tied head has none
                own = tensors[name][:known]
                added = own.double().mean(dim=0, keepdim=True).to(own.dtype).expand(rows - known, -1)
                tensors[name] = torch.cat((own, added))
        config = dataclasses.replace(self.config, vocab_size=rows)
        return dataclasses.replace(self, config=config, tensors=tensors, tokenizer=tokenizer)

    def with_block_size(self, block_size: int) -> "Pretrained":
        """The same with its first `block_size` positions. Raises UserError where it has fewer."""
        if block_size > self.config.block_size:
            raise UserError(
                f"block_size is {block_size}, but {self.source} has {self.config.block_size} positions; "
                f"take --block_size={self.config.block_size} or less"
            )
        tensors = dict(self.tensors)
        if "position_embedding.weight" in tensors:  # rotary positions have none
            tensors["position_embedding.weight"] = tensors["position_embedding.weight"][:block_size]
        config = dataclasses.replace(self.config, block_size=block_size)
        return dataclasses.replace(self, config=config, tensors=tensors)


def read_pretrained(source: str, checkpoint: str = "best", text: Path | None = None) -> Pretrained:
    """What `source` names: gpt2 … gpt2-xl, OWNER/NAME@COMMIT on the hub, a folder, a nanoGPT ckpt.pt, a run.

    run:NAME is the newest run of that name, which must be finished; `checkpoint` says which one of a run, and
    `text` is what a nanoGPT model of characters was trained on. UserError for what is none of these.
    """
    if source.startswith(NEWEST):
        return read_run(checkpoints.newest_finished(source.removeprefix(NEWEST)), checkpoint)
    path = Path(source)
    if not path.exists():
        if source in GPT2_REVISIONS:
            return read_folder(download(f"openai-community/{source}", GPT2_REVISIONS[source]), source)
        if match := HUB_NAME.fullmatch(source):
            return read_folder(download(match[1], match[2]), source)
        raise UserError(
            f"{source} holds no checkpoint and names none; it can be {', '.join(GPT2_REVISIONS)}, "
            "OWNER/NAME@COMMIT on the hub, a run such as out/NAME, a folder with config.json and "
            f"model.safetensors, or a nanoGPT ckpt.pt{similar_run(source, GPT2_REVISIONS)}"
        )
    if checkpoint_folders(path) or (path / "metrics.jsonl").is_file():
        return read_run(path, checkpoint)
    if (path / NANOGPT_FILE).is_file() and not (path / "config.json").is_file():
        path = path / NANOGPT_FILE
    if path.is_file():
        return Pretrained(*read_nanogpt(path, text), str(path))
    return read_folder(path, source)


def read_run(run: Path, which: str) -> Pretrained:
    """A checkpoint of a run of ours. Raises UserError."""
    found = checkpoints.open_checkpoint(run, which)
    data = found.meta.get("data")
    dataset = data.get("name") if isinstance(data, dict) and isinstance(data.get("name"), str) else None
    tokenizer = tokenizer_from_dict(found.meta.get("tokenizer"))
    return Pretrained(found.model_config(), found.weights(), tokenizer, str(run), dataset)


def read_folder(folder: Path, source: str) -> Pretrained:
    """A folder in Hugging Face's GPT-2 layout: config, weights, tokenizer files. Raises UserError."""
    config, tensors = hugging_face.read_model(folder, source)
    try:
        tokenizer = read_tokenizer(folder)
    except UnsupportedTokenizer as error:  # the weights can be used all the same, on token ids
        return Pretrained(config, tensors, None, source, tokenizer_problem=f"{source}: {error}")
    if tokenizer is None and config.vocab_size in GPT2_VOCABULARY_SIZES:
        tokenizer = GPT2Tokenizer()
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} entries and the model {config.vocab_size}; "
            f"one of the files belongs to another model"
        )
    return Pretrained(config, tensors, tokenizer, source)


def download(repository: str, revision: str) -> Path:
    """The hub's folder with a revision's HUB_FILES, downloaded if need be. Raises UserError."""
    import huggingface_hub as hub

    advice = (
        f"; where there is no network, put {', '.join(HUB_FILES)} from https://huggingface.co/{repository} "
        "into a folder and name it: --init_from=FOLDER"
    )
    with hub_errors(f"the weights of {repository} cannot be had", advice):
        if not all(hub.try_to_load_from_cache(repository, name, revision=revision) for name in HUB_FILES):
            reach_hub(repository, "model")
        paths = [hub.hf_hub_download(repository, name, revision=revision) for name in HUB_FILES]
    return Path(paths[0]).parent
