"""Training that starts from weights: their shape becomes the run's, their vocabulary is the data set's."""

import dataclasses
from typing import Any

from engine.config import STARTS, Sources, TrainSettings
from engine.dataset import Dataset
from engine.distributed import World
from engine.errors import UserError
from engine.pretrained import Pretrained, read_pretrained
from model import GPTConfig


def read_weights(settings: TrainSettings, sources: Sources, on_cpu: bool, world: World) -> Pretrained | None:
    """The weights that `init_from` names, first read (perhaps downloaded) by rank 0; None for none.

    Raises UserError where a setting that the user gave asks for another shape than theirs.
    """
    if settings.init_from in STARTS:
        return None
    found = read_pretrained(settings.init_from) if world.is_main else None
    world.wait()
    found = found or read_pretrained(settings.init_from)
    given = sources.file.keys() | sources.command_line.keys() | (sources.cpu.keys() if on_cpu else set())
    if "block_size" in given:
        found = found.with_block_size(settings.block_size)
    for name, value in shape_settings(found.config).items():
        if name in given and getattr(settings, name) != value:
            raise UserError(
                f"{name} is {getattr(settings, name)}, but "
                f"{settings.init_from} has {name}={value}; leave the setting out"
            )
    return found


def shape_settings(config: GPTConfig) -> dict[str, Any]:
    """The settings that a model's shape determines."""
    names = {field.name for field in dataclasses.fields(TrainSettings)} - {"dropout"}
    return {name: value for name, value in dataclasses.asdict(config).items() if name in names}


def finetuned(pretrained: Pretrained, settings: TrainSettings, data: Dataset) -> Pretrained:
    """The weights with the run's dropout, and its way with documents.

    Raises UserError where the data set's ids mean something else to them.
    """
    pretrained.check_reads(data.tokenizer, str(data.folder))
    changes = {"dropout": settings.dropout, "separator": data.separator(settings.documents)}
    return dataclasses.replace(pretrained, config=dataclasses.replace(pretrained.config, **changes))
