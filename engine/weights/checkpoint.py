"""Run folders and checkpoints, read: self-contained, checked before use, and safe to load from a stranger.

    out/NAME/config.json, metrics.jsonl        settings and figures of the run
    out/NAME/checkpoints/step-00000250/        model.safetensors, optimizer.safetensors, meta.json
    out/NAME/last, out/NAME/best               text files that name a checkpoint

meta.json holds the SHA-256 of the other files and of itself. Nothing in a checkpoint can run code.

    from engine.weights.checkpoint import load
    model, tokenizer = load("out/shakespeare_char")
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import UserError
from engine.json_files import COUNT, check_fields, dataclass_from, read_json_object
from engine.parallel.sharding import copy_into
from engine.runs import RUNS_FOLDER, STEP_NAME, checkpoint_folders, similar_run
from engine.shape import empty_model
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict
from engine.weights.shapes import SIZES, check_fits, parameter_shapes, read_tensors
from model import GPT, GPTConfig

FORMAT = 1
FILE_NAME = re.compile(r"[\w-]+\.safetensors")
# What every meta.json holds; training_state.py has what a run needs to go on.
FIELDS = {"files": dict[str, str], "model": dict, "step": COUNT}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files have been checked against their hashes."""

    folder: Path
    meta: dict[str, Any]

    def tensors(self, part: str) -> dict[str, Tensor]:
        """All tensors of a part ("model" or "optimizer") by name, on the CPU. Raises UserError."""
        tensors: dict[str, Tensor] = {}
        for name in sorted(self.meta["files"]):
            if name.split(".")[0].split("-")[0] == part:
                tensors |= read_tensors(self.folder / name)
        return tensors

    def model_config(self) -> GPTConfig:
        """The model's shape."""
        return GPTConfig(**self.meta["model"])

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors. Raises UserError where the code builds others."""
        tensors, where = self.tensors("model"), str(self.folder)
        check_fits(parameter_shapes(self.model_config(), tensors, where), tensors, where)
        return tensors


def named_checkpoint(run: Path, name: str) -> str | None:
    """The checkpoint that a run's file `last` or `best` names, if any."""
    try:
        text = (run / name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if STEP_NAME.fullmatch(text) else None


def newest_finished(name: str, root: Path = RUNS_FOLDER) -> Path:
    """The newest of the runs NAME, NAME-2, … Raises UserError where there is none, or it is not finished.

    An older one is never taken in the place of one that is under way.
    """
    pattern = re.compile(re.escape(name) + r"(-\d+)?")
    runs = [path.parent for path in root.glob("*/config.json") if pattern.fullmatch(path.parent.name)]
    if not runs:
        raise UserError(
            f"there is no run {root / name} to start from; train it: python train.py configs/{name}.py"
        )

    def last_change(run: Path) -> float:
        return max(path.stat().st_mtime for path in (run / "config.json", *checkpoint_folders(run)[:1]))

    run = max(runs, key=last_change)
    if not checkpoint_folders(run) or not is_finished(open_newest(run)[0].meta):
        raise UserError(
            f"{run} is the newest run of {name}, and it is not finished; let it end (--init_from=resume "
            f"--out_dir={run}), or name the run to start from: --init_from={root}/NAME"
        )
    return run


def is_finished(meta: Mapping[str, Any]) -> bool:
    """Whether a run has made all its steps, or lost its patience."""
    settings = meta.get("settings", {})
    patience = settings.get("patience")
    impatient = patience is not None and meta.get("evaluations_without_gain", 0) >= patience
    return impatient or meta["step"] >= settings.get("max_iters", 0)


def open_checkpoint(run: Path, which: str) -> Checkpoint:
    """The checkpoint `which` ("last", "best" or a folder name) of a run, checked. Raises UserError."""
    folders = checkpoint_folders(run)
    if not folders:
        train_one = "; train one with: python train.py configs/shakespeare_char.py"
        raise UserError(f"{run.resolve()} holds no checkpoint{similar_run(str(run), otherwise=train_one)}")
    name = which
    if which in ("last", "best"):
        name = named_checkpoint(run, which) or folders[0].name
    folder = run / "checkpoints" / name
    if folder not in folders:
        there = ", ".join(folder.name for folder in folders)
        raise UserError(f"{run} has no checkpoint {which}; there is: best, last, {there}")
    try:
        return read_checkpoint(folder)
    except UserError as error:
        others = [one.name for one in folders if one != folder]
        raise UserError(f"{error}" + (f"; try --checkpoint={others[0]}" if others else "")) from error


def open_newest(run: Path) -> tuple[Checkpoint, list[str]]:
    """The newest intact checkpoint, and a remark on each damaged one passed. Raises UserError."""
    remarks: list[str] = []
    for folder in checkpoint_folders(run):
        try:
            return read_checkpoint(folder), remarks
        except UserError as error:
            remarks.append(f"{error}; going back to the checkpoint before it")
    raise UserError(f"{run} holds no intact checkpoint: {'; '.join(remarks) or 'there is none'}")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read meta.json and check all hashes. Raises UserError that names what is damaged."""
    path = folder / "meta.json"
    meta = read_json_object(path, "the checkpoint is damaged")
    if meta.get("format") not in (FORMAT, None):
        raise UserError(
            f"{path} has format {str(meta['format'])[:20]}, and this program reads format {FORMAT}: "
            f"use the version of the program that wrote it"
        )
    if meta.get("sha256") != hash_of_meta(meta):
        raise UserError(f"{path} is damaged: its content does not match its own SHA-256")
    check_fields(meta, FIELDS, str(path))
    dataclass_from(GPTConfig, meta["model"], f"{path}: model", required=SIZES)
    for name, expected in meta["files"].items():
        if not FILE_NAME.fullmatch(name):
            raise UserError(f"{path}: files must name safetensors files beside it")
        try:
            with open(folder / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(
                f"{folder / name} cannot be read ({error.strerror}): the checkpoint is damaged"
            ) from error
        if found != expected:
            raise UserError(f"{folder / name} is damaged: its SHA-256 is not the one in meta.json")
    return Checkpoint(folder, meta)


def hash_of_meta(meta: Mapping[str, Any]) -> str:
    """The SHA-256 of a meta.json without the field that holds it."""
    rest = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def model_from(
    checkpoint: Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    dropout: float | None = None,
    empty: Callable[..., GPT] = empty_model,
) -> GPT:
    """The model; precision and dropout are its own unless given. Raises UserError."""
    config = checkpoint.model_config()
    if dropout is not None:
        config = dataclasses.replace(config, dropout=dropout)
    tensors = checkpoint.weights()
    return load_weights(empty(config, device, dtype or next(iter(tensors.values())).dtype), tensors)


@torch.no_grad()
def load_weights(model: GPT, tensors: Mapping[str, Tensor]) -> GPT:
    """Copy tensors that fit, or this process's slices of them, into a model; returns it."""
    for name, parameter in model.named_parameters():
        copy_into(parameter, tensors[name])
    return model


def load(
    run: str | Path,
    device: torch.device | str = "cpu",
    checkpoint: str = "best",
    dtype: torch.dtype | None = None,
) -> tuple[GPT, Tokenizer]:
    """The model, ready to generate, and tokenizer of a run such as out/shakespeare_char. Raises UserError."""
    found = open_checkpoint(Path(run), checkpoint)
    return model_from(found, device, dtype).eval(), tokenizer_from_dict(found.meta.get("tokenizer"))
