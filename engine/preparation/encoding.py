"""What a worker does with a piece of input: decode it, look at it, turn it into ids. It writes nothing.

A worker knows its job from `start_worker`; `survey` and `encode` are then called with one piece after the
other, in this process or in others, and their answers depend on the piece alone.
"""

import codecs
import hashlib
import json
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from engine.errors import UserError
from engine.preparation.inputs import Piece
from engine.preparation.records import text_of
from engine.text.byte_pairs import END_OF_TEXT
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict

pass

DIGEST_BYTES = 16  # of a document's SHA-256: equal ones are expected once in 2⁶⁴ documents


@dataclass(frozen=True)
class Job:
    """What is the same for all pieces."""

    errors: str = "strict"  # about text that is not UTF-8: strict, replace or drop
    field: str = "text"
    val_below: int | None = None  # documents drawing less are for validation; None: it has files of its own
    tokenizer: dict[str, Any] | None = None  # None where it is still to be made


@dataclass(frozen=True)
class Survey:
    """What the first pass finds out about a piece: its characters' number, and which they are."""

    characters: int
    different: str


@dataclass(frozen=True)
class Encoded:
    """A piece's documents, one after the other. Of one long text: its training and its validation part."""

    ids: np.ndarray  # (tokens,) uint16 or uint32
    lengths: np.ndarray  # (documents,) int64: tokens of each
    val: np.ndarray  # (documents,) bool
    characters: np.ndarray  # (documents,) int64
    text_bytes: np.ndarray  # (documents,) int64, in UTF-8
    digests: list[bytes]  # of each document; none for one long text
    draws: list[int]  # of each document, by which its split is chosen; none for one long text
    dropped: Counter[str]  # why, how many


_job = Job()
_tokenizer: Tokenizer | None = None


def start_worker(job: Job, is_process: bool = False) -> None:
    """Prepare this process for a job. Another process leaves Ctrl-C to the one that started it."""
    global _job, _tokenizer
    if is_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _job = job
    _tokenizer = None if job.tokenizer is None else tokenizer_from_dict(job.tokenizer)


def id_type(vocab_size: int) -> np.dtype:
    """The smaller of uint16 and uint32 that holds all ids of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def survey(piece: Piece) -> Survey:
    """Count and collect the characters of a piece."""
    characters, seen = 0, np.zeros(0x110000, dtype=bool)
    for text, _ in texts_of(piece, Counter()):
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        characters += len(points)
        seen[points] = True
    return Survey(characters, "".join(map(chr, np.flatnonzero(seen))))


def encode(piece: Piece, before_border: int | None = None) -> Encoded:
    """The token ids of a piece. Of one long text the first `before_border` characters are for training."""
    assert _tokenizer is not None, "the job has no tokenizer yet"
    dtype = id_type(_tokenizer.vocab_size)
    dropped: Counter[str] = Counter()
    ids, rows, digests, draws = [], [], [], []
    if piece.kind == "text":
        ((text, _),) = texts_of(piece, dropped)
        border = (0 if piece.val else len(text)) if before_border is None else before_border
        for part, val in ((text[:border], False), (text[border:], True)):
            if part:
                ids.append(_tokenizer.encode(part).astype(dtype))
                rows.append((len(ids[-1]), val, len(part), len(part.encode())))
    else:
        for text, content in texts_of(piece, dropped):
            ids.append(_tokenizer.encode_document(text).astype(dtype))
            digest = hashlib.sha256(content).digest()
            digests.append(digest[:DIGEST_BYTES])
            draws.append(draw(digest))
            rows.append((len(ids[-1]), _is_val(piece, draws[-1]), len(text), len(content)))
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return Encoded(
        np.concatenate(ids) if ids else np.zeros(0, dtype=dtype),
        table[:, 0],
        table[:, 1].astype(bool),
        table[:, 2],
        table[:, 3],
        digests,
        draws,
        dropped,
    )


def draw(digest: bytes) -> int:
    """A document's lot, 0 to 2⁶⁴ - 1, from its SHA-256."""
    return int.from_bytes(digest[-8:], "little")


def _is_val(piece: Piece, lot: int) -> bool:
    """Whether a document is for validation: by its content alone, so that adding others moves none."""
    return piece.val if _job.val_below is None else lot < _job.val_below


def texts_of(piece: Piece, dropped: Counter[str]) -> Iterator[tuple[str, bytes]]:
    """The texts of a piece, each also in UTF-8; those left out are counted. Raises UserError for non-text."""
    if piece.kind == "text":
        yield _decoded(piece.content, piece.where, piece.start.offset, piece.start.line)
        return
    for where, content in _documents(piece):
        found = None if content is None else _decoded(content, where)
        if found is None:
            dropped["not UTF-8"] += 1
        elif not found[0] or found[0].isspace():
            dropped["empty"] += 1
        else:
            yield found


def _documents(piece: Piece) -> Iterator[tuple[str, bytes | None]]:
    """Where each document of a piece stands, and its content; None for a line of JSON to be dropped."""
    if piece.kind == "documents":
        for number, content in enumerate(piece.content):
            yield piece.name(number), content
        return
    for line, content in enumerate(piece.content.split(b"\n"), start=piece.start.line + 1):
        where = f"{piece.where}, line {line}"
        content = content.removeprefix(codecs.BOM_UTF8) if line == 1 else content
        if not content or content.isspace():
            continue
        found = _decoded(content, where)
        if found is None:
            yield where, None
            continue
        try:
            value = json.loads(found[0])
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {error}") from error
        yield where, text_of(value, _job.field, where).encode("utf-8", "surrogatepass")


def _decoded(content: bytes, where: str, offset: int = 0, line: int = 0) -> tuple[str, bytes] | None:
    """A text and its UTF-8, as the job's `errors` has it; None for one to be dropped. Raises UserError.

    `offset` and `line` count what comes before it in its file.
    """
    try:
        return content.decode("utf-8"), content
    except UnicodeDecodeError as error:
        if _job.errors == "replace":
            text = content.decode("utf-8", errors="replace")
            return text, text.encode()
        if _job.errors == "drop":
            return None
        line += content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where} is not UTF-8 (byte {offset + error.start}, line {line}); convert it: iconv -f "
            "ENCODING -t UTF-8; or go on with --errors replace"
        ) from error


def training_texts(piece: Piece, characters: int | None) -> list[str]:
    """The texts of a piece for the training split, without end-of-text marks: for making a vocabulary.

    Of one long text the first `characters` of the piece, or what `val` says.
    """
    found = []
    for text, content in texts_of(piece, Counter()):
        if piece.kind == "text" and characters is not None:
            found.append(text[:characters])
        elif not _is_val(piece, draw(hashlib.sha256(content).digest())):
            found.append(text)
    return [part for text in found for part in text.split(END_OF_TEXT) if part]


class Workers:
    """So many processes, or this one alone where the number is 1, that know a job."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool: ProcessPoolExecutor | None = None

    def start(self, job: Job) -> None:
        """Let them know a job, in place of the one before."""
        self.close()
        # This process too: it finds out what is wrong with the job before others are started.
        start_worker(job)
        if self.number > 1:
            self._pool = ProcessPoolExecutor(self.number, get_context("spawn"), start_worker, (job, True))

    def in_order(
        self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]
    ) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Each task and the function's answer to it, in the tasks' order; a few are under way at a time."""
        if self._pool is None:
            for task in tasks:
                yield task, function(*task)
            return
        waiting: deque[tuple[tuple[Any, ...], Future[Any]]] = deque()
        try:
            for task in tasks:
                waiting.append((task, self._pool.submit(function, *task)))
                if len(waiting) > 2 * self.number:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process has died, for want of memory perhaps; run the same command again with "
                "fewer --workers: it goes on where it was"
            ) from error

    def close(self) -> None:
        """Stop the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
