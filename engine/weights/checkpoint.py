"""Run folders and checkpoints: complete or absent, self-contained, and safe to load from a stranger.

    out/NAME/config.json, metrics.jsonl        settings and figures of the run
    out/NAME/checkpoints/step-00000250/        model.safetensors, optimizer.safetensors, meta.json
    out/NAME/last, out/NAME/best               text files that name a checkpoint

A checkpoint is written beside its place, synced to disk, and renamed. Its meta.json holds the SHA-256 of the
other files and of itself, so damage is noticed. Nothing in it can run code: safetensors and JSON only.

    from engine.checkpoint import load
    model, tokenizer = load("out/shakespeare_char")
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from engine.errors import UserError
from engine.parallel.sharding import copy_into, full_tensor
from engine.parallel.world import ALONE, World
from engine.system import write_whole
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict
from model import GPT, GPTConfig, count_parameters

FORMAT = 1
SHARD_BYTES = 4 * 2**30
RUNS_FOLDER = Path("out")
# What a model's description cannot do without. Other fields may be newer than it, and default to GPT-2's way.
SHAPE = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
STEP_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files have been checked against their hashes."""

    folder: Path
    meta: dict[str, Any]

    def tensors(self, part: str) -> dict[str, Tensor]:
        """All tensors of a part ("model" or "optimizer") by name, on the CPU. Raises UserError.

        They are mapped from the files, so a process that copies its slices reads no more than these.
        """
        tensors: dict[str, Tensor] = {}
        for name in sorted(self.meta["files"]):
            if name.split(".")[0].split("-")[0] == part:
                try:
                    tensors |= safetensors.torch.load_file(self.folder / name)
                except (OSError, safetensors.SafetensorError) as error:
                    raise UserError(f"{self.folder / name} cannot be read: {error}") from error
        return tensors

    def model_config(self) -> GPTConfig:
        """The model's shape."""
        return GPTConfig(**self.meta["model"])


def save_checkpoint(
    run: Path, meta: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]], world: World = ALONE
) -> Path:
    """Write a checkpoint of `meta["step"]` and point `last` at it; returns its folder.

    Where the tensors are slices, all processes of `world` call this, and each gathers and writes its share
    of the files, so `run` must be on storage that they share. Raises UserError, in all of them, where the
    disk does not take it; then everything is as it was before.
    """
    place = run / "checkpoints" / f"step-{meta['step']:08d}"
    beside = place.with_name(f".{place.name}.{world.broadcast(os.getpid())}")
    try:
        hashes, problem = _write_shards(beside, parts, world)
        shares = world.all_gather([hashes, problem])
        problem = next((problem for _, problem in shares if problem), None)
        if world.is_main and problem is None:
            try:
                files = dict(sorted(file for hashes, _ in shares for file in hashes.items()))
                _complete(beside, place, dict(meta) | {"format": FORMAT, "files": files})
                write_whole(run / "last", f"{place.name}\n".encode())
            except OSError as error:
                problem = error.strerror or str(error)
        problem = world.broadcast(problem)
        if problem is not None:
            raise UserError(
                f"the checkpoint of step {meta['step']} could not be written to {place.parent} ({problem}); "
                f"the ones before it are intact"
            )
        return place
    finally:
        if world.is_main:
            shutil.rmtree(beside, ignore_errors=True)


def _complete(beside: Path, place: Path, meta: dict[str, Any]) -> None:
    """Write meta.json, which comes last, and give the folder its name."""
    _write_synced(beside / "meta.json", json.dumps(meta | {"sha256": _hash_of_meta(meta)}, indent=1).encode())
    _sync_folder(beside)
    if place.exists():  # a damaged one, left by an earlier attempt at this step
        shutil.rmtree(place)
    os.replace(beside, place)
    _sync_folder(place.parent)


def _write_shards(
    folder: Path, parts: Mapping[str, Mapping[str, Tensor]], world: World
) -> tuple[dict[str, str], str | None]:
    """Write this process's files; their hashes by name, and what went wrong.

    A tensor is gathered by all and kept by its writer, so a process holds one file and one tensor at most.
    """
    hashes: dict[str, str] = {}
    problem: str | None = None
    files = [
        (name, tensors)
        for part, all_of_it in parts.items()
        for name, tensors in _shards(part, all_of_it, world)
    ]
    for first in range(0, len(files), world.size):
        kept: dict[str, Tensor] = {}
        for writer, (_, tensors) in enumerate(files[first : first + world.size]):
            for key, tensor in tensors.items():
                gathered = full_tensor(tensor.detach())
                if writer == world.rank:
                    kept[key] = gathered.contiguous().cpu()
        if kept and problem is None:
            name = f"{files[first + world.rank][0]}.safetensors"
            content = safetensors.torch.save(kept)
            try:  # the others count on this process for the next file, so a full disk is reported at the end
                folder.mkdir(parents=True, exist_ok=True)
                _write_synced(folder / name, content)
            except OSError as error:
                problem = error.strerror or str(error)
            hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes, problem


def _shards(
    part: str, tensors: Mapping[str, Tensor], world: World
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Names and contents of a part's files: PART, or numbered ones where that is too large or shared."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    largest = min(SHARD_BYTES, -(-sum(sizes.values()) // world.size))
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + sizes[name] > largest:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += sizes[name]
    for number, shard in enumerate(shards, start=1):
        yield part if len(shards) == 1 else f"{part}-{number:05d}-of-{len(shards):05d}", shard


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can open folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _hash_of_meta(meta: Mapping[str, Any]) -> str:
    """The SHA-256 of a meta.json without the field that holds it."""
    rest = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def mark_best(run: Path, step: int) -> None:
    """Point `best` at the checkpoint of a step."""
    write_whole(run / "best", f"step-{step:08d}\n".encode())


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one. Call it when the new one is safe."""
    protected = _pointer(run, "best")
    for folder in checkpoint_folders(run)[keep:]:
        if folder.name != protected:
            shutil.rmtree(folder, ignore_errors=True)


def clean_leftovers(run: Path) -> None:
    """Delete what a killed save left beside the checkpoints. Only for the holder of the run's lock."""
    for leftover in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for name in ("last", "best"):
        for leftover in run.glob(f".{name}.*"):
            leftover.unlink(missing_ok=True)


def checkpoint_folders(run: Path) -> list[Path]:
    """The run's checkpoints, the newest first."""
    folder = run / "checkpoints"
    found = [path for path in folder.iterdir() if STEP_NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _pointer(run: Path, name: str) -> str | None:
    """The checkpoint that the file `last` or `best` names."""
    try:
        text = (run / name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if STEP_NAME.fullmatch(text) else None


def find_runs(root: Path = RUNS_FOLDER, name: str | None = None) -> list[Path]:
    """Folders that hold checkpoints, the last saved first; with `name`, NAME, NAME-2, NAME-3, … alone."""
    if not root.is_dir():
        return []
    pattern = re.compile(r".+" if name is None else re.escape(name) + r"(-\d+)?")
    runs = [path for path in root.iterdir() if pattern.fullmatch(path.name) and checkpoint_folders(path)]
    return sorted(runs, key=lambda path: checkpoint_folders(path)[0].stat().st_mtime, reverse=True)


def open_checkpoint(run: Path, which: str) -> Checkpoint:
    """The checkpoint `which` ("last", "best" or a folder name) of a run, checked. Raises UserError."""
    if not checkpoint_folders(run):
        raise UserError(
            f"{run} holds no checkpoint; train one with: python train.py configs/shakespeare_char.py"
        )
    name = _pointer(run, which) if which in ("last", "best") else which
    if name is None and which in ("last", "best"):
        name = checkpoint_folders(run)[0].name
    if not STEP_NAME.fullmatch(name) or not (run / "checkpoints" / name).is_dir():
        there = ", ".join(folder.name for folder in checkpoint_folders(run))
        raise UserError(f"{run} has no checkpoint {which}; there is: best, last, {there}")
    return read_checkpoint(run / "checkpoints" / name)


def open_newest(run: Path) -> tuple[Checkpoint, list[str]]:
    """The newest intact checkpoint of a run, and a remark on each damaged one passed. Raises UserError."""
    remarks: list[str] = []
    for folder in checkpoint_folders(run):
        try:
            return read_checkpoint(folder), remarks
        except UserError as error:
            remarks.append(f"{error}; going back to the checkpoint before it")
    raise UserError(f"{run} holds no intact checkpoint: {'; '.join(remarks) or 'there is none'}")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's meta.json and check all hashes. Raises UserError that names what is damaged."""
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): the checkpoint is damaged"
        ) from error
    if isinstance(meta, dict) and meta.get("format") not in (FORMAT, None):
        raise UserError(
            f"{path} has format {str(meta['format'])[:20]}, and this program reads format {FORMAT}: "
            f"use the version of the program that wrote it"
        )
    if not isinstance(meta, dict) or meta.get("sha256") != _hash_of_meta(meta):
        raise UserError(f"{path} is damaged: its content does not match its own SHA-256")
    problem = _problem(meta)
    if problem:
        raise UserError(f"{path}: {problem}")
    for name, expected in meta["files"].items():
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


def _problem(meta: dict[str, Any]) -> str | None:
    """What is wrong with a meta.json whose hash is right, as a stranger may make it; None if nothing is."""
    files, model = meta.get("files"), meta.get("model")
    if not isinstance(files, dict) or not all(
        re.fullmatch(r"[\w-]+\.safetensors", str(name)) for name in files
    ):
        return "files must name safetensors files beside it"
    fields = {field.name: field.type for field in dataclasses.fields(GPTConfig)}
    if not isinstance(model, dict) or not set(SHAPE) <= set(model) <= set(fields):
        return f"model must hold {', '.join(SHAPE)}, and of the rest no more than {', '.join(fields)}"
    for name, value in model.items():
        allowed = fields[name].__args__ if isinstance(fields[name], UnionType) else (fields[name],)
        if type(value) not in allowed:
            return f"model: {name} must be {' or '.join(kind.__name__ for kind in allowed)}"
    try:
        GPTConfig(**model)
    except ValueError as error:
        return f"model: {error}"
    if type(meta.get("step")) is not int or meta["step"] < 0:
        return "step must be a number"
    return None


def require_resumable(checkpoint: Checkpoint) -> None:
    """Raise UserError where meta.json lacks what a run needs to go on, beyond what sampling needs."""
    number = (int, float)
    wanted: dict[str, Any] = {
        "settings": dict, "choices": dict, "data": dict, "scaler": dict,
        "used_cpu_part": bool, "processes": int,
        "sequences": int, "seconds": number, "evaluations_without_gain": int,
        "best_step": (int, type(None)), "best_loss": (*number, type(None)), "wandb_id": (str, type(None)),
    }  # fmt: skip
    for name, kind in wanted.items():
        if name not in checkpoint.meta or not isinstance(checkpoint.meta[name], kind):
            raise UserError(
                f"{checkpoint.folder}/meta.json: {name} is missing or of the wrong type; it cannot be resumed"
            )
    for name in ("name", "fingerprint"):
        if not isinstance(checkpoint.meta["data"].get(name), str):
            raise UserError(
                f"{checkpoint.folder}/meta.json: the data's {name} is missing; it cannot be resumed"
            )


def restore_scaler(scaler: torch.amp.GradScaler, state: dict[str, Any]) -> None:
    """Put back the fp16 loss scale, where both then and now are fp16. Raises UserError for a damaged one."""
    if scaler.is_enabled() and state:
        if state.keys() != scaler.state_dict().keys() or not all(
            type(value) in (int, float) for value in state.values()
        ):
            raise UserError(f"the checkpoint's loss scaler is damaged: {str(state)[:200]}")
        scaler.load_state_dict(state)


def model_from(
    checkpoint: Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    dropout: float | None = None,
    empty: Callable[..., GPT] = GPT.empty,
) -> GPT:
    """The checkpoint's model on a device; precision and dropout are its own unless given; `empty` builds it.

    Raises UserError for weights that do not fit its configuration.
    """
    config = checkpoint.model_config()
    if dropout is not None:
        config = dataclasses.replace(config, dropout=dropout)
    tensors = checkpoint.tensors("model")
    expected = sum(count_parameters(config).values())
    found = sum(tensor.numel() for tensor in tensors.values())
    if found != expected:
        raise UserError(f"{checkpoint.folder}: {found} weights where the configuration asks for {expected}")
    model = empty(config, device, dtype or next(iter(tensors.values())).dtype)
    load_weights(model, tensors, str(checkpoint.folder))
    return model


def load_weights(model: GPT, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a model, or this process's slices of them. Raises UserError where they do not fit."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise UserError(f"{where}: the weight {name} is missing or has another shape")
            copy_into(parameter, tensors[name])


def load(
    run: str | Path,
    device: torch.device | str = "cpu",
    checkpoint: str = "best",
    dtype: torch.dtype | None = None,
) -> tuple[GPT, Tokenizer]:
    """The model, ready to generate, and tokenizer of a run such as out/shakespeare_char. Raises UserError."""
    found = open_checkpoint(Path(run), checkpoint)
    return model_from(found, device, dtype).eval(), tokenizer_from_dict(found.meta.get("tokenizer"))


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, e.g. "exp_avg/final_norm.weight"."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{key}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` took. Raises UserError where it does not belong to this model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    parameters = dict(model.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in order:
            raise UserError(f"the optimizer's state holds {key}, and the model has no such parameter")
        if value.dim() > 0 and value.shape != parameters[name].shape:
            raise UserError(f"the optimizer's state holds {key} in another shape than the parameter's")
        with torch.no_grad():
            own = torch.empty_like(parameters[name]) if value.dim() > 0 else torch.empty_like(value)
            copy_into(own, value)
        state.setdefault(order.index(name), {})[kind] = own
    if state and len(state) != len(order):
        raise UserError(f"the optimizer's state covers {len(state)} of the model's {len(order)} parameters")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
