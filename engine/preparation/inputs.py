"""Any text, piece by piece: plain files, folders, patterns, JSON, CSV, Parquet, and the Hugging Face hub.

The format follows from the name: .jsonl, .json, .csv, .tsv, .parquet; anything else is plain text. All but
Parquet may be compressed. Nothing is decoded here: that is left to the workers (encoding.py).
"""

import codecs
import glob
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engine.conversation.messages import LISTS, is_conversation
from engine.errors import UserError, similar_file
from engine.preparation.compression import open_decompressed, without_suffix
from engine.preparation.hub import HubFile, wait_for_each
from engine.preparation.records import READERS, holds_json_lines, read_records
from engine.preparation.utf8 import STANDARD_INPUT

PIECE_BYTES = 2**20  # about so much makes a piece,
PIECE_DOCUMENTS = 4096  # or so many documents
# The most bytes of a part: a tokenizer takes up to forty times as much memory for one endless word.
LONGEST = {
    "text": 2**22,  # a longer stretch without white space is cut between two characters
    "file": 2**24,  # a longer file becomes several documents
    "lines": 2**26,  # a longer line of JSON is an error
}
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
HUB = "hf:"
STDIN = "-"  # as an argument


@dataclass(frozen=True)
class Input:
    """One file, or a data set of the Hugging Face hub."""

    path: str
    format: str  # text, jsonl, json, csv, parquet or hub
    argument: str  # what the user wrote
    size: int = 0  # bytes on disk
    val: bool = False  # named for validation
    hub_file: HubFile | None = None  # where it is to be downloaded from

    @property
    def name(self) -> str:
        return STANDARD_INPUT if self.argument == STDIN else self.path


class Place(NamedTuple):
    """Where to read on: in which input, after how many bytes or records, and lines."""

    index: int = 0
    offset: int = 0
    line: int = 0


BEGINNING = Place()


class Part(NamedTuple):
    """A plain file or a part of it, lines of JSON, records, or a stretch of one long text."""

    contents: list[bytes]  # of records one each; else one
    kind: str  # text (of one long text), file, lines or records
    file: str  # where it is from, as messages call it
    val: bool
    start: Place
    next: Place  # where the part after it begins
    share: float  # of its input, read so far
    marked: bool = False  # whether a byte-order mark before it was left out


Piece = list[Part]  # what is sent to a worker and written at a time: plain files for one split, or one part


def find_inputs(arguments: list[str], val: bool = False) -> list[Input]:
    """The files that arguments name, none that is hidden. Raises UserError."""
    found = []
    for argument in arguments:
        if argument.startswith(HUB):
            found.append(Input(argument.removeprefix(HUB), "hub", argument, val=val))
            continue
        path = Path(argument).expanduser()
        if path.is_dir():
            names = _files_of(path)
        elif path.is_file():
            names = [str(path)]
        elif path.exists():
            raise UserError(
                f"{argument} is no regular file, and input is read more than once; pipe it in: --input -"
            )
        else:
            names = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not names and path.is_dir():
            raise UserError(f"the folder {argument} holds no files")
        if not names:
            hint = f"; for a data set of the Hugging Face hub write {HUB}{argument}"
            hint = hint if argument.count("/") == 1 else similar_file(argument)
            raise UserError(f"{argument} cannot be read: there is no such file or folder{hint}")
        found += [Input(name, format_of(name), argument, Path(name).stat().st_size, val) for name in names]
    return found


def _files_of(folder: Path) -> list[str]:
    try:
        return sorted(
            str(file)
            for file in folder.rglob("*")
            if file.is_file() and "/." not in f"/{file.relative_to(folder).as_posix()}"
        )
    except OSError as error:
        raise UserError(f"{error.filename} in {folder} cannot be read: {error.strerror}") from error


def format_of(name: str) -> str:
    """The format that a file's ending stands for, without that of a compression; "text" for others."""
    return FORMATS.get(without_suffix(name).suffix.lower(), "text")


def are_conversations(inputs: Sequence[Input], field: str) -> bool:
    """Whether the first record is a conversation, and not a text in `field`."""
    names = _first_fields(inputs[0])
    return field in LISTS or (field not in names and is_conversation(names))


def _first_fields(item: Input) -> Collection[str]:
    if item.hub_file is not None or item.format == "text":
        return ()
    try:
        if item.format == "parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_schema(item.path).names
        if holds_json_lines(item.path, item.format):
            with open_decompressed(item.path) as (file, _):
                lines = iter(lambda: file.readline(LONGEST["lines"]), b"")
                record = json.loads(next((line for line in lines if line.strip()), b"null"))
        else:
            record, _ = next(READERS[item.format](item.path, None, 0), (None, 0.0))
    except (ImportError, OSError, ValueError, RecursionError):  # UserError too: the readers say what is wrong
        return ()
    return record.keys() if isinstance(record, dict) else ()


def pieces(
    inputs: list[Input], field: str | None, one_text: bool, place: Place = BEGINNING
) -> Iterator[Piece]:
    """The inputs from a place on; with `one_text` as stretches of one long text. Raises UserError."""
    piece: Piece = []
    size = 0
    for part in _parts(inputs, field, one_text, place):
        if piece and (part.kind, part.val) != (piece[0].kind, piece[0].val):
            yield piece
            piece, size = [], 0
        piece.append(part)
        size += len(part.contents[0])
        if part.kind != "file" or size >= PIECE_BYTES or len(piece) == PIECE_DOCUMENTS:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _parts(inputs: list[Input], field: str | None, one_text: bool, place: Place) -> Iterator[Part]:
    for index in wait_for_each([item.hub_file for item in inputs], place.index):
        item = inputs[index]
        start = place if index == place.index else Place(index)
        if item.format == "text":
            yield from _stretches(item, start, "text" if one_text else "file")
        elif holds_json_lines(item.path, item.format):
            yield from _stretches(item, start, "lines")
        else:
            yield from _records(item, field, start)


def _records(item: Input, field: str | None, place: Place) -> Iterator[Part]:
    contents: list[bytes] = []
    size, share = 0, 0.0
    for content, share in read_records(item.path, item.format, field, place.offset):
        if size >= PIECE_BYTES or len(contents) == PIECE_DOCUMENTS:
            after = Place(place.index, place.offset + len(contents))
            yield Part(contents, "records", item.name, item.val, place, after, share)
            contents, size, place = [], 0, after
        contents.append(content)
        size += len(content)
    if contents:
        yield Part(contents, "records", item.name, item.val, place, Place(place.index + 1), share)


def _stretches(item: Input, place: Place, kind: str) -> Iterator[Part]:
    """A file from a place on: whole if it is a document, else a piece at a time.

    Lines of JSON are cut between two lines, text where no tokenizer looks across (see `safe_cut`). A part
    depends on where it begins alone, so it is the same after an interruption.
    """
    find_cut = _after_last_line if kind == "lines" else safe_cut
    usual = LONGEST["file"] if kind == "file" else PIECE_BYTES
    with open_decompressed(item.path) as (file, share):
        marked = place.offset == 0 and file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
        if marked:
            place = Place(place.index, len(codecs.BOM_UTF8))
        file.seek(place.offset)
        rest, complete = b"", False
        while not complete:
            cut = None
            for wanted in range(usual, LONGEST[kind] + 1, PIECE_BYTES):
                # One byte more tells whether the file ends here.
                rest += file.read(max(0, wanted + 1 - len(rest)))
                complete = len(rest) <= wanted
                cut = len(rest) if complete else find_cut(rest)
                if cut is not None:
                    break
            if cut is None and kind == "lines":
                raise UserError(f"{item.path}: line {place.line + 1} is longer than {LONGEST[kind]:,} bytes")
            cut = character_cut(rest) if cut is None else cut
            content, rest = rest[:cut], rest[cut:]
            after = Place(place.index, place.offset + cut, place.line + content.count(b"\n"))
            after = Place(place.index + 1) if complete else after
            yield Part([content], kind, item.name, item.val, place, after, share(), marked)
            place, marked = after, False


def _after_last_line(block: bytes) -> int | None:
    return block.rfind(b"\n") + 1 or None


def safe_cut(block: bytes) -> int | None:
    """The last place before a space or line break that follows a character; None where there is none.

    No match of SPLIT_PATTERN goes from a character on to white space, and none that ends in a character looks
    ahead, so the two sides are tokenised alike together and apart.
    """
    end = len(block)
    while True:
        end = max(block.rfind(b"\n", 0, end), block.rfind(b" ", 0, end))
        if end <= 0:
            return None
        if 0x21 <= block[end - 1] <= 0x7E:
            return end
        if block[end - 1] >= 0x80:
            before = block[max(0, end - 4) : end].decode("utf-8", errors="replace")[-1]
            if before != "\ufffd" and not before.isspace():
                return end


def character_cut(block: bytes) -> int:
    """The last border between two characters of UTF-8 inside a block."""
    cut = len(block) - 1
    while cut > max(1, len(block) - 4) and block[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut
