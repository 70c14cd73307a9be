"""Documents in files of records: JSON, CSV, Parquet, and data sets of the Hugging Face hub.

Each reader yields (document in UTF-8, share of the file read so far) from record number `skip` on. A text
that is no valid Unicode is handed on as its bytes: what to do about it is decided in engine/encode.py.
"""

import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.preparation.compression import opened

WHOLE_FILE = 2**30  # bytes: .json files, which are read whole, may have so many
LONGEST_CELL = 2**26  # bytes
Records = Iterator[tuple[bytes, float]]


def text_of(value: Any, field: str, where: str) -> str:
    """The text in a record: the record itself, or its field; of null, "". UserError names what there is."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise UserError(f"{where} is neither an object nor a text")
    if field not in value:
        texts = [name for name, found in value.items() if isinstance(found, str)]
        raise UserError(f"{where} has no field {field!r}; name one with --field{_there_are(texts)}")
    text = value[field]
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: its field {field!r} holds no text; name another with --field")
    return text or ""


def _there_are(names: list[str]) -> str:
    return f" (there are: {', '.join(map(repr, names[:8]))})" if names else ""


def is_lines(path: str) -> bool:
    """Whether a .json file holds one object in each line, as many do."""
    with opened(path) as (file, _):
        first = file.readline(WHOLE_FILE).strip()
    if not first.startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def json_records(path: str, field: str, skip: int) -> Records:
    """The texts of a .json file: an array of objects or of strings, or one object."""
    with opened(path) as (file, _):
        content = file.read(WHOLE_FILE + 1)
    if len(content) > WHOLE_FILE:
        raise UserError(f"{path} is larger than {WHOLE_FILE:,} bytes; write it one object a line, as .jsonl")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    values = values if isinstance(values, list) else [values]
    for number, value in enumerate(values[skip:], start=skip + 1):
        text = text_of(value, field, f"{path}, record {number}")
        yield text.encode("utf-8", "surrogatepass"), number / len(values)


def csv_records(path: str, field: str, skip: int) -> Records:
    """A column of a table with a head; separated by commas, or by tabs in .tsv."""
    csv.field_size_limit(LONGEST_CELL)
    separator = "\t" if ".tsv" in Path(path).suffixes[-2:] else ","
    with opened(path) as (file, share):
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(text, delimiter=separator, strict=True)
        try:
            head = next(rows, [])
            if field not in head:
                raise UserError(f"{path} has no column {field!r}; name one with --field{_there_are(head)}")
            column = head.index(field)
            for row in itertools.islice(rows, skip, None):
                if row and len(row) != len(head):
                    raise UserError(
                        f"{path}, line {rows.line_num}: {len(row)} columns where the head has {len(head)}"
                    )
                yield (row[column] if row else "").encode("utf-8", "surrogateescape"), share()
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num}: not a table ({error})") from error


def parquet_records(path: str, field: str, skip: int) -> Records:
    """A column of a Parquet file, a few hundred rows at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: Parquet files need the package pyarrow: pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise UserError(f"{path} has no column {field!r}; name one with --field{_there_are(names)}")
            kind = file.schema_arrow.field(field).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UserError(
                    f"{path}: the column {field!r} holds {kind}, not text; name another with --field"
                )
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = list(itertools.accumulate(sizes))
            groups = [group for group, end in enumerate(ends) if end > skip]
            number = ends[groups[0]] - sizes[groups[0]] if groups else 0
            for batch in file.iter_batches(256, groups, [field]) if groups else ():
                for value in batch.column(0).cast(pyarrow.large_binary()).to_pylist():
                    number += 1
                    if number > skip:
                        yield value or b"", number / ends[-1]
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error


def hub_records(path: str, field: str, skip: int) -> Records:
    """A data set of the Hugging Face hub, streamed: NAME, NAME:CONFIGURATION or NAME:CONFIGURATION:SPLIT."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{path}: data sets of the hub need the package datasets: pip install datasets"
        ) from error
    name, configuration, split = [*path.split(":"), "", ""][:3]
    try:
        stream = datasets.load_dataset(name, configuration or None, split=split or "train", streaming=True)
        for number, record in enumerate(stream.skip(skip) if skip else stream, start=skip + 1):
            yield text_of(record, field, f"{path}, record {number}").encode("utf-8", "surrogatepass"), 0.0
    except UserError:
        raise
    # Its libraries raise errors of many kinds; each of them means that it cannot be read.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} cannot be read from the Hugging Face hub ({reason})") from error


READERS = {"json": json_records, "csv": csv_records, "parquet": parquet_records, "hub": hub_records}
