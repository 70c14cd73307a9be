"""Make a data set: text in, files of token ids in data/NAME out.

    python prepare.py shakespeare_char                          a data set that the program knows
    python prepare.py yourfile.txt                              your own text, as data/yourfile
    python prepare.py yourfolder/                               every file in it, each a document
    python prepare.py novels --input a.txt b.txt --tokenizer gpt2 --val 0.05
    python prepare.py web --input 'crawl/*.jsonl.zst' --tokenizer bpe --vocab_size 8192 --dedup
    python prepare.py --show web                                what is in data/web
    python prepare.py --verify web                              whether its files are what they were

Known: shakespeare_char (characters), shakespeare (GPT-2's byte-pair encoding), assistant_base and
assistant_chat (made without any network), openwebtext, fineweb and fineweb_100B (many gigabytes).

Input is files, folders, patterns, - (standard input) or hf:NAME[:CONFIGURATION[:SPLIT]] (Hugging Face): plain
text, .jsonl, .json, .csv, .tsv or .parquet, also as .gz, .xz, .bz2 or .zst. Text files given by name are one
text, in this order, whose end is kept for validation. Anything else is documents: each is followed by the
end-of-text token, and its hash decides whether it is for validation. Token files (.bin) of nanoGPT and llm.c
are taken as they are. Records with the fields messages, conversations, prompt and completion, question and
answer, or instruction and output are conversations: a model learns the assistant's words of them.
"""

import shlex
from argparse import SUPPRESS, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.command_line import Parser, at_least_one, run_script
from engine.data.dataset import DATA_FOLDER, read_meta
from engine.data.describe import describe, verify
from engine.errors import UserError, similar_file
from engine.preparation.pipeline import NAMED, prepare
from engine.preparation.recipes import LARGE, RECIPES, prepare_recipe
from engine.preparation.request import Request
from engine.preparation.token_files import are_token_files, describe_token_files, holds_token_files

TOKENIZERS = (*NAMED, "numbers")


def main(arguments: Sequence[str]) -> None:
    """Prepare, show or verify a data set with the options of a command line. Raises UserError."""
    options = read_options(arguments)
    if options.show:
        describe(options.show, print)
    elif options.verify:
        verify(options.verify, print)
    else:
        name, inputs = name_and_inputs(options.name, options.input)
        others = ("name", "input", "show", "verify")
        chosen = {option: value for option, value in vars(options).items() if option not in others}
        if inputs is None:
            folder = prepare_recipe(name, print, chosen=chosen)
        else:
            folder = prepare_inputs(name, inputs, chosen)
        aligned = " --documents=aligned" if "conversations" in read_meta(folder / "meta.json") else ""
        print(f"next: {training_command(folder.name)}{aligned}")


def name_and_inputs(name: str, inputs: list[str] | None) -> tuple[str, list[str] | None]:
    """The data set's name, and its input, if it has one; `name` may be its path."""
    path = Path(name)
    if inputs is not None:
        return name, inputs
    if path.is_file():
        return path.stem, [name]
    if path.name == name and path.suffix and not (DATA_FOLDER / name).exists():
        raise UserError(f"there is no file {name}{similar_file(path)}")
    if path.name == name:
        is_input = path.is_dir() and name not in RECIPES | LARGE and not holds_token_files(DATA_FOLDER / name)
        return name, [name] if is_input else None
    if not path.is_dir():
        raise UserError(f"there is no file or folder {name}")
    folder = DATA_FOLDER / path.resolve().name
    is_dataset = (folder / "meta.json").exists() or holds_token_files(folder)
    return folder.name, None if is_dataset and path.resolve() == folder.resolve() else [name]


def prepare_inputs(name: str, inputs: list[str], chosen: dict[str, Any]) -> Path:
    """Make a data set of inputs, or take token files as they are. Raises UserError."""
    request = Request(name, inputs, **chosen)
    if not are_token_files(inputs):
        return prepare(request, print)
    about_text = sorted(chosen.keys() - {"tokenizer", "val", "workers"})
    if about_text:
        raise UserError(f"--{about_text[0]} is about text; token files (.bin) are taken as they are")
    val = [request.val] if isinstance(request.val, str) else []
    return describe_token_files(name, inputs + val, chosen.get("tokenizer"), print)


def training_command(name: str) -> str:
    """The line that trains on a data set, from the current folder."""
    train = Path(__file__).with_name("train.py")
    script = train.name if train.parent == Path.cwd() else str(train)
    return f"python {shlex.quote(script)} --dataset={shlex.quote(name)}"


def read_options(arguments: Sequence[str]) -> Namespace:
    """The command line, checked; options not given are absent. Raises UserError."""
    parser = Parser(description=__doc__, argument_default=SUPPRESS)
    add = parser.add_argument
    what = "a known data set, a text file or folder, or what to call one made from --input"
    add("name", nargs="?", default=None, help=what)
    add("--input", nargs="+", metavar="PATH", default=None, help="files, folders, patterns, - or hf:NAME")
    add(
        "--tokenizer",
        help="char, bytes, gpt2, bpe (learned from the text), or a file or data set that has one; "
        "of token files also numbers (default: char; of token files what their header says)",
    )
    add("--vocab_size", type=int, metavar="N", help="entries of a vocabulary that is learned (default: 8192)")
    add("--val", type=share_or_path, help="for validation: a share, or the path of other text (default: 0.1)")
    add("--field", help="field or column that holds the text of a record (default: text)")
    add("--errors", choices=("strict", "replace", "drop"), help="what to do about text that is not UTF-8")
    add("--documents", action="store_true", help="text files given by name are documents, too")
    add("--dedup", action="store_true", help="leave out documents that came before, letter for letter")
    number: dict[str, Any] = {"type": at_least_one, "metavar": "N"}
    longest = "tokens of a conversation: a longer one is cut before a question (default: 1024)"
    add("--block_size", **number, help=longest)
    add("--shard_tokens", **number, help="tokens of one file (default: one file for each split)")
    add("--workers", **number, help="processes (default: one for each core)")
    add("--show", metavar="NAME", default=None, help="print what a data set holds")
    add("--verify", metavar="NAME", default=None, help="check the files of a data set against their hashes")
    options = parser.parse_args(arguments)
    if not (options.name or options.show or options.verify):
        raise UserError(
            "name a data set: python prepare.py NAME --input FILE, or python prepare.py yourfile.txt"
        )
    if not Path(getattr(options, "tokenizer", ".")).exists() and options.tokenizer not in TOKENIZERS:
        raise UserError(
            f"--tokenizer: invalid choice: {options.tokenizer!r} is no file, and none of "
            f"{', '.join(TOKENIZERS)}"
        )
    if hasattr(options, "vocab_size") and getattr(options, "tokenizer", None) != "bpe":
        raise UserError("--vocab_size is that of a vocabulary that is learned: add --tokenizer bpe")
    return options


def share_or_path(text: str) -> float | str:
    """The value of --val, as the `type` of an option."""
    try:
        share = float(text)
    except ValueError:
        return text
    if not 0 < share < 1:
        raise ArgumentTypeError(f"it is {text}; it must be a share between 0 and 1, or a path")
    return share


if __name__ == "__main__":
    run_script(main)
