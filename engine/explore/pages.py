"""The explorer of a run, as a server or as one HTML file with all answers about one prompt."""

from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from engine.device import find_device
from engine.errors import UserError
from engine.explore.explorer import Explorer
from engine.runs import newest_run
from engine.web.page import Page, build_page
from engine.web.server import Refused, make_server
from engine.weights.pretrained import read_pretrained

FOLDER = Path(__file__).resolve().parent / "page"
SCRIPTS = ("sampling.js", "attention.js", "page.js", "events.js")


def open_explorer(source: str | None, checkpoint: str, device: str) -> Explorer:
    """The explorer of weights as init_from names them, or of the newest run. Raises UserError."""
    found = source or newest_run("to look into")
    weights = read_pretrained(str(found), checkpoint)
    model = weights.model(find_device(device), torch.float32).eval()
    return Explorer(short_name(str(found)), model, weights.known_tokenizer())


def short_name(source: str) -> str:
    """A model's name on the page: its folder's without the path, or the source's own."""
    path = Path(source)
    if path.is_file():  # nanoGPT's ckpt.pt
        path = path.parent
    return path.resolve().name if path.is_dir() else source


def explorer_server(explorer: Explorer, port: int) -> ThreadingHTTPServer:
    """A server of the page at `port` (0: any free one). Raises UserError."""
    return make_server({"/": explorer_page(explorer)}, explorer.answer, port)


def explorer_page(explorer: Explorer) -> Page:
    """The page that asks a server which has `explorer.answer`."""
    return build_page(FOLDER, SCRIPTS, {"model": explorer.describe()})


def page_with_answers(explorer: Explorer, prompt: str) -> str:
    """The page as HTML that needs no server and shows one prompt. Raises UserError."""
    data = {"model": explorer.describe(), "answers": all_answers(explorer, prompt)}
    return build_page(FOLDER, SCRIPTS, data).html


def all_answers(explorer: Explorer, prompt: str) -> dict[str, Any]:
    """Answers to all that the page can ask about a prompt. Raises UserError."""
    try:
        seen = explorer.answer("/inspect", {"text": prompt})
        ids = seen["ids"]
        layers = [
            explorer.answer("/layers", {"ids": ids, "position": position}) for position in range(len(ids))
        ]
        near = {index: explorer.answer("/neighbours", {"id": index}) for index in set(ids)}
    except Refused as error:
        raise UserError(f"--prompt: {error}") from error
    return {"prompt": prompt, "inspect": seen, "layers": layers, "neighbours": near}
