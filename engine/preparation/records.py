"""Documents in files of records: JSON, CSV, Parquet, and data sets of the Hugging Face hub.

A reader yields the records from number `skip` on, or their texts, and the share of the file read so far.
Without a field they are conversations. A text that is no valid Unicode is handed on as its bytes.
"""

import codecs
import csv
import io
import itertools
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.conversation.messages import LISTS, PAIRS, read_conversation, to_json
from engine.download import hub_errors, reach_hub
from engine.errors import UserError
from engine.preparation.compression import filter_command, open_decompressed, without_suffix
from engine.preparation.utf8 import LOOKED_AT, check_not_utf16, conversion, likely_encoding

WHOLE_FILE = 2**30  # bytes: .json files, which are read whole, may have so many
LONGEST_CELL = 2**26  # bytes
LONGEST_NAME = 40  # characters: a longer cell in a table's first line is no column's name
NAMES_SHOWN = 8
EXTRA_DATA = "Extra data"  # what the library says of one object after another
SEPARATORS = ",;\t"  # of a table's columns
TURN_COLUMNS = {*LISTS, *(name for pair in PAIRS for name in pair), "input"}
Records = Iterator[tuple[Any, float]]


def record_text(value: Any, field: str | None, where: str) -> bytes:
    """The text of a record: itself, its field (of null none), or its messages. Raises UserError."""
    if field is None:
        text = to_json(read_conversation(value, where))
    else:
        text = value.get(field) if isinstance(value, dict) else value
    if isinstance(text, str):
        return text.encode("utf-8", "surrogatepass")
    if not isinstance(value, dict):
        raise UserError(f"{where} is neither an object nor a text")
    if text is not None:
        raise UserError(f"{where}: its field {field!r} holds no text; name another with --field")
    if field in value:
        return b""
    turns = next((name for name in LISTS if isinstance(value.get(name), list)), None)
    if turns is not None:
        raise UserError(
            f"{where} is a conversation (its field {turns!r} is a list), and documents were expected; where "
            f"all records are conversations, add --field {turns}"
        )
    texts = [name for name, found in value.items() if isinstance(found, str)]
    raise UserError(f"{where} has no field {field!r}; name one with --field{_there_are(texts)}")


def _there_are(names: list[str]) -> str:
    return f" (there are: {', '.join(map(repr, names[:NAMES_SHOWN]))})" if names else ""


def read_records(path: str, form: str, field: str | None, skip: int) -> Iterator[tuple[bytes, float]]:
    """The texts (UTF-8) of a file's records after the first `skip`, and the share read. Raises UserError."""
    for number, (value, share) in enumerate(READERS[form](path, field, skip), start=skip + 1):
        if not isinstance(value, bytes):
            value = record_text(value, field, f"{path}, record {number}")
        yield value, share


def parse_line(line: str, where: str, file: str) -> Any:
    """The value in a line of JSON. Raises UserError."""
    try:
        value, problem = json.loads(line), None
    except (ValueError, RecursionError) as error:
        value, problem = None, error
    if line.lstrip().startswith("["):
        plain = without_suffix(file)
        renamed = f"{plain.with_suffix('.json')}{Path(file).suffix if plain != Path(file) else ''}"
        raise UserError(
            f"{where} is neither an object nor a text, but an array; a file that is one array is called "
            f".json: mv {shlex.quote(file)} {shlex.quote(renamed)}"
        ) from problem
    if problem is not None:
        reason = f"is not JSON: {problem}"
        if isinstance(problem, json.JSONDecodeError) and problem.msg == EXTRA_DATA:
            reason = f"holds more than one object; {_one_object_a_line(file)}"
        elif line.rstrip().endswith(("{", ",")):
            reason = f"ends within an object; {_one_object_a_line(file)}"
        raise UserError(f"{where} {reason}") from problem
    return value


def _one_object_a_line(file: str) -> str:
    return f"write one in each line: {filter_command('jq -c .', file, 'lines', '.jsonl')}"


def holds_json_lines(path: str, form: str) -> bool:
    """Whether a file has one JSON object per line, whatever its ending says."""
    if form != "json":
        return form == "jsonl"
    with open_decompressed(path) as (file, _):
        first = file.readline(WHOLE_FILE).removeprefix(codecs.BOM_UTF8).strip()
    try:
        return first.startswith(b"{") and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def json_records(path: str, field: str | None, skip: int) -> Records:
    """The records of a .json file: an array of objects or of strings, or one object."""
    with open_decompressed(path) as (file, _):
        content = file.read(WHOLE_FILE + 1)
    if len(content) > WHOLE_FILE:
        raise UserError(f"{path} is larger than {WHOLE_FILE:,} bytes; write it one object a line, as .jsonl")
    try:
        values = json.loads(content)
    except UnicodeDecodeError as error:
        encoding = likely_encoding(content, error.start)
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); {conversion(path, encoding)}") from error
    except (ValueError, RecursionError) as error:
        reason = f"is not JSON: {error}"
        if isinstance(error, json.JSONDecodeError) and error.msg == EXTRA_DATA:
            reason = f"holds one object after the other (line {error.lineno}); {_one_object_a_line(path)}"
        raise UserError(f"{path} {reason}") from error
    values = values if isinstance(values, list) else [values]
    for number, value in enumerate(values[skip:], start=skip + 1):
        yield value, number / len(values)


def csv_records(path: str, field: str | None, skip: int) -> Records:
    """A column of a table, whose first line tells what separates the columns."""
    if field is None:
        raise UserError(f"{path}: tables hold documents; conversations are read from .jsonl, .json, .parquet")
    csv.field_size_limit(LONGEST_CELL)
    with open_decompressed(path) as (file, share):
        check_not_utf16(file.read(LOOKED_AT), path)
        file.seek(0)
        text = io.TextIOWrapper(io.BufferedReader(file), "utf-8-sig", "surrogateescape", newline="")
        usual = "\t" if ".tsv" in Path(path).suffixes[-2:] else ","
        first_line = text.readline()
        heads = {one: next(csv.reader([first_line], delimiter=one)) for one in (usual, *SEPARATORS)}
        separator = max(heads, key=lambda one: (field in heads[one], len(heads[one])))
        text.seek(0)
        rows = csv.reader(text, delimiter=separator, strict=True)
        try:
            head = next(rows, [])
            if field not in head:
                raise _no_column(path, field, head)
            column = head.index(field)
            for row in itertools.islice(rows, skip, None):
                if row and len(row) != len(head):
                    found = f"{len(row)} columns where the head has {len(head)}"
                    raise UserError(f"{path}, line {rows.line_num}: {found}")
                yield (row[column] if row else "").encode("utf-8", "surrogateescape"), share()
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num}: not a table ({error})") from error


def _no_column(path: str, field: str, head: list[str]) -> UserError:
    is_head = all(len(name) <= LONGEST_NAME and not name.isdecimal() for name in head)
    if is_head and len(set(head)) == len(head):
        return UserError(f"{path} has no column {field!r}; name one with --field{_there_are(head)}")
    longest = max(head, key=len)
    names = [field if cell is longest else f"column{number}" for number, cell in enumerate(head, start=1)]
    command = filter_command(f"(echo {shlex.quote(','.join(names))}; cat)", path, "named")
    return UserError(
        f"{path} has no column {field!r}: its first line, which must name the columns, is {longest[:30]!r}…; "
        f"put one before it: {command}"
    )


def parquet_records(path: str, field: str | None, skip: int) -> Records:
    """The values of a column, and the share read. Raises UserError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: Parquet files need the package pyarrow: pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in names if name in TURN_COLUMNS]
            if field is not None and field not in names:
                raise UserError(f"{path} has no column {field!r}; name one with --field{_there_are(names)}")
            if field is not None:
                kind, columns = file.schema_arrow.field(field).type, [field]
                if kind not in (pyarrow.string(), pyarrow.large_string()):
                    reason = f"holds {kind}, not text; name another with --field"
                    raise UserError(f"{path}: the column {field!r} {reason}")
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = list(itertools.accumulate(sizes))
            groups = [group for group, end in enumerate(ends) if end > skip]
            number = ends[groups[0]] - sizes[groups[0]] if groups else 0
            for batch in file.iter_batches(256, groups, columns) if groups else ():
                # As bytes: a text may be no valid Unicode.
                rows = batch if field is None else batch.column(0).cast(pyarrow.large_binary())
                for value in rows.to_pylist():
                    number += 1
                    if number > skip:
                        yield b"" if value is None else value, number / ends[-1]
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error


def hub_records(path: str, field: str | None, skip: int) -> Records:
    """A data set of the Hugging Face hub, streamed: NAME[:CONFIGURATION[:SPLIT]]."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{path}: data sets of the hub need the package datasets: pip install datasets"
        ) from error
    name, configuration, split = [*path.split(":"), "", ""][:3]
    with hub_errors(f"{path} cannot be read from the Hugging Face hub"):
        if not Path(name).exists():
            reach_hub(name, "dataset")
        stream = datasets.load_dataset(name, configuration or None, split=split or "train", streaming=True)
        for record in stream.skip(skip) if skip else stream:
            yield record, 0.0


READERS = {"json": json_records, "csv": csv_records, "parquet": parquet_records, "hub": hub_records}
