"""A data set under way: a folder inside data/NAME, whose files move to their places at the very end."""

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from engine.dataset import read_meta
from engine.errors import UserError
from engine.sources import write_whole

STATE = "state.json"  # there where a long preparation has saved how far it is
RANK_FILE = "tokenizer.tiktoken"
FEWEST_TOKENS = 2  # of a split
USUAL_BLOCK = 256  # tokens; splits no longer than that are remarked upon


def check_name(name: str, root: Path) -> None:
    """Raise UserError for what cannot be a folder in data/."""
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"{name!r} cannot name a data set: it becomes a folder in {root}")


def check_lengths(name: str, tokens: Mapping[str, int], say: Callable[[str], None]) -> None:
    """Raise UserError where a split is too short for any model; say where it is shorter than most blocks."""
    for split, number in tokens.items():
        if number < FEWEST_TOKENS:
            raise UserError(
                f"the {split} split of {name} has {number} of the {FEWEST_TOKENS} tokens that any sequence "
                f"takes, one to read and one to predict; give more text, or another --val"
            )
    shortest = min(tokens, key=tokens.__getitem__)
    if tokens[shortest] <= USUAL_BLOCK:
        say(
            f"{name}: note: the {shortest} split has {tokens[shortest]} tokens, so a model of it can have a "
            f"--block_size of {tokens[shortest] - 1} at most"
        )


@contextlib.contextmanager
def partial_folder(folder: Path, name: str = ".partial") -> Iterator[Path]:
    """A folder for work under way in data/NAME, held by this process alone.

    It goes away, and after an error what was made for it, unless the error leaves saved work in it.
    """
    partial = folder / name
    made = [parent for parent in (folder, folder.parent) if not parent.exists()]
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(partial / "lock")
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise UserError(f"another process is preparing {folder}; wait for it") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from error
    try:
        yield partial
        (partial / STATE).unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise  # not the disk: a library of the network's
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder} cannot be written: {reason}; what was there has not changed; "
            f"put it right and run the same command again"
        ) from error
    finally:
        if not (partial / STATE).exists():
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty: all went well
                for parent in made:
                    parent.rmdir()
        lock.release()


def commit(partial: Path, folder: Path, meta: dict[str, Any], moved: bool = True) -> None:
    """Move the new files into their places, meta.json last; delete those that only the old one lists.

    Without `moved` the token files lie in their places already.
    """
    write_whole(partial / "meta.json", json.dumps(meta, indent=1).encode())
    old: list[str] = []
    with contextlib.suppress(UserError):  # there was no data set, or none that can be read
        old = [file["path"] for file in read_meta(folder / "meta.json")["files"]] + [RANK_FILE]
    (folder / "meta.json").unlink(missing_ok=True)
    new = [file["path"] for file in meta["files"]] + [RANK_FILE] * (partial / RANK_FILE).exists()
    for name in [*(new if moved else []), "meta.json"]:
        os.replace(partial / name, folder / name)
    for name in set(old) - set(new):
        (folder / name).unlink(missing_ok=True)
