"""From text to a data set: read, encode on all cores, write in order; interrupted, it goes on where it was.

    plan     the vocabulary, and where one long text is divided: found by a first pass where they need one
    encode   pieces go to workers and come back in their order, so the number of workers changes nothing
    commit   everything lies complete in data/NAME/.partial before the first file of data/NAME changes

Memory holds a few pieces for each worker, whatever the input's size; hashes of documents are kept on disk.
"""

import contextlib
import dataclasses
import itertools
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
from engine.preparation.encoding import (
    Encoded,
    Job,
    Workers,
    encode,
    id_type,
    start_worker,
    survey,
    training_texts,
)
from engine.preparation.hub import Downloads, list_parquet
from engine.preparation.inputs import SPOOL, Input, Piece, Place, find_inputs, pieces
from engine.preparation.output import (
    RANK_FILE,
    STATE,
    TokenWriter,
    are_intact,
    check_lengths,
    check_name,
    commit,
    partial_folder,
)
from engine.preparation.progress import Progress
from engine.preparation.request import Plan, Request, State, identity_of, sources_of
from engine.system import available_cores, hashes_of, write_whole
from engine.text.byte_pairs import OwnBytePairTokenizer, learn_vocabulary, ranks_text
from engine.text.characters import CharTokenizer
from engine.text.tokenizer import Tokenizer, tokenizer_from_dict
from engine.text.tokenizer_files import tokenizer_of_file

SAVE_EVERY = 16  # pieces; what an interruption costs at most
IN_ONE_PROCESS = 2**22  # bytes of input that are not worth starting others for
LEARN_FROM = 2**28  # bytes of text from which a vocabulary is learned
NAMED = ("char", "bytes", "gpt2", "bpe")
NAMED_FILES = 3  # of many, in a message


class Preparation:
    """One request under way, in its partial folder."""

    def __init__(self, request: Request, partial: Path, say: Callable[[str], None]) -> None:
        self.request, self.partial, self.say = request, partial, say
        self.spool = partial.parent.joinpath(*SPOOL)
        self.inputs = self._find_inputs()
        formats = {item.format for item in self.inputs}
        about_documents = request.dedup or request.errors == "drop"
        alone = sum(not item.val for item in self.inputs) == 1 and not about_documents
        together = alone or not _has_folders(request.inputs)  # a folder of one file is like that file
        self.one_text = formats == {"text"} and together and not request.documents
        if self.one_text and about_documents:
            raise UserError(
                "--dedup and --errors drop are about documents, and text files given by name are read as "
                "one text; add --documents to make each file a document"
            )
        by_lot = isinstance(request.val, float) and not self.one_text
        self.job = Job(request.errors, request.field, math.ceil(request.val * 2**64) if by_lot else None)
        self.size = sum(item.size for item in self.inputs)
        self.identity = identity_of(request, self.inputs, self.spool)
        self._name_empty_files()

    def _name_empty_files(self) -> None:
        """Say which files hold nothing: mostly it is a mistake, and rarely seen in the counts."""
        empty = [item.path for item in self.inputs if item.format != "hub" and not item.size]
        if empty and len(empty) < len(self.inputs):
            more = len(empty) - NAMED_FILES
            names = ", ".join(empty[:NAMED_FILES]) + (f" and {more:,} more" if more > 0 else "")
            self.say(f"{self.request.name}: note: nothing is in {names}")

    def _find_inputs(self) -> list[Input]:
        request = self.request
        if request.remote is not None:
            return list_parquet(request.remote, self.partial / "downloads")
        given = [str(self._spooled()) if argument == "-" else argument for argument in request.inputs]
        found = find_inputs(given)
        if isinstance(request.val, str):
            found += find_inputs([request.val], val=True)
        if not found:
            raise UserError("there is no input; name files, folders or patterns with --input")
        return found

    def _spooled(self) -> Path:
        """Standard input, written to a file: it is read more than once."""
        with open(self.spool, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        return self.spool

    # --------------------------------------------------------------------------------------------------------
    # plan

    def plan(self, workers: Workers) -> Plan:
        """The plan of an earlier, interrupted run of the same request, or a new one."""
        saved = self._load("plan.json")
        if saved is not None:
            plan = Plan(**saved)
            self.job = dataclasses.replace(self.job, val_below=plan.val_below)
            return plan
        plan = Plan({}, None, self.job.val_below)
        kind = self.request.tokenizer
        needs_border = self.one_text and not isinstance(self.request.val, str)
        table: set[str] = set()
        if needs_border or kind == "char":
            counts = []
            workers.start(self.job)
            for _, found in workers.in_order(survey, ((piece,) for piece in self._pieces())):
                counts.append(found.characters)
                table.update(found.different)
            if not sum(counts):
                raise UserError(self._nothing_to_learn_from(Counter()))
            if not self.one_text:
                table.add("\n")  # ends documents
            plan.characters = counts if needs_border else None
        plan.tokenizer = self._tokenizer(kind, table, plan.characters).to_dict()
        self._save("plan.json", dataclasses.asdict(plan))
        return plan

    def _tokenizer(self, kind: str, table: set[str], characters: list[int] | None) -> Tokenizer:
        if kind == "char":
            return CharTokenizer("".join(sorted(table)))
        if kind == "bpe":
            self.say(f"{self.request.name}: learning a vocabulary of {self.request.vocab_size:,}")
            return learn_vocabulary(self._texts_to_learn_from(characters), self.request.vocab_size)
        if kind == "numbers":
            raise UserError("--tokenizer numbers is for token files (.bin), and the input is text")
        return tokenizer_from_dict({"kind": kind}) if kind in NAMED else tokenizer_of_file(Path(kind))

    def _texts_to_learn_from(self, characters: list[int] | None) -> Iterator[str]:
        """Training text from pieces all over the input, LEARN_FROM bytes at most."""
        start_worker(self.job)
        share = min(1.0, LEARN_FROM / max(1, self.size))
        left = LEARN_FROM
        for number, (piece, before_border) in enumerate(self._tasks(State(), characters)):
            if int((number + 1) * share) > int(number * share) or not self.size:
                for text in training_texts(piece, before_border):
                    left -= len(text)
                    yield text
                if left <= 0:
                    return

    def _pieces(self, place: Place | None = None) -> Iterator[Piece]:
        with contextlib.closing(Downloads(self.inputs)) as downloads:
            yield from pieces(self.inputs, self.request.field, self.one_text, place, downloads.arrive)

    def _tasks(self, state: State, characters: list[int] | None) -> Iterator[tuple[Piece, int | None]]:
        """The pieces from a state on; of one long text, each with its characters before the border."""
        if characters is None:
            yield from ((piece, None) for piece in self._pieces(state.place))
            return
        border = int((1 - self.request.val) * sum(characters))
        seen = sum(characters[: state.number])
        for number, piece in enumerate(self._pieces(state.place), start=state.number):
            if number >= len(characters):
                raise UserError(f"{piece.where} has changed while it was read; run the same command again")
            yield piece, min(max(0, border - seen), characters[number])
            seen += characters[number]

    # --------------------------------------------------------------------------------------------------------
    # encode

    def run(self) -> dict[str, Any]:
        """Do what is left to do; returns the content of meta.json, whose files lie in the partial folder."""
        small = self.size <= IN_ONE_PROCESS and all(item.format != "hub" for item in self.inputs)
        with contextlib.closing(
            Workers(1 if small else self.request.workers or available_cores())
        ) as workers:
            tokenizer, state = self._attempt(workers)
            if self._lots_are_redrawn(state):
                tokenizer, state = self._attempt(workers)
        self._check(state)
        if isinstance(tokenizer, OwnBytePairTokenizer):
            write_whole(self.partial / RANK_FILE, ranks_text(tokenizer))
        return self._meta(state, tokenizer)

    def _attempt(self, workers: Workers) -> tuple[Tokenizer, State]:
        plan = self.plan(workers)
        tokenizer = tokenizer_from_dict(plan.tokenizer)
        workers.start(dataclasses.replace(self.job, tokenizer=plan.tokenizer))
        return tokenizer, self._encode(plan, tokenizer, workers)

    def _lots_are_redrawn(self, state: State) -> bool:
        """Where few documents have left a split empty, let the one whose lot is nearest fall into it."""
        empty = [split for split, number in state.documents.items() if not number]
        if self.job.val_below is None or len(empty) != 1 or state.draws[0] == state.draws[1]:
            return False
        below, which = (state.draws[0] + 1, "lowest") if empty == ["val"] else (state.draws[1], "highest")
        self.say(
            f"{self.request.name}: note: none of the {sum(state.documents.values()):,} documents is for the "
            f"{empty[0]} split by its hash, so the one with the {which} hash is taken"
        )
        self.job = dataclasses.replace(self.job, val_below=below)
        (self.partial / "plan.json").unlink()
        (self.partial / STATE).unlink(missing_ok=True)
        return True

    def _encode(self, plan: Plan, tokenizer: Tokenizer, workers: Workers) -> State:
        saved = self._load(STATE)
        dtype = id_type(tokenizer.vocab_size)
        state = State() if saved is None else State(**saved | {"place": Place(**saved["place"])})
        if not are_intact(self.partial, state.files, dtype):
            state = State()
        if state.number:
            self.say(f"{self.request.name}: going on after {_total(state):,} tokens")
        writer = TokenWriter(self.partial, state.files, dtype, self.request.shard_tokens)
        progress = Progress(self.request.name, self.inputs, self.say, state.place)
        with contextlib.closing(writer), contextlib.closing(progress), self._seen(state) as seen:
            for (piece, _), found in workers.in_order(encode, self._tasks(state, plan.characters)):
                if plan.characters is not None and found.characters.sum() != plan.characters[state.number]:
                    raise UserError(
                        f"{piece.where} has changed while it was read; run the same command again"
                    )
                self._take(found, state, writer, seen)
                state.number, state.place = state.number + 1, piece.next
                progress.update(piece, int(found.text_bytes.sum()), _total(state))
                if state.number % SAVE_EVERY == 0:
                    writer.sync()
                    if seen is not None:
                        seen.commit()
                    self._save(STATE, dataclasses.asdict(state))
            writer.sync()
        if plan.characters is not None and state.number != len(plan.characters):
            raise UserError("an input has changed while it was read; run the same command again")
        return state

    def _take(
        self, found: Encoded, state: State, writer: TokenWriter, seen: sqlite3.Connection | None
    ) -> None:
        """Write a piece's documents to their splits, but for those that came before."""
        kept = np.ones(len(found.lengths), dtype=bool)
        if seen is not None:
            for number, digest in enumerate(found.digests):
                new = seen.execute(
                    "INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, state.number)
                ).rowcount
                kept[number] = new == 1
        dropped = found.dropped + Counter({"duplicate": int((~kept).sum())})
        state.dropped = dict(sorted((Counter(state.dropped) + dropped).items()))
        lots = list(itertools.compress(found.draws, kept)) + state.draws
        state.draws = [min(lots), max(lots)] if lots else []
        for split, is_val in (("train", False), ("val", True)):
            chosen = kept & (found.val == is_val)
            if chosen.any():
                ids = found.ids if chosen.all() else found.ids[np.repeat(chosen, found.lengths)]
                writer.write(split, ids)
                state.documents[split] += int(chosen.sum())
                state.characters[split] += int(found.characters[chosen].sum())
                state.text_bytes[split] += int(found.text_bytes[chosen].sum())

    @contextlib.contextmanager
    def _seen(self, state: State) -> Iterator[sqlite3.Connection | None]:
        """The hashes of the documents so far, on disk, as they were at a state; None where nobody asked."""
        if not self.request.dedup:
            yield None
            return
        with contextlib.closing(sqlite3.connect(self.partial / "seen.sqlite")) as seen:
            seen.execute("PRAGMA cache_size = -65536")  # 64 MiB
            seen.execute(
                "CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY, piece INTEGER) WITHOUT ROWID"
            )
            seen.execute("DELETE FROM seen WHERE piece >= ?", (state.number,))
            seen.commit()
            yield seen

    def _check(self, state: State) -> None:
        """Raise UserError where a split is empty, or an input has changed on the way."""
        if identity_of(self.request, self.inputs, self.spool) != self.identity:
            raise UserError("an input has changed while it was read; run the same command again")
        if not _total(state):
            raise UserError(self._nothing_to_learn_from(state.dropped))
        number = sum(state.documents.values())
        if self.job.val_below is not None and not all(state.documents.values()):
            what = "there is one document" if number == 1 else f"the {number:,} documents are all the same"
            raise UserError(
                f"{what}, and both splits need one; give more, or text for validation: --val PATH"
            )

    def _nothing_to_learn_from(self, dropped: Mapping[str, int]) -> str:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        names = ", ".join(dict.fromkeys(item.name for item in self.inputs[:NAMED_FILES]))
        why = left_out and f" ({left_out} left out)"
        return f"the text is empty; there is nothing to learn from in {names}{why}"

    # --------------------------------------------------------------------------------------------------------
    # meta.json

    def _meta(self, state: State, tokenizer: Tokenizer) -> dict[str, Any]:
        dtype = id_type(tokenizer.vocab_size)
        named = [(split, name, tokens) for split, files in state.files.items() for name, tokens in files]
        hashes = hashes_of([self.partial / name for _, name, _ in named])
        files = [
            {"path": name, "split": split, "tokens": tokens, "header_bytes": 0, "sha256": sha256}
            for (split, name, tokens), sha256 in zip(named, hashes, strict=True)
        ]
        asked = {"val": self.request.val, "errors": self.request.errors, "dedup": self.request.dedup}
        return {
            "format": FORMAT,
            "name": self.request.name,
            "dtype": dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.to_dict(),
            "text_bytes": state.text_bytes,
            "characters": state.characters,
            **({} if self.one_text else {"documents": state.documents}),
            "dropped": state.dropped,
            "asked": asked,
            "files": files,
            "sources": self.request.sources or sources_of(self.inputs, self.spool),
        }

    def _load(self, name: str) -> dict[str, Any] | None:
        """What an earlier run of the same request saved."""
        path = self.partial / name
        saved = json.loads(path.read_bytes()) if path.exists() else {}
        return saved.get("content") if saved.get("identity") == self.identity else None

    def _save(self, name: str, content: dict[str, Any]) -> None:
        write_whole(self.partial / name, json.dumps({"identity": self.identity, "content": content}).encode())


def _has_folders(arguments: list[str]) -> bool:
    """Whether some argument is a folder or a pattern rather than a file."""
    return any(argument != "-" and not Path(argument).expanduser().is_file() for argument in arguments)


def _total(state: State) -> int:
    return sum(tokens for files in state.files.values() for _, tokens in files)


def prepare(request: Request, say: Callable[[str], None], root: Path = DATA_FOLDER) -> Path:
    """Make data/NAME as requested; it changes at the very end, or not at all. Returns the folder.

    Raises UserError. What a long preparation has done by then is kept in data/NAME/.partial, and the same
    request goes on from it.
    """
    check_name(request.name, root)
    folder = root / request.name
    with partial_folder(folder) as partial:
        meta = Preparation(request, partial, say).run()
        tokens = tokens_of(meta)
        check_lengths(request.name, tokens, say)
        commit(partial, folder, meta)
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in meta["dropped"].items())
    say(
        f"{folder}: {tokens['train']:,} training and {tokens['val']:,} validation tokens, "
        f"vocabulary {meta['vocab_size']:,}{dropped and f'; left out: {dropped}'}"
    )
    return folder
