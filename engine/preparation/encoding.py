"""What a worker does with a piece of input: decode it, count its characters, turn it into ids.

`start_worker` gives a worker its job, in this process or another (`Workers`). The results depend on the job
and the piece alone; a worker writes no files.
"""

import hashlib
import itertools
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np

from engine.conversation import template
from engine.conversation.messages import from_json
from engine.errors import UserError
from engine.preparation.inputs import Piece, Place
from engine.preparation.records import parse_line, record_text
from engine.preparation.utf8 import LOOKED_AT, check_not_utf16, not_utf8
from engine.text.byte_pairs import END_OF_TEXT
from engine.text.roles import ChatTokenizer
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict

FLAG = np.dtype(np.uint8)  # whether a token is a target
DIGEST_BYTES = 16  # of a document's SHA-256: equal ones are expected once in 2⁶⁴ documents


@dataclass(frozen=True)
class Job:
    """What is the same for all pieces."""

    errors: str = "strict"  # about text that is not UTF-8: strict, replace or drop
    field: str | None = "text"  # of a record; None: records are conversations
    block_size: int = 1024  # tokens of a conversation, at most
    val_below: int | None = None  # documents with a lower hash are for validation; None: that has own files
    # Where validation begins in one long text: in which piece, after how many of its characters.
    border: tuple[int, int] | None = None
    tokenizer: dict[str, Any] | None = None  # None while it is not made yet

    def training_characters(self, number: int) -> int | None:
        """How many characters of a long text's piece are for training; None: all."""
        if self.border is None or number < self.border[0]:
            return None
        return self.border[1] if number == self.border[0] else 0


class Text(NamedTuple):
    """A document, or a stretch of one long text."""

    text: str
    utf8: bytes
    file: str

    def digest(self) -> bytes:
        """The SHA-256 of the text."""
        return hashlib.sha256(self.utf8).digest()


# A document, or a stretch of one long text for one split, as `encode` describes it.
DOCUMENT = np.dtype(
    [
        ("tokens", np.int64),
        ("val", bool),
        ("characters", np.int64),
        ("text_bytes", np.int64),  # in UTF-8
        ("digest", f"V{DIGEST_BYTES}"),
        ("split_hash", np.uint64),
    ]
)


@dataclass(frozen=True)
class Encoded:
    """A piece's documents, one after the other."""

    # (tokens,) uint16 or uint32: the ids; of conversations also (tokens,) uint8: 1 for what is trained on.
    tokens: list[np.ndarray]
    documents: np.ndarray  # (documents,) of DOCUMENT
    dropped: Counter[str]  # why, how many
    carriage_returns: Counter[str]  # in which file, how many
    cut: int  # conversations that were shortened


_job = Job()
_tokenizer: Tokenizer | None = None


def start_worker(job: Job, is_process: bool = False) -> None:
    """Prepare this process for a job. A worker process leaves Ctrl-C to its parent."""
    global _job, _tokenizer
    if is_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _job = job
    _tokenizer = None if job.tokenizer is None else tokenizer_from_dict(job.tokenizer)


def survey(piece: Piece) -> tuple[int, str]:
    """How many characters a piece has, and which ones."""
    characters, seen = 0, np.zeros(0x110000, dtype=bool)
    for found in texts_of(piece, Counter()):
        points = np.frombuffer("".join(contents(found.text)).encode("utf-32-le"), dtype=np.uint32)
        characters += len(points)
        seen[points] = True
    return characters, "".join(map(chr, np.flatnonzero(seen)))


def training_texts(number: int, piece: Piece) -> list[str]:
    """The texts to learn a vocabulary from: those for training, cut at end-of-text marks."""
    texts = []
    for found in texts_of(piece, Counter()):
        for part, is_val in by_split(number, piece, found, found.digest()):
            if not is_val:
                texts += contents(part)
    return [part for text in texts for part in text.split(END_OF_TEXT) if part]


def encode(number: int, piece: Piece) -> Encoded:
    """The tokens and documents of a piece, which is number `number` of the input. Raises UserError."""
    assert _tokenizer is not None, "the job has no tokenizer yet"
    dtype = id_type(_tokenizer.vocab_size)
    dropped: Counter[str] = Counter()
    carriage_returns: Counter[str] = Counter()
    ids, targets, documents, cut = [np.zeros(0, dtype)], [np.zeros(0, FLAG)], [], 0
    for found in texts_of(piece, dropped):
        if b"\r" in found.utf8:  # which is faster than counting
            carriage_returns[found.file] += found.utf8.count(b"\r")
        digest = found.digest()
        for part, is_val in by_split(number, piece, found, digest):
            encoded, is_cut = tokens_of(part, _tokenizer, is_document=piece[0].kind != "text")
            if encoded is None:
                dropped["longer than the block"] += 1
                continue
            ids.append(encoded.ids.astype(dtype))
            targets.append(encoded.targets.astype(FLAG))
            cut += is_cut
            text = "".join(contents(part))
            counts = len(encoded.ids), is_val, len(text), len(text.encode())
            documents.append((*counts, digest[:DIGEST_BYTES], split_hash(digest)))
    columns = [np.concatenate(ids)] + ([np.concatenate(targets)] if _job.field is None else [])
    return Encoded(columns, np.array(documents, dtype=DOCUMENT), dropped, carriage_returns, cut)


def by_split(number: int, piece: Piece, found: Text, digest: bytes) -> list[tuple[str, bool]]:
    """The parts of a text that are not empty, each with whether it is for validation.

    A whole document is for one split, by its content alone, so that adding documents moves no other.
    """
    border = _job.training_characters(number)
    if border is None:
        is_val = piece[0].val if _job.val_below is None else split_hash(digest) < _job.val_below
        border = 0 if is_val else len(found.text)
    parts = (found.text[:border], False), (found.text[border:], True)
    return [(part, is_val) for part, is_val in parts if part]


def tokens_of(text: str, tokenizer: Tokenizer, is_document: bool) -> tuple[template.Encoded | None, bool]:
    """The tokens of a text, and whether it is a conversation that was cut; None if no answer fits the block.

    Only conversations have targets; those of another text are empty, (0,).
    """
    if _job.field is None:
        assert isinstance(tokenizer, ChatTokenizer), "conversations need tokens for the roles"
        return template.shortened(tokenizer, from_json(text), _job.block_size)
    ids = tokenizer.encode_document(text) if is_document else tokenizer.encode(text)
    return template.Encoded(ids, np.zeros(0, FLAG)), False


def contents(text: str) -> list[str]:
    """The text itself, or the texts of a conversation's turns."""
    return [text] if _job.field is not None else [content for _, content in from_json(text)]


def id_type(vocab_size: int) -> np.dtype:
    """The smaller of uint16 and uint32 that holds all ids of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def split_hash(digest: bytes) -> int:
    """The number, 0 to 2⁶⁴ - 1, that decides a document's split, from its SHA-256."""
    return int.from_bytes(digest[-8:], "little")


def texts_of(piece: Piece, dropped: Counter[str]) -> Iterator[Text]:
    """The texts of a piece; those left out are counted. Raises UserError."""
    for found in _decoded(piece):
        if found is None:
            dropped["not UTF-8"] += 1
        elif piece[0].kind != "text" and (not found.text or found.text.isspace()):
            dropped["empty"] += 1
        else:
            yield found


def _decoded(piece: Piece) -> Iterator[Text | None]:
    """The texts of a piece; None for each that is not UTF-8 and dropped."""
    for part in piece:
        content, file = part.contents[0], part.file
        if part.kind == "lines":
            for number, line in enumerate(content.split(b"\n"), start=part.start.line + 1):
                if line and not line.isspace():
                    where = f"{file}, line {number}"
                    found = _decode(line, where, file)
                    if found is not None:
                        text = record_text(parse_line(found.text, where, file), _job.field, where)
                        found = _decode(text, where, file)
                    yield found
        elif part.kind == "records":
            for number, record in enumerate(part.contents, start=part.start.offset + 1):
                yield _decode(record, f"{file}, record {number}", file)
        else:
            yield _decode(content, file, file, part.start)


def _decode(content: bytes, where: str, file: str, place: Place | None = None) -> Text | None:
    """The text, as the job's `errors` says; None if it is dropped. Raises UserError."""
    try:
        if _job.errors == "strict" and content.find(0, 0, LOOKED_AT) >= 0:
            check_not_utf16(content, file)
        return Text(content.decode("utf-8"), content, file)
    except UnicodeDecodeError as error:
        if _job.errors == "drop":
            return None
        if _job.errors == "replace":
            text = content.decode("utf-8", errors="replace")
            return Text(text, text.encode(), file)
        check_not_utf16(content, file)
        position = f"byte {error.start}"
        if place is not None:
            line = place.line + content.count(b"\n", 0, error.start) + 1
            position = f"byte {place.offset + error.start}, line {line}"
        raise not_utf8(where, position, error, file) from error


class Workers:
    """Processes that work on a job; with `number` 1 this process alone."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool: ProcessPoolExecutor | None = None

    def start(self, job: Job) -> None:
        """Give all workers a job, this process included. Raises UserError for a job that cannot be done."""
        self.close()
        # This process finds out what is wrong with the job before others are started.
        start_worker(job)
        if self.number > 1:
            self._pool = ProcessPoolExecutor(self.number, get_context("spawn"), start_worker, (job, True))

    def map_in_order(
        self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]
    ) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Each task and its result, in order; a few are under way at a time."""
        if self._pool is None:
            for task in tasks:
                yield task, function(*task)
            return
        coming = iter(tasks)
        waiting: deque[tuple[tuple[Any, ...], Future[Any]]] = deque()
        try:
            while True:
                for task in itertools.islice(coming, 2 * self.number + 1 - len(waiting)):
                    waiting.append((task, self._pool.submit(function, *task)))
                if not waiting:
                    return
                task, future = waiting.popleft()
                yield task, future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process has died, for want of memory perhaps; run the same command again with "
                "fewer --workers: it goes on where it was"
            ) from error

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
