"""Look inside a GPT in the browser: next-token bars, attention, surprise, each layer's guess, neighbours.

    python explore.py                                           the newest run in out/
    python explore.py out/shakespeare_char --prompt "ROMEO:"
    python explore.py gpt2                                      weights as in train.py's init_from
    python explore.py out/shakespeare_char --html romeo.html --prompt "ROMEO:"      one file, no server

The page is served on this machine's loopback address only and needs no network. Ctrl-C ends it. With
--html it is written to a file that shows one prompt and can be sent to anyone; its sliders work,
typing another prompt does not.
"""

import webbrowser
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.command_line import Parser, run_script
from engine.errors import UserError
from engine.settings import AUTO

if TYPE_CHECKING:
    from engine.explore.explorer import Explorer

PROMPT = "To be, or not to be"


def main(arguments: Sequence[str]) -> None:
    """Load a model; serve the page, or write it."""
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("source", nargs="?", help="a run, gpt2 … gpt2-xl, or a folder (default: newest run)")
    parser.add_argument(
        "--checkpoint", default="best", help="best, last, or a folder name such as step-00000250"
    )
    parser.add_argument("--prompt", default=PROMPT, help=f"the text to begin with (default: {PROMPT!r})")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write the page to a file instead of serving it"
    )
    parser.add_argument("--port", type=int, default=0, help="port of the page (default: any that is free)")
    parser.add_argument("--no-open", action="store_true", help="print the address without opening a browser")
    parser.add_argument("--device", default=AUTO, help="auto, cpu, cuda, cuda:1, mps or xpu")
    options = parser.parse_args(arguments)

    explorer = open_explorer(options.source, options.checkpoint, options.device)
    if options.html is not None:
        write_page(explorer, options.prompt, options.html)
        print(f"wrote {options.html}: open it in a browser")
    else:
        serve(explorer, options.prompt, options.port, not options.no_open)


def open_explorer(source: str | None, checkpoint: str, device: str) -> "Explorer":
    """The explorer of a run's model, or of weights as train.py's init_from names them. Raises UserError."""
    import torch

    from engine.device import find_device
    from engine.explore.explorer import Explorer
    from engine.weights.checkpoint import find_runs
    from engine.weights.pretrained import read_pretrained

    found = source or next(iter(find_runs()), None)
    if found is None:
        raise UserError(
            "there is no run in out/ to look into; train one: python train.py configs/shakespeare_char.py"
        )
    weights = read_pretrained(str(found), checkpoint)
    model = weights.model(find_device(device), torch.float32).eval()
    return Explorer(str(found), model, weights.known_tokenizer())


def write_page(explorer: "Explorer", prompt: str, path: Path) -> None:
    """Write the page with all its answers about one prompt. Raises UserError."""
    from engine.web.server import build_page

    page, _ = build_page({"model": explorer.describe(), "answers": explorer.whole_answers(prompt)})
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def serve(explorer: "Explorer", prompt: str, port: int, open_browser: bool) -> None:
    """Answer until Ctrl-C. The prompt travels in the address, behind the #, where no server sees it."""
    from urllib.parse import quote

    from engine.web.server import make_server

    server = make_server(explorer, port)
    address = f"http://127.0.0.1:{server.server_address[1]}/#{quote(prompt)}"
    print(f"{explorer.name} is at {address} (Ctrl-C ends)", flush=True)
    if open_browser:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


if __name__ == "__main__":
    run_script(main)
