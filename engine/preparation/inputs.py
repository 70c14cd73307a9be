"""Any text, piece by piece: plain files, folders, patterns, JSON, CSV, Parquet, and the Hugging Face hub.

    find_inputs(["notes.txt", "logs/*.jsonl.gz"])  ->  the files in a fixed order, each with its format
    pieces(inputs, ...)                            ->  about a mebibyte at a time, and where the next begins

The format follows from the name: .jsonl, .json, .csv, .tsv, .parquet; anything else is plain text. All but
Parquet may be compressed. Nothing is decoded here: that is left to the workers (encoding.py).
"""

import codecs
import glob
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError
from engine.preparation.compression import open_decompressed, without_suffix
from engine.preparation.hub import HubFile
from engine.preparation.records import READERS, Records, holds_json_lines
from engine.preparation.utf8 import STANDARD_INPUT

PIECE_BYTES = 2**20  # about so much makes a piece,
PIECE_DOCUMENTS = 4096  # or so many documents
# The most that is held at a time, in bytes: a tokenizer takes up to forty times as much for one endless word.
LONGEST_LINE = 2**26  # of JSON; a longer one is an error
LONGEST_DOCUMENT = 2**24  # in a plain file; a longer one becomes several
LONGEST_STRETCH = 2**22  # without white space; a longer one is cut between two characters
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
HUB = "hf:"
STDIN_FILE = (".partial", "stdin")  # where standard input is written to, in a data set's folder


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
        """What it is called in a message."""
        return STANDARD_INPUT if Path(self.path).parts[-2:] == STDIN_FILE else self.path


@dataclass(frozen=True)
class Place:
    """Where a piece begins: in which input, after how much of it (bytes or records), after how many lines."""

    index: int = 0
    offset: int = 0
    line: int = 0


BEGINNING, AFTER_MARK = Place(), Place(offset=len(codecs.BOM_UTF8))


@dataclass(frozen=True)
class Piece:
    """What is read, sent to a worker and written at a time, and where the next piece begins."""

    start: Place
    next: Place
    share: float  # of its input, read so far
    val: bool
    file: str  # where it is from; of several files the first
    marked: list[str]  # the files at whose beginning a byte-order mark was left out


@dataclass(frozen=True)
class TextPiece(Piece):
    """A stretch of one long text."""

    content: bytes


@dataclass(frozen=True)
class FilesPiece(Piece):
    """Plain files, each a document; or a part of a file that is too large for one."""

    contents: list[bytes]
    files: list[str]  # of each document

    def place(self, number: int) -> Place:
        """Where document `number` begins in its file: at the beginning, but for a mark, or a part of one."""
        if number == 0:
            return self.start
        return AFTER_MARK if self.marked and self.files[number] in self.marked else BEGINNING


@dataclass(frozen=True)
class RecordsPiece(Piece):
    """The texts of some records of a file."""

    contents: list[bytes]


@dataclass(frozen=True)
class LinesPiece(Piece):
    """Whole lines of JSON, each a record."""

    content: bytes


# ------------------------------------------------------------------------------------------------------------
# which files


def find_inputs(arguments: list[str], val: bool = False) -> list[Input]:
    """The files that arguments stand for: themselves, those of folders and patterns ordered by name.

    Hidden files are left out. Raises UserError for an argument that names nothing.
    """
    found = []
    for argument in arguments:
        if argument.startswith(HUB):
            found.append(Input(argument.removeprefix(HUB), "hub", argument, 0, val))
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
        if not names:
            raise UserError(_nothing_there(argument))
        found += [Input(name, format_of(name), argument, Path(name).stat().st_size, val) for name in names]
    return found


def _files_of(folder: Path) -> list[str]:
    try:
        return sorted(str(file) for file in folder.rglob("*") if _is_plain(file, folder))
    except OSError as error:
        raise UserError(f"{error.filename} in {folder} cannot be read: {error.strerror}") from error


def _is_plain(file: Path, folder: Path) -> bool:
    """Whether a file of a folder is a regular one, and nothing on the way to it is hidden."""
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _nothing_there(argument: str) -> str:
    if Path(argument).is_dir():
        return f"the folder {argument} holds no files"
    hint = (
        f"; for a data set of the Hugging Face hub write {HUB}{argument}" if argument.count("/") == 1 else ""
    )
    return f"{argument} cannot be read: there is no such file or folder{hint}"


def format_of(name: str) -> str:
    """The format that a file's name tells, a compression's suffix put aside."""
    return FORMATS.get(without_suffix(name).suffix.lower(), "text")


# ------------------------------------------------------------------------------------------------------------
# their pieces


def pieces(
    inputs: list[Input],
    field: str | None,
    one_text: bool,
    place: Place | None = None,
    before_opening: Callable[[int], None] = lambda number: None,
) -> Iterator[Piece]:
    """The inputs from a place on, in order. Raises UserError for what cannot be read.

    With `one_text` they are stretches of one long text; otherwise each plain file is a document, and each
    record, whose text is named by `field` (None: a conversation). `before_opening` is called with the number
    of each input.
    """
    place = place or Place()
    while place.index < len(inputs):
        item = inputs[place.index]
        before_opening(place.index)
        last = place.index + 1
        if item.format == "text" and one_text:
            yield from _text_pieces(item, place)
        elif item.format == "text":
            while last < len(inputs) and inputs[last].format == "text" and inputs[last].val == item.val:
                last += 1
            yield from _files_pieces(inputs[:last], place)
        elif item.format == "jsonl" or (item.format == "json" and holds_json_lines(item.path)):
            yield from _lines_pieces(item, place)
        else:
            yield from _records_pieces(item, place, READERS[item.format](item.path, field, place.offset))
        place = Place(last)


def _text_pieces(item: Input, place: Place) -> Iterator[Piece]:
    """One long text, cut where no tokenizer looks across (see `safe_cut`)."""
    with open_decompressed(item.path) as (file, share):
        place, marked = _seek_past_mark(file, item, place)
        rest = b""
        while True:
            rest, complete = _read_up_to(file, rest, PIECE_BYTES)
            while not complete and safe_cut(rest) is None and len(rest) < LONGEST_STRETCH:
                rest, complete = _read_up_to(file, rest, len(rest) + PIECE_BYTES)
            if not rest:
                return
            cut = len(rest) if complete else safe_cut(rest) or character_cut(rest)
            content, rest = rest[:cut], rest[cut:]
            after = _place_after(place, content)
            yield TextPiece(place, after, share(), item.val, item.name, marked, content)
            place, marked = after, []


def _seek_past_mark(file: io.BufferedIOBase, item: Input, place: Place) -> tuple[Place, list[str]]:
    """Go to a place in a file, past a byte-order mark; the place, and the file's name if there is a mark."""
    file.seek(place.offset)
    if place.offset == 0:
        if file.read(AFTER_MARK.offset) == codecs.BOM_UTF8:
            return Place(place.index, AFTER_MARK.offset), [item.name]
        file.seek(0)
    return place, []


def _place_after(place: Place, content: bytes) -> Place:
    return Place(place.index, place.offset + len(content), place.line + content.count(b"\n"))


def _read_up_to(file: io.BufferedIOBase, rest: bytes, size: int) -> tuple[bytes, bool]:
    """`rest`, read on until it has `size` bytes; and whether the file ended first.

    So a piece depends on where it begins alone, and is the same after an interruption.
    """
    while len(rest) < size:
        block = file.read(size - len(rest))
        if not block:
            return rest, True
        rest += block
    return rest, False


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


def _files_pieces(inputs: list[Input], place: Place) -> Iterator[Piece]:
    """Plain files as documents, small ones together. One above LONGEST_DOCUMENT becomes several documents."""
    contents: list[bytes] = []
    files: list[str] = []
    marked: list[str] = []
    start, size = place, 0
    while place.index < len(inputs):
        item = inputs[place.index]
        with open_decompressed(item.path) as (file, _):
            place, mark = _seek_past_mark(file, item, place)
            content, goes_on = _next_document(file)
        start = start if contents else place
        contents.append(content)
        files.append(item.name)
        marked += mark
        size += len(content)
        place = _place_after(place, content) if goes_on else Place(place.index + 1)
        full = size >= PIECE_BYTES or len(contents) == PIECE_DOCUMENTS
        if goes_on or full or place.index == len(inputs):
            yield FilesPiece(start, place, 0.0, item.val, files[0], marked, contents, files)
            contents, files, marked, size = [], [], [], 0


def _next_document(file: io.BufferedIOBase) -> tuple[bytes, bool]:
    """The next LONGEST_DOCUMENT bytes, up to a good place to cut, and True; or the rest, and False."""
    content = file.read(LONGEST_DOCUMENT)
    if len(content) < LONGEST_DOCUMENT or not file.read(1):
        return content, False
    return content[: safe_cut(content) or character_cut(content)], True


def _lines_pieces(item: Input, place: Place) -> Iterator[Piece]:
    """Lines of JSON, whole ones."""
    with open_decompressed(item.path) as (file, share):
        place, marked = _seek_past_mark(file, item, place)
        rest = b""
        while True:
            rest, complete = _read_up_to(file, rest, PIECE_BYTES)
            while not complete and b"\n" not in rest:
                rest, complete = _read_up_to(file, rest, len(rest) + PIECE_BYTES)
                if len(rest) > LONGEST_LINE:
                    raise UserError(
                        f"{item.path}: line {place.line + 1} is longer than {LONGEST_LINE:,} bytes"
                    )
            if not rest:
                return
            cut = len(rest) if complete else rest.rfind(b"\n") + 1
            content, rest = rest[:cut], rest[cut:]
            after = _place_after(place, content)
            yield LinesPiece(place, after, share(), item.val, item.name, marked, content)
            place, marked = after, []


def _records_pieces(item: Input, place: Place, records: Records) -> Iterator[Piece]:
    """Documents that a reader of records yields from `place.offset` on."""
    contents: list[bytes] = []
    size, share = 0, 0.0
    for content, share in records:
        contents.append(content)
        size += len(content)
        if size >= PIECE_BYTES or len(contents) == PIECE_DOCUMENTS:
            after = Place(place.index, place.offset + len(contents))
            yield RecordsPiece(place, after, share, item.val, item.name, [], contents)
            contents, size, place = [], 0, after
    if contents:
        after = Place(place.index + 1)
        yield RecordsPiece(place, after, share, item.val, item.name, [], contents)
