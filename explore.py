"""Look inside a GPT in the browser: next-token bars, attention, surprise, each layer's guess, neighbours.

    python explore.py                                           the newest run in out/
    python explore.py out/shakespeare_char --prompt "ROMEO:"
    python explore.py gpt2                                      weights as in train.py's init_from
    python explore.py out/shakespeare_char --html romeo.html --prompt "ROMEO:"      one file, no server

The page is served on this machine alone and needs no network; Ctrl-C ends it. With --html it is a file to
send to anyone: it shows one prompt, and its sliders work.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from engine.command_line import Parser, read_early, run_script
from engine.errors import UserError

PROMPT = "To be, or not to be"


def read_options(arguments: Sequence[str]) -> Namespace:
    """The command line, checked. Raises UserError."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("source", nargs="?", help="a run, gpt2 … gpt2-xl, or a folder (default: the newest run in out/)")
    add("--checkpoint", default="best", help="best, last, or a name such as step-00000250 (default: best)")
    add("--prompt", default=PROMPT, help=f"the text to begin with (default: {PROMPT!r})")
    add("--html", type=Path, metavar="FILE", help="write the page to a file instead of serving it")
    add("--port", type=int, default=0, help="port of the page (default: any that is free)")
    add("--no-open", action="store_true", help="print the address without opening a browser")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps or xpu (default: auto)")
    options = parser.parse_args(arguments)
    try:
        options.prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError("--prompt is not UTF-8; check the encoding of the terminal or script") from error
    return options


# Above the slow imports, so that --help and mistakes are answered at once.
OPTIONS = read_early(read_options) if __name__ == "__main__" else None

from engine.explore import pages
from engine.web.server import serve


def main(arguments: Sequence[str]) -> None:
    """Explore as a command line says."""
    explore(read_options(arguments))


def explore(options: Namespace) -> None:
    """Load a model; serve the page, or write it."""
    explorer = pages.open_explorer(options.source, options.checkpoint, options.device)
    if options.html is not None:
        write_page(pages.page_with_answers(explorer, options.prompt), options.html)
    else:
        server = pages.explorer_server(explorer, options.port)
        # The prompt travels behind the #, where no server sees it.
        serve(server, explorer.name, f"#{quote(options.prompt)}", not options.no_open)


def write_page(page: str, path: Path) -> None:
    """Write the page's HTML to a file, and say how to see it. Raises UserError."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    print(f"wrote {path}; open it in a browser: {path.resolve().as_uri()}")


if __name__ == "__main__":
    run_script(explore, OPTIONS)
