"""Checkpoints, written: complete or absent, whatever is killed and whenever.

A checkpoint is written beside its place, synced to disk, and renamed. checkpoint.py reads them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from engine.errors import UserError
from engine.parallel.sharding import full_tensor
from engine.parallel.world import ALONE, World
from engine.runs import checkpoint_folders
from engine.system import write_whole
from engine.weights.checkpoint import FORMAT, hash_of_meta, named_checkpoint

SHARD_BYTES = 4 * 2**30  # a larger part is written as several files


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
        hashes, problem = _write_files(beside, parts, world)
        written = world.all_gather([hashes, problem])
        problem = next((problem for _, problem in written if problem), None)
        if world.is_main and problem is None:
            try:
                files = dict(sorted(file for hashes, _ in written for file in hashes.items()))
                _finish(beside, place, dict(meta) | {"format": FORMAT, "files": files})
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


def _write_files(
    folder: Path, parts: Mapping[str, Mapping[str, Tensor]], world: World
) -> tuple[dict[str, str], str | None]:
    """Write this process's share of the files; their hashes by name, and what went wrong.

    A tensor is gathered by all and kept by its writer, so a process holds one file and one tensor at most.
    """
    hashes: dict[str, str] = {}
    problem: str | None = None
    files = [file for part, tensors in parts.items() for file in _split_into_files(part, tensors, world)]
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
                write_whole(folder / name, content)
            except OSError as error:
                problem = error.strerror or str(error)
            hashes[name] = hashlib.sha256(content).hexdigest()
    return hashes, problem


def _split_into_files(
    part: str, tensors: Mapping[str, Tensor], world: World
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Names and contents of a part's files: one, or several where that is too large or shared."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    largest = min(SHARD_BYTES, -(-sum(sizes.values()) // world.size))
    files: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if files[-1] and size + sizes[name] > largest:
            files.append({})
            size = 0
        files[-1][name] = tensor
        size += sizes[name]
    for number, content in enumerate(files, start=1):
        yield part if len(files) == 1 else f"{part}-{number:05d}-of-{len(files):05d}", content


def _finish(beside: Path, place: Path, meta: dict[str, Any]) -> None:
    """Write meta.json, which comes last, and give the folder its name."""
    write_whole(beside / "meta.json", json.dumps(meta | {"sha256": hash_of_meta(meta)}, indent=1).encode())
    _sync_folder(beside)
    if place.exists():  # a damaged one, left by an earlier attempt at this step
        shutil.rmtree(place)
    os.replace(beside, place)
    _sync_folder(place.parent)


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can open folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def mark_best(run: Path, step: int) -> None:
    """Point `best` at the checkpoint of a step."""
    write_whole(run / "best", f"step-{step:08d}\n".encode())


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best. Call it when the new one is safe."""
    best = named_checkpoint(run, "best")
    for folder in checkpoint_folders(run)[keep:]:
        if folder.name != best:
            shutil.rmtree(folder, ignore_errors=True)


def set_aside_after(run: Path, step: int) -> list[Path]:
    """Rename the checkpoints of later steps than this one, so that none counts as the run's; returns them.

    A run that goes on from an earlier checkpoint, since the newest is damaged or the user chose so, would
    otherwise keep those in place of its own. Only for the holder of the run's lock.
    """
    aside = []
    for folder in checkpoint_folders(run):
        if int(folder.name.removeprefix("step-")) > step:
            place = folder.with_name(f"aside-{folder.name}")
            shutil.rmtree(place, ignore_errors=True)
            aside.append(folder.rename(place))
    return aside


def clean_leftovers(run: Path) -> None:
    """Delete what a killed save left. Only for the holder of the run's lock."""
    for leftover in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for name in ("last", "best"):
        for leftover in run.glob(f".{name}.*"):
            leftover.unlink(missing_ok=True)
