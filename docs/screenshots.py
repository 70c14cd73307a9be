"""Take the README's pictures of the explorer's page, with headless Chromium.

python docs/screenshots.py out/shakespeare_char       writes docs/explorer.png, docs/explorer-dark.png
"""

import sys
import tempfile
import threading
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run from anywhere

from engine.command_line import Parser, run_script  # noqa: E402
from engine.errors import UserError  # noqa: E402
from engine.explore.pages import explorer_server, open_explorer  # noqa: E402
from tests.support.browser import Browser, find_chromium  # noqa: E402

PROMPT = "ROMEO:\nShall I hear more, or shall I speak at"
WIDTH, HEIGHT = 1120, 1010


def main(arguments: Sequence[str]) -> None:
    """Serve a run's model, show it a prompt, point at a token, take the pictures."""
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("run", nargs="?", help="a run's folder (default: the newest run in out/)")
    run = parser.parse_args(arguments).run
    if find_chromium() is None:
        raise UserError(
            "there is no Chromium here; install it (Debian: apt-get install chromium) or name it in CHROMIUM"
        )
    server = explorer_server(open_explorer(run, "best", "cpu"), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/#{quote(PROMPT)}"
    profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with profile as folder, Browser(Path(folder), WIDTH, HEIGHT) as browser:
        browser.open(address)
        browser.wait("document.querySelectorAll('#near li').length > 0")
        browser.click("#heads button[data-layer='1'][data-head='3']")
        browser.click(".token[data-position='40']")
        browser.value("scrollTo(0, 0)")
        for name, dark in (("explorer", False), ("explorer-dark", True)):
            browser.dark(dark)
            browser.value("new Promise(done => setTimeout(done, 300))")  # colours fade in
            browser.picture(ROOT / "docs" / f"{name}.png")
            print(f"took docs/{name}.png")
    server.shutdown()


if __name__ == "__main__":
    run_script(main)
