"""From text to a data set: read, encode on all cores, write in order; after an interruption, continue.

    plan     find the vocabulary and where one long text is divided, in a first pass if they need one
    encode   send pieces to workers and write the answers in order: the number of workers changes nothing
    finish   complete everything in data/NAME/.partial, then change the files of data/NAME

Memory holds a few pieces for each worker, whatever the input's size; hashes of documents are kept on disk.
"""

import contextlib
import dataclasses
import json
import math
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.dataset import DATA_FOLDER, FORMAT, tokens_of
from engine.errors import UserError
from engine.preparation.compression import filter_command
from engine.preparation.encoding import FLAG, Encoded, Job, Workers, encode, id_type, survey, training_texts
from engine.preparation.hub import list_parquet
from engine.preparation.inputs import STDIN, Input, Piece, are_conversations, find_inputs, format_of, pieces
from engine.preparation.output import (
    RANK_FILE,
    STATE,
    TokenWriter,
    are_intact,
    check_lengths,
    check_name,
    move_into_place,
    staging_folder,
    write_masks,
)
from engine.preparation.progress import PreparationProgress
from engine.preparation.request import Request, State, request_hash, sources_of, version_of
from engine.system import available_cores, hashes_of, write_whole
from engine.text.byte_pairs import OwnBytePairTokenizer, learn_vocabulary, ranks_text
from engine.text.characters import CharTokenizer
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict, with_roles
from engine.text.tokenizer_files import tokenizer_of_file

JOB = "job.json"  # the name of the file for what must be known before the first token is written
SAVE_EVERY = 16  # pieces: the most that an interruption costs
IN_ONE_PROCESS = 2**22  # bytes: less input is not worth starting other processes
LEARN_FROM = 2**28  # bytes of text from which a vocabulary is learned
NAMED = ("char", "bytes", "gpt2", "bpe")
FILES_NAMED = 3  # of many, in a message


def prepare(request: Request, say: Callable[[str], None], root: Path = DATA_FOLDER) -> Path:
    """Make data/NAME as requested; it changes at the very end, or not at all. Returns the folder.

    Raises UserError. What a long preparation has done by then is kept in data/NAME/.partial, and the same
    request goes on from it.
    """
    check_name(request.name, root)
    folder = root / request.name
    with staging_folder(folder) as staging:
        meta = Preparation(request, staging, say).run()
        tokens = tokens_of(meta)
        check_lengths(request.name, tokens, say)
        move_into_place(staging, folder, meta)
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in meta["dropped"].items())
    say(
        f"{folder}: {tokens['train']:,} training and {tokens['val']:,} validation tokens, "
        f"vocabulary {meta['vocab_size']:,}{dropped and f'; left out: {dropped}'}"
    )
    return folder


class Preparation:
    """One request under way, in its staging folder."""

    def __init__(self, request: Request, staging: Path, say: Callable[[str], None]) -> None:
        self.request, self.staging = request, staging
        self.say: Callable[[str], None] = lambda text: say(f"{request.name}: {text}")
        self.inputs = self._find_inputs()
        self.size = sum(item.size for item in self.inputs)
        self.one_text = self._is_one_text()
        self.val_share = None if isinstance(request.val, str) else request.val
        val_below = None
        if self.val_share is not None and not self.one_text:
            val_below = math.ceil(self.val_share * 2**64)
        self.conversations = are_conversations(self.inputs, request.field)
        field = None if self.conversations else request.field
        self.job = Job(request.errors, field, request.block_size, val_below)
        self.versions = [version_of(item) for item in self.inputs]
        self.request_hash = request_hash(request, self.inputs, self.versions)
        self._name_empty_files()

    def run(self) -> dict[str, Any]:
        """Finish the preparation; returns the content of meta.json, whose files are staged."""
        small = self.size <= IN_ONE_PROCESS and all(item.format != "hub" for item in self.inputs)
        number = 1 if small else self.request.workers or available_cores()
        with contextlib.closing(Workers(number)) as workers:
            state = self._encode(workers)
            if self._fills_empty_split(state):
                state = self._encode(workers)
        self._check(state)
        self._say_notes(state)
        if isinstance(self.tokenizer, OwnBytePairTokenizer):
            write_whole(self.staging / RANK_FILE, ranks_text(self.tokenizer))
        return self._meta(state)

    def _find_inputs(self) -> list[Input]:
        request, found = self.request, []
        if request.remote is not None:
            argument = f"{request.remote.repository}/{request.remote.folder}"
            for file in list_parquet(request.remote, self.staging / "downloads"):
                found.append(Input(str(file.place), "parquet", argument, file.size, hub_file=file))
        for argument in request.inputs:
            found += [self._stdin_in_file()] if argument == STDIN else find_inputs([argument])
        if isinstance(request.val, str):
            found += find_inputs([request.val], val=True)
        if not found:
            raise UserError("there is no input; name files, folders or patterns with --input")
        return found

    def _stdin_in_file(self) -> Input:
        """Standard input, written to a file: it is read more than once."""
        path = self.staging / "stdin"
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        return Input(str(path), "text", STDIN, path.stat().st_size)

    def _is_one_text(self) -> bool:
        """Whether the input is one long text. Raises UserError for options that only documents have."""
        request = self.request
        about_documents = request.dedup or request.errors == "drop"
        one_file = sum(not item.val for item in self.inputs) == 1 and not about_documents
        # A folder of one file is like that file; other folders, and patterns, hold documents.
        files = (argument == STDIN or Path(argument).expanduser().is_file() for argument in request.inputs)
        plain = all(item.format == "text" for item in self.inputs)
        one_text = plain and (one_file or all(files)) and not request.documents
        if one_text and about_documents:
            raise UserError(
                "--dedup and --errors drop are about documents, and text files given by name are read as "
                "one text; add --documents to make each file a document"
            )
        return one_text

    def _name_empty_files(self) -> None:
        empty = [item.path for item in self.inputs if item.format != "hub" and not item.size]
        if empty and len(empty) < len(self.inputs):
            more = len(empty) - FILES_NAMED
            names = ", ".join(empty[:FILES_NAMED]) + (f" and {more:,} more" if more > 0 else "")
            self.say(f"note: nothing is in {names}")

    def _pieces(self, state: State) -> Iterator[tuple[int, Piece]]:
        found = pieces(self.inputs, self.job.field, self.one_text, state.place)
        return enumerate(found, start=state.number)

    def _complete_job(self, workers: Workers) -> None:
        """Find the vocabulary and the border, or take those of an interrupted run."""
        saved = self._load(JOB)
        if saved is not None:
            self.job = Job(**saved)
            return
        kind = self.request.tokenizer
        table: set[str] = set()
        if kind == "char" or (self.one_text and self.val_share is not None):
            counts = []
            workers.start(self.job)
            tasks = ((piece,) for _, piece in self._pieces(State()))
            for _, (characters, different) in workers.map_in_order(survey, tasks):
                counts.append(characters)
                table.update(different)
            if not sum(counts):
                raise UserError(self._nothing_to_learn_from(Counter()))
            if not self.one_text:
                table.add("\n")  # ends documents
            elif self.val_share is not None:
                self.job = dataclasses.replace(self.job, border=find_border(counts, self.val_share))
        tokenizer = CharTokenizer("".join(sorted(table))) if kind == "char" else self._other_tokenizer(kind)
        if self.conversations:
            tokenizer = with_roles(tokenizer)
        self.job = dataclasses.replace(self.job, tokenizer=tokenizer.to_dict())
        self._save(JOB, dataclasses.asdict(self.job))

    def _other_tokenizer(self, kind: str) -> Tokenizer:
        if kind == "bpe":
            self.say(f"learning a vocabulary of {self.request.vocab_size:,}")
            return learn_vocabulary(self._texts_to_learn_from(), self.request.vocab_size)
        if kind == "numbers":
            raise UserError("--tokenizer numbers is for token files (.bin), and the input is text")
        return tokenizer_from_dict({"kind": kind}) if kind in NAMED else tokenizer_of_file(Path(kind))

    def _texts_to_learn_from(self) -> Iterator[str]:
        Workers(1).start(self.job)
        share = min(1.0, LEARN_FROM / max(1, self.size))
        left = LEARN_FROM
        for number, piece in self._pieces(State()):
            if int((number + 1) * share) > int(number * share) or not self.size:
                for text in training_texts(number, piece):
                    left -= len(text)
                    yield text
                if left <= 0:
                    return

    def _encode(self, workers: Workers) -> State:
        self._complete_job(workers)
        workers.start(self.job)
        self.tokenizer = tokenizer_from_dict(self.job.tokenizer)
        saved = self._load(STATE)
        state = State() if saved is None else State(**saved)
        dtypes = [id_type(self.tokenizer.vocab_size)] + ([FLAG] if self.conversations else [])
        if not are_intact(self.staging, state.files, dtypes):
            state = State()
        if state.number:
            self.say(f"going on after {state.tokens:,} tokens")
        writer = TokenWriter(self.staging, state.files, dtypes, self.request.shard_tokens)
        progress = PreparationProgress(self.inputs, self.say, state.place)
        with (
            contextlib.closing(writer),
            contextlib.closing(progress),
            contextlib.closing(self._document_hashes(state)) as hashes,
        ):
            for (_, piece), found in workers.map_in_order(encode, self._pieces(state)):
                self._write(piece, found, state, writer, hashes)
                state.number, state.place = state.number + 1, piece[-1].next
                progress.update(piece[-1], int(found.documents["text_bytes"].sum()), state.tokens)
                if state.number % SAVE_EVERY == 0:
                    writer.sync()
                    hashes.commit()
                    self._save(STATE, dataclasses.asdict(state))
            writer.sync()
        return state

    def _write(
        self, piece: Piece, found: Encoded, state: State, writer: TokenWriter, hashes: sqlite3.Connection
    ) -> None:
        """Count a piece's documents and write them to their splits, without duplicates."""
        documents = found.documents
        kept = np.ones(len(documents), dtype=bool)
        if self.request.dedup:
            for number, digest in enumerate(documents["digest"].tolist()):
                row = (digest, state.number)
                kept[number] = hashes.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", row).rowcount == 1
        dropped = found.dropped + Counter({"duplicate": int((~kept).sum())})
        state.dropped = dict(sorted((Counter(state.dropped) + dropped).items()))
        split_hashes = documents["split_hash"][kept].tolist() + state.split_hashes
        state.split_hashes = [min(split_hashes), max(split_hashes)] if split_hashes else []
        state.cut += found.cut
        state.longest = max([state.longest, *documents["tokens"].tolist()])
        for file, number in found.carriage_returns.items():
            state.carriage_returns += number
            state.first_with_returns = state.first_with_returns or file
        for part in piece:
            if part.marked:
                state.byte_order_marks += 1
                state.first_marked = state.first_marked or part.file
        for split, is_val in (("train", False), ("val", True)):
            chosen = kept & (documents["val"] == is_val)
            if chosen.any():
                of_these = slice(None) if chosen.all() else np.repeat(chosen, documents["tokens"])
                writer.write(split, *(numbers[of_these] for numbers in found.tokens))
                state.documents[split] += int(chosen.sum())
                state.characters[split] += int(documents["characters"][chosen].sum())
                state.text_bytes[split] += int(documents["text_bytes"][chosen].sum())

    def _document_hashes(self, state: State) -> sqlite3.Connection:
        """The hashes of the documents up to a state, on disk; without --dedup none."""
        hashes = sqlite3.connect(self.staging / "seen.sqlite" if self.request.dedup else ":memory:")
        hashes.execute("PRAGMA cache_size = -65536")  # 64 MiB
        hashes.execute(
            "CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY, piece INTEGER) WITHOUT ROWID"
        )
        hashes.execute("DELETE FROM seen WHERE piece >= ?", (state.number,))
        hashes.commit()
        return hashes

    def _fills_empty_split(self, state: State) -> bool:
        """Move the document with the nearest hash into an empty split; then all must be encoded again."""
        empty = [split for split, number in state.documents.items() if not number]
        if self.job.val_below is None or len(empty) != 1 or len(set(state.split_hashes)) < 2:
            return False
        lowest, highest = state.split_hashes
        below, which = (lowest + 1, "lowest") if empty == ["val"] else (highest, "highest")
        self.say(
            f"note: none of the {sum(state.documents.values()):,} documents is for the "
            f"{empty[0]} split by its hash, so the one with the {which} hash is taken"
        )
        self.job = dataclasses.replace(self.job, val_below=below)
        (self.staging / JOB).unlink()
        (self.staging / STATE).unlink(missing_ok=True)
        return True

    def _check(self, state: State) -> None:
        for item, version in zip(self.inputs, self.versions, strict=True):
            if version != version_of(item):
                raise UserError(f"{item.name} has changed while it was read; run the same command again")
        if not state.tokens:
            raise UserError(self._nothing_to_learn_from(state.dropped))
        number = sum(state.documents.values())
        if self.job.val_below is not None and not all(state.documents.values()):
            what = "there is one document" if number == 1 else f"the {number:,} documents are all the same"
            raise UserError(
                f"{what}, and both splits need one; give more, or text for validation: --val PATH"
            )

    def _nothing_to_learn_from(self, dropped: Mapping[str, int]) -> str:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        names = ", ".join(dict.fromkeys(item.name for item in self.inputs[:FILES_NAMED]))
        why = left_out and f" ({left_out} left out)"
        return f"the text is empty; there is nothing to learn from in {names}{why}"

    def _say_notes(self, state: State) -> None:
        if state.cut:
            longest = self.request.block_size
            self.say(f"{state.cut:,} conversations are longer than {longest} tokens, and are cut")
        if state.byte_order_marks:
            more = state.byte_order_marks - 1
            others = f" and of {more:,} more" if more else ""
            self.say(
                f"note: the byte-order mark at the beginning of {state.first_marked}{others} is left out"
            )
        if state.carriage_returns:
            file, without = state.first_with_returns, ""
            if Path(file).is_file() and format_of(file) == "text":
                without = "; without them: " + filter_command(r"tr -d '\r'", file, "unix")
            self.say(
                f"note: the text holds {state.carriage_returns:,} carriage returns, with which "
                f"Windows ends lines, the first in {file}; they become tokens{without}"
            )

    def _meta(self, state: State) -> dict[str, Any]:
        named = [(split, name, tokens) for split, files in state.files.items() for name, tokens in files]
        hashes = hashes_of([self.staging / name for _, name, _ in named])
        files = [
            {"path": name, "split": split, "tokens": tokens, "header_bytes": 0, "sha256": sha256}
            for (split, name, tokens), sha256 in zip(named, hashes, strict=True)
        ]
        if self.conversations:
            files = write_masks(self.staging, files)
        asked = {"val": self.request.val, "errors": self.request.errors, "dedup": self.request.dedup}
        return {
            "format": FORMAT,
            "name": self.request.name,
            "dtype": id_type(self.tokenizer.vocab_size).name,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer": self.tokenizer.to_dict(),
            **({} if self.conversations else {"text_bytes": state.text_bytes}),
            **({"conversations": {"longest": state.longest, "cut": state.cut}} if self.conversations else {}),
            "characters": state.characters,
            **({} if self.one_text else {"documents": state.documents}),
            "dropped": state.dropped,
            "asked": asked,
            "files": files,
            "sources": self.request.sources or sources_of(self.inputs),
        }

    def _load(self, name: str) -> dict[str, Any] | None:
        path = self.staging / name
        saved = json.loads(path.read_bytes()) if path.exists() else {}
        return saved.get("content") if saved.get("request") == self.request_hash else None

    def _save(self, name: str, content: dict[str, Any]) -> None:
        saved = {"request": self.request_hash, "content": content}
        write_whole(self.staging / name, json.dumps(saved).encode())


def find_border(characters: list[int], val_share: float) -> tuple[int, int]:
    """Where validation begins in a text: in which of its pieces, after how many characters of it."""
    border = int((1 - val_share) * sum(characters))
    ends = np.cumsum([0, *characters])
    number = int(np.searchsorted(ends, border, side="right")) - 1
    return number, border - int(ends[number])
