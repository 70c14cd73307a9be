"""Checkpoints: complete or absent, checked before use, and free of anything that could run."""

import dataclasses
import hashlib
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from support.checkpoints import CONFIG, reseal, save_one

from engine.errors import UserError
from engine.settings import TrainSettings
from engine.training.optimizer import make_optimizer
from engine.weights import saving
from engine.weights.checkpoint import (
    checkpoint_folders,
    load,
    model_from,
    open_checkpoint,
    open_newest,
    read_checkpoint,
)
from engine.weights.training_state import optimizer_tensors, restore_optimizer
from model import GPT, MLP, GPTConfig


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    model = save_one(tmp_path, 7)
    loaded, tokenizer = load(tmp_path, checkpoint="last")
    assert tokenizer.decode([0, 4]) == "ae" and not loaded.training
    assert loaded.head.weight is loaded.token_embedding.weight
    for (name, ours), (_, theirs) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_the_optimizer_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = GPT(CONFIG)
    model.init_weights(1)
    first, second = (make_optimizer(model, TrainSettings()) for _ in range(2))
    ids = torch.arange(16).view(2, 8) % 5
    model(ids, ids).backward()
    first.step()
    tensors = optimizer_tensors(model, first)
    assert "exp_avg/blocks.0.mlp.up.weight" in tensors
    restore_optimizer(model, second, {name: value.clone() for name, value in tensors.items()})
    again = optimizer_tensors(model, second)
    assert tensors.keys() == again.keys() and all(torch.equal(tensors[name], again[name]) for name in tensors)
    with pytest.raises(UserError, match="no such parameter"):
        restore_optimizer(model, second, {"exp_avg/nonsense": torch.zeros(1)})


def test_large_tensors_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "SHARD_BYTES", 4000)
    model = save_one(tmp_path, 1)
    names = sorted(file.name for file in (tmp_path / "checkpoints/step-00000001").iterdir())
    shards = [name for name in names if name.startswith("model-")]
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    loaded, _ = load(tmp_path, checkpoint="last")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_the_pointers_and_the_keeping(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_one(tmp_path, step)
        if step == 2:
            saving.mark_best(tmp_path, 2)
        saving.prune(tmp_path, keep=1)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == [
        "step-00000004",
        "step-00000002",
    ]
    assert open_checkpoint(tmp_path, "best").meta["step"] == 2
    assert open_checkpoint(tmp_path, "last").meta["step"] == 4
    assert open_checkpoint(tmp_path, "step-00000002").meta["step"] == 2
    with pytest.raises(UserError, match="has no checkpoint step-00000003"):
        open_checkpoint(tmp_path, "step-00000003")


def test_checkpoints_of_later_steps_are_set_aside_and_never_kept_in_place_of_newer_ones(
    tmp_path: Path,
) -> None:
    for step in (2, 4, 6):
        save_one(tmp_path, step)
    aside = saving.set_aside_after(tmp_path, 2)
    assert sorted(folder.name for folder in aside) == ["aside-step-00000004", "aside-step-00000006"]
    assert all((folder / "meta.json").is_file() for folder in aside)
    save_one(tmp_path, 3)
    saving.prune(tmp_path, 2)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step-00000003", "step-00000002"]
    assert open_newest(tmp_path)[0].meta["step"] == 3


def test_a_step_saved_twice_holds_the_second(tmp_path: Path) -> None:
    save_one(tmp_path, 1, seed=0)
    second = save_one(tmp_path, 1, seed=1)
    assert torch.equal(load(tmp_path)[0].final_norm.weight, second.final_norm.weight)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "meta.json"])
@pytest.mark.parametrize("how", ["truncate", "flip", "delete", "empty"])
def test_damage_is_detected_and_the_checkpoint_before_it_is_used(tmp_path: Path, name: str, how: str) -> None:
    save_one(tmp_path, 1)
    save_one(tmp_path, 2)
    file = tmp_path / "checkpoints/step-00000002" / name
    content = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
    elif how == "flip":
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        draw = random.Random(seed)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    else:
        file.write_bytes(content[: 0 if how == "empty" else len(content) // 2])
    with pytest.raises(UserError, match=f"step-00000002/{name}"):
        open_checkpoint(tmp_path, "last")
    checkpoint, remarks = open_newest(tmp_path)
    assert checkpoint.meta["step"] == 1 and len(remarks) == 1 and "step-00000002" in remarks[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "use the version of the program that wrote it"),
        ({"model": {"n_layer": 1}}, "model: vocab_size is missing"),
        ({"model": dataclasses.asdict(CONFIG) | {"rotor": 1}}, "model: rotor is unknown"),
        ({"model": dataclasses.asdict(CONFIG) | {"n_layer": "2"}}, "n_layer must be a whole number"),
        ({"model": dataclasses.asdict(CONFIG) | {"n_head": 3}}, "not divisible"),
        ({"model": dataclasses.asdict(CONFIG) | {"n_layer": 10**9}}, "n_layer is 1000000000, but"),
        ({"model": dataclasses.asdict(CONFIG) | {"n_embd": 2 * 10**30}}, "no model is larger"),
        (
            {"model": dataclasses.asdict(CONFIG) | {"block_size": 9}},
            r"\[8, 16\] in the checkpoint and \[9, 16\]",
        ),
        ({"files": {"../../x.safetensors": ""}}, "files must name"),
        ({"files": []}, "files must be an object of text"),
        ({"step": -1}, "step must be"),
        ({"tokenizer": {"kind": "shell"}}, "unknown tokenizer"),
    ],
)
def test_a_well_sealed_lie_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    save_one(tmp_path, 1)
    reseal(tmp_path / "checkpoints/step-00000001", **change)
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def add_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the model as one does in research: a parameter more in every MLP."""
    plain = MLP.__init__

    def with_gate(self: MLP, config: GPTConfig) -> None:
        plain(self, config)
        self.gate = torch.nn.Linear(config.n_embd, 1, bias=False)

    monkeypatch.setattr(MLP, "__init__", with_gate)


def test_what_a_change_of_the_model_adds_and_removes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_one(tmp_path / "before", 1)
    add_gate(monkeypatch)
    with pytest.raises(
        UserError,
        match=r"blocks.0.mlp.gate.weight is in the model and not in the checkpoint \(and 1 more\): "
        r"the code has changed since",
    ):
        load(tmp_path / "before")
    model = save_one(tmp_path / "after", 1)
    assert torch.equal(load(tmp_path / "after")[0].blocks[1].mlp.gate.weight, model.blocks[1].mlp.gate.weight)
    monkeypatch.undo()
    with pytest.raises(
        UserError, match=r"step-00000001: blocks.0.mlp.gate.weight is in the checkpoint and not"
    ):
        load(tmp_path / "after")


def test_a_checkpoint_is_held_against_the_model_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_one(tmp_path, 1)
    add_gate(monkeypatch)
    checkpoint = open_checkpoint(tmp_path, "last")
    with pytest.raises(UserError, match="the code has changed since"):
        model_from(checkpoint, empty=lambda *_: pytest.fail("the model was built before the check"))


class Payload:
    """Unpickling this makes a file."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("it-ran",)


def test_a_pickle_in_the_place_of_a_file_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run/checkpoints/step-00000001"
    for name in ("meta.json", "model.safetensors"):
        save_one(tmp_path / "run", 1)
        (folder / name).write_bytes(pickle.dumps(Payload()))
        if name != "meta.json":
            meta = json.loads((folder / "meta.json").read_text())
            meta["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            reseal(folder, files=meta["files"])
        with pytest.raises(UserError):
            load(tmp_path / "run")
    assert not (tmp_path / "it-ran").exists()


def test_a_failed_save_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_one(tmp_path, 1)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left on device"):
        save_one(tmp_path, 2)
    monkeypatch.undo()
    assert before == sorted(str(path) for path in tmp_path.rglob("*"))
    assert read_checkpoint(tmp_path / "checkpoints/step-00000001").meta["step"] == 1


def test_leftovers_of_a_killed_save_are_cleaned(tmp_path: Path) -> None:
    save_one(tmp_path, 1)
    (tmp_path / "checkpoints/.step-00000002.123").mkdir()
    (tmp_path / "checkpoints/.step-00000002.123/model.safetensors").write_bytes(b"half")
    (tmp_path / ".last.abc").write_bytes(b"")
    saving.clean_leftovers(tmp_path)
    assert not list(tmp_path.rglob(".*")) and open_checkpoint(tmp_path, "last").meta["step"] == 1
