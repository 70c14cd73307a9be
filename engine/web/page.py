"""Build a page as one HTML text from its parts and data, with a policy that allows nothing else.

    page = build_page(Path("engine/explore/page"), ("sampling.js", "page.js"), {"model": ...})

The folder holds `page.html`, `page.css` and the scripts; before them come style and script of `shared/`.
In `page.html` @@POLICY@@, @@STYLE@@, @@SCRIPT@@ and @@DATA@@ stand where the parts go, each once; @@DATA@@
within a `<script type="application/json">`.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parent / "shared"


@dataclass(frozen=True)
class Page:
    """A self-contained page, and the Content-Security-Policy to send with it."""

    html: str
    policy: str


def build_page(folder: Path, scripts: Sequence[str], data: dict[str, Any]) -> Page:
    """The page in `folder`, with `data` as JSON in it. `scripts` are its files of JavaScript, in their order.

    Text in `data` cannot end its element and become markup. The policy names our style and our script by
    their hashes: no other may run, and the page can reach no address but the server that it came from.
    """
    style = _joined(SHARED / "style.css", folder / "page.css")
    parts = _joined(SHARED / "shared.js", *(folder / name for name in scripts))
    script = f'(() => {{\n"use strict";\n{parts}\n}})();\n'
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    html = (folder / "page.html").read_text(encoding="utf-8")
    content = json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    for mark, part in (("POLICY", policy), ("STYLE", style), ("SCRIPT", script), ("DATA", content)):
        before, after = html.split(f"@@{mark}@@")
        html = before + part + after
    return Page(html, policy)


def _joined(*paths: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def _hash(text: str) -> str:
    """A part's hash as a Content-Security-Policy writes it (CSP level 2)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
