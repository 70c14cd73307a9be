"""What a worker does with a piece of input: decode it, look at it, turn it into ids. It writes nothing.

A worker knows its job from `start_worker`; `survey` and `encode` are then called with one piece after the
other, in this process or in others (`Workers`), and their answers depend on the piece alone.
"""

import hashlib
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np

from engine.conversation.messages import from_json
from engine.conversation.template import shortened
from engine.errors import UserError
from engine.preparation.inputs import FilesPiece, LinesPiece, Piece, Place, RecordsPiece, TextPiece
from engine.preparation.records import parse_line, record_text
from engine.preparation.utf8 import LOOKED_AT, check_not_utf16, not_utf8
from engine.text.byte_pairs import END_OF_TEXT
from engine.text.roles import ChatTokenizer
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict

DIGEST_BYTES = 16  # of a document's SHA-256: equal ones are expected once in 2⁶⁴ documents


@dataclass(frozen=True)
class Job:
    """What is the same for all pieces."""

    errors: str = "strict"  # about text that is not UTF-8: strict, replace or drop
    field: str | None = "text"  # of a record; None: records are conversations
    block_size: int = 1024  # tokens of a conversation, at most
    val_below: int | None = None  # documents with a lower hash are for validation; None: that has own files
    tokenizer: dict[str, Any] | None = None  # None where it is still to be made


class Text(NamedTuple):
    """A document, or a stretch of one long text."""

    text: str
    utf8: bytes
    file: str


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
    split_hashes: list[int]  # of each document; none for one long text
    dropped: Counter[str]  # why, how many
    carriage_returns: Counter[str]  # in which file, how many
    targets: np.ndarray | None  # (tokens,) uint8: 1 for what is trained on; None: everything is
    cut: int  # conversations that were shortened


# ------------------------------------------------------------------------------------------------------------
# in a worker

_job = Job()
_tokenizer: Tokenizer | None = None


def start_worker(job: Job, is_process: bool = False) -> None:
    """Prepare this process for a job. Another process leaves Ctrl-C to the one that started it."""
    global _job, _tokenizer
    if is_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _job = job
    _tokenizer = None if job.tokenizer is None else tokenizer_from_dict(job.tokenizer)


def survey(piece: Piece) -> Survey:
    """Count and collect the characters of a piece."""
    characters, seen = 0, np.zeros(0x110000, dtype=bool)
    for found in texts_of(piece, Counter()):
        for text in _contents(found):
            points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
            characters += len(points)
            seen[points] = True
    return Survey(characters, "".join(map(chr, np.flatnonzero(seen))))


def training_texts(piece: Piece, characters: int | None) -> list[str]:
    """The texts of a piece for the training split, without end-of-text marks: for making a vocabulary.

    Of one long text the first `characters` of the piece, or what `val` says.
    """
    texts = []
    for found in texts_of(piece, Counter()):
        if isinstance(piece, TextPiece) and characters is not None:
            texts.append(found.text[:characters])
        elif not _is_val(piece, split_hash(hashlib.sha256(found.utf8).digest())):
            texts += _contents(found)
    return [part for text in texts for part in text.split(END_OF_TEXT) if part]


def encode(piece: Piece, before_border: int | None = None) -> Encoded:
    """The token ids of a piece. Of one long text the first `before_border` characters are for training."""
    assert _tokenizer is not None, "the job has no tokenizer yet"
    dtype = id_type(_tokenizer.vocab_size)
    dropped: Counter[str] = Counter()
    carriage_returns: Counter[str] = Counter()
    ids, rows, digests, split_hashes, targets, cut = [], [], [], [], [], 0
    one_text = isinstance(piece, TextPiece)
    for found in texts_of(piece, dropped):
        if b"\r" in found.utf8:  # which is faster than counting
            carriage_returns[found.file] += found.utf8.count(b"\r")
        if one_text:
            border = (0 if piece.val else len(found.text)) if before_border is None else before_border
            for part, val in ((found.text[:border], False), (found.text[border:], True)):
                if part:
                    ids.append(_tokenizer.encode(part).astype(dtype))
                    rows.append((len(ids[-1]), val, len(part), len(part.encode())))
        else:
            if _job.field is None:
                assert isinstance(_tokenizer, ChatTokenizer), "conversations need tokens for the roles"
                encoded, is_cut = shortened(_tokenizer, from_json(found.text), _job.block_size)
                if encoded is None:
                    dropped["longer than the block"] += 1
                    continue
                cut += is_cut
                ids.append(encoded.ids.astype(dtype))
                targets.append(encoded.targets.astype(np.uint8))
            else:
                ids.append(_tokenizer.encode_document(found.text).astype(dtype))
            digest = hashlib.sha256(found.utf8).digest()
            digests.append(digest[:DIGEST_BYTES])
            split_hashes.append(split_hash(digest))
            val = _is_val(piece, split_hashes[-1])
            contents = _contents(found)
            characters = sum(map(len, contents))
            text_bytes = len(found.utf8) if _job.field is not None else sum(len(t.encode()) for t in contents)
            rows.append((len(ids[-1]), val, characters, text_bytes))
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return Encoded(
        np.concatenate(ids) if ids else np.zeros(0, dtype=dtype),
        table[:, 0],
        table[:, 1].astype(bool),
        table[:, 2],
        table[:, 3],
        digests,
        split_hashes,
        dropped,
        carriage_returns,
        np.concatenate(targets) if targets else None,
        cut,
    )


def _contents(found: Text) -> list[str]:
    """The text itself, or what is said in a conversation."""
    return [found.text] if _job.field is not None else [content for _, content in from_json(found.text)]


def id_type(vocab_size: int) -> np.dtype:
    """The smaller of uint16 and uint32 that holds all ids of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def split_hash(digest: bytes) -> int:
    """The number, 0 to 2⁶⁴ - 1, that decides which split a document belongs to, from its SHA-256."""
    return int.from_bytes(digest[-8:], "little")


def _is_val(piece: Piece, document_hash: int) -> bool:
    """Whether a document is for validation: by its content alone, so that adding others moves none."""
    return piece.val if _job.val_below is None else document_hash < _job.val_below


def texts_of(piece: Piece, dropped: Counter[str]) -> Iterator[Text]:
    """The texts of a piece; the documents left out are counted. Raises UserError for what is no text."""
    one_text = isinstance(piece, TextPiece)
    for found in _decoded(piece):
        if found is None:
            dropped["not UTF-8"] += 1
        elif not one_text and (not found.text or found.text.isspace()):
            dropped["empty"] += 1
        else:
            yield found


def _decoded(piece: Piece) -> Iterator[Text | None]:
    """The texts of a piece, None for each that is not UTF-8 and to be dropped. Raises UserError."""
    if isinstance(piece, TextPiece):
        yield _decode(piece.content, piece.file, piece.file, piece.start)
    elif isinstance(piece, FilesPiece):
        for number, (content, file) in enumerate(zip(piece.contents, piece.files, strict=True)):
            yield _decode(content, file, file, piece.place(number))
    elif isinstance(piece, RecordsPiece):
        for number, content in enumerate(piece.contents, start=piece.start.offset + 1):
            yield _decode(content, f"{piece.file}, record {number}", piece.file)
    elif isinstance(piece, LinesPiece):
        for number, content in enumerate(piece.content.split(b"\n"), start=piece.start.line + 1):
            if content and not content.isspace():
                yield _decode_line(content, f"{piece.file}, line {number}", piece.file)


def _decode_line(content: bytes, where: str, file: str) -> Text | None:
    """The text in a line of JSON."""
    line = _decode(content, where, file)
    if line is None:
        return None
    text = record_text(parse_line(line.text, where, file), _job.field, where)
    try:
        return Text(text, text.encode("utf-8"), file)
    except UnicodeEncodeError:  # half a surrogate pair
        return _decode(text.encode("utf-8", "surrogatepass"), where, file)


def _decode(content: bytes, where: str, file: str, place: Place | None = None) -> Text | None:
    """A text, as the job's `errors` has it; None for one to be dropped. Raises UserError.

    `where` is what it is called in a message; `place`, where it begins in its file, makes lines count.
    """
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


# ------------------------------------------------------------------------------------------------------------
# in the main process


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

    def map_in_order(
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
