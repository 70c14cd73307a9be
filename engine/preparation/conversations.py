"""Whether input holds conversations, and the masks that say which of their tokens are targets."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.conversation.messages import LISTS, is_conversation
from engine.preparation.compression import open_decompressed
from engine.preparation.inputs import LONGEST, Input
from engine.preparation.records import WHOLE_FILE, holds_json_lines, hub_rows
from engine.system import hashes_of, write_whole

TARGETS = ".targets"  # in the name of a file with a byte for each token, while a preparation is under way
MASK = ".mask"  # in the name of one with a bit for each


def holds_conversations(inputs: Sequence[Input], field: str) -> bool:
    """Whether the first record is a conversation without the field that holds a document's text.

    Files that are still to be downloaded are not looked at. A `field` that holds turns says so, too.
    """
    names = _first_fields(inputs[0])
    return field in LISTS or (field not in names and is_conversation(names))


def _first_fields(item: Input) -> Collection[str]:
    """The fields of the first record; none where it has no fields, or cannot be read as it should."""
    if item.hub_file is not None or item.format not in ("jsonl", "json", "parquet", "hub"):
        return ()
    try:
        if item.format == "hub":
            return next(hub_rows(item.path, 0), {}).keys()
        if item.format == "parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_schema(item.path).names
        with open_decompressed(item.path) as (file, _):
            if item.format == "jsonl" or holds_json_lines(item.path):
                lines = iter(lambda: file.readline(LONGEST["lines"]), b"")
                record: Any = json.loads(next((line for line in lines if line.strip()), b"null"))
            else:
                record = json.loads(file.read(WHOLE_FILE))
                record = record[0] if isinstance(record, list) and record else record
    except (ImportError, OSError, ValueError, RecursionError):  # UserError too: the readers say what is wrong
        return ()
    return record.keys() if isinstance(record, dict) else ()


def write_masks(
    staging: Path, entries: Sequence[dict[str, Any]], targets: dict[str, list[list[Any]]]
) -> list[dict[str, Any]]:
    """Write a mask for each file of tokens; returns the files' entries in meta.json with the masks'.

    Bit i of a mask, the lowest of a byte first, says whether token i is a target.
    """
    found = []
    for entry in entries:
        name = entry["path"].replace(".bin", f"{MASK}.bin")
        source = entry["path"].replace(".bin", f"{TARGETS}.bin")
        assert [source, entry["tokens"]] in targets[entry["split"]], "each token says whether it is a target"
        flags = np.fromfile(staging / source, dtype=np.uint8, count=entry["tokens"])
        write_whole(staging / name, np.packbits(flags, bitorder="little").tobytes())
        (sha256,) = hashes_of([staging / name])
        found.append(entry | {"mask": name, "mask_sha256": sha256})
    return found
