"""All lessons as one HTML page that needs nothing else: the guide, and each picture, figures and code.

python lessons/book.py                 # runs every lesson, then writes lessons/book.html
python lessons/book.py --quick         # a few steps only, to see that it works
python lessons/book.py --output FILE
python lessons/book.py --quick --reuse FOLDER   # without those that the tests ran: CONTRIBUTING.md
"""

import base64
import html
import os
import re
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

LESSONS = Path(__file__).resolve().parent
sys.path.insert(0, str(LESSONS.parent))

from markdown_it import MarkdownIt  # noqa: E402
from pygments import highlight  # noqa: E402
from pygments.formatters import HtmlFormatter  # noqa: E402
from pygments.lexers import PythonLexer  # noqa: E402

from engine.command_line import run_script  # noqa: E402
from engine.data.dataset import DATA_FOLDER  # noqa: E402
from engine.errors import UserError  # noqa: E402
from engine.preparation.recipes import prepare_recipe  # noqa: E402
from engine.system import available_cores, write_whole  # noqa: E402

STYLE = """
:root { --paper: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d0d7de; --code: #f6f8fa; --blue: #0b57d0; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 17px/1.55 system-ui, sans-serif; }
h2 { margin-top: 3.5rem; border-bottom: 1px solid var(--line); }
h3 { margin-top: 3rem; }
a { color: var(--blue); }
img { display: block; width: 100%; background: #fff; border-radius: .4rem; margin: 1rem 0; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .95em; }
th, td { border: 1px solid var(--line); padding: .3rem .7rem; text-align: left; vertical-align: top; }
pre { background: var(--code); border-radius: .4rem; padding: .8rem 1rem; overflow-x: auto;
  font: .8rem/1.45 ui-monospace, monospace; }
code { font: .88em ui-monospace, monospace; }
summary { color: var(--soft); cursor: pointer; }
.highlight, .highlight pre { background: var(--code) !important; }
"""
DARK = """
:root { --paper: #0d1117; --ink: #e6edf3; --soft: #9aa5b1; --line: #343b44; --code: #161b22;
  --blue: #79b8ff; }
"""
PRINT = """
body { max-width: none; font-size: 10pt; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 7.5pt; }
h3 { break-before: page; }
h2, h3, summary { break-after: avoid; }
img, tr { break-inside: avoid; }
"""


@dataclass(frozen=True)
class Result:
    """What a lesson printed and drew, or, where it failed, why."""

    output: str
    picture: bytes
    failure: str = ""


def lessons() -> dict[str, Path]:
    """Every lesson by its number, as "1.3", in order."""
    paths = sorted(LESSONS.glob("[0-9]_*/[0-9]_*.py"))
    return {f"{path.parent.name[0]}.{path.name[0]}": path for path in paths}


def run(path: Path, quick: bool) -> Result:
    """Run a lesson in a process of its own, on one thread."""
    begin = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, str(path), *(["--quick"] if quick else [])],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    name = path.relative_to(LESSONS)
    if finished.returncode != 0:
        failure = (finished.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"{name}: failed: {failure}", flush=True)
        return Result(finished.stdout, b"", failure)
    print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
    picture = LESSONS / "pictures" / name.with_suffix(".png")
    return Result(finished.stdout, picture.read_bytes())


def kept(folder: Path, path: Path) -> Result | None:
    """What the tests kept of a lesson in a folder, if they did."""
    file = folder / path.relative_to(LESSONS).with_suffix(".png")
    if not file.is_file():
        return None
    return Result(file.with_suffix(".txt").read_text(encoding="utf-8"), file.read_bytes())


def anchored(page: str) -> str:
    """Headings with the ids that the guide's links name: small letters, hyphens, no punctuation."""

    def with_id(match: re.Match[str]) -> str:
        level, text = match.groups()
        anchor = re.sub(r"[^\w -]", "", text).lower().replace(" ", "-")
        return f'<h{level} id="{anchor}">{text}</h{level}>'

    return re.sub(r"<h([1-6])>(.*?)</h\1>", with_id, page)


def section(path: Path, result: Result) -> str:
    """What follows a lesson's text: its picture, what it printed, its code."""
    encoded = base64.b64encode(result.picture).decode("ascii")
    code = highlight(path.read_text(encoding="utf-8"), PythonLexer(), HtmlFormatter())
    printed = html.escape(result.output)
    return (
        f'<img alt="The picture of {path.stem}" src="data:image/png;base64,{encoded}">\n'
        f"<details open><summary>what it prints</summary><pre>{printed}</pre></details>\n"
        f"<details open><summary>{path.relative_to(LESSONS)}</summary>{code}</details>\n"
    )


def build(guide: str, results: dict[str, Result]) -> str:
    """The guide as a page, and after each lesson's text what `section` makes of its result."""
    markdown, parts = MarkdownIt("commonmark").enable("table"), []
    for text in re.split(r"^(?=##)", guide, flags=re.MULTILINE):
        parts.append(anchored(markdown.render(text)))
        number = re.match(r"### (\d\.\d) ", text)
        if number and number[1] in results:
            parts.append(section(lessons()[number[1]], results[number[1]]))
    light, dark = (HtmlFormatter(style=style).get_style_defs() for style in ("friendly", "github-dark"))
    in_the_dark = f"@media screen and (prefers-color-scheme: dark) {{ {DARK}\n{dark} }}"
    style = f"{STYLE}\n{light}\n{in_the_dark}\n@media print {{ {PRINT} }}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Lessons</title>\n'
        f"<style>{style}</style></head><body>\n{''.join(parts)}</body></html>\n"
    )


def main(arguments: list[str]) -> None:
    """Run all lessons, as many at once as there are cores, and write the page."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps of each lesson only")
    output = LESSONS / "book.html"
    parser.add_argument("--output", type=Path, default=output, help="default: lessons/book.html")
    parser.add_argument("--reuse", type=Path, help="do not run lessons whose results lie in this folder")
    options = parser.parse_args(arguments)
    if not (DATA_FOLDER / "shakespeare_char" / "meta.json").is_file():
        prepare_recipe("shakespeare_char", print)

    def result(path: Path) -> Result:
        return (options.reuse and kept(options.reuse, path)) or run(path, options.quick)

    with ThreadPoolExecutor(available_cores()) as pool:
        ran = list(pool.map(result, lessons().values()))
    results = dict(zip(lessons(), ran, strict=True))
    failed = [str(lessons()[number].relative_to(LESSONS)) for number, each in results.items() if each.failure]
    if failed:
        raise UserError(f"no page is written, since these lessons failed (see above): {', '.join(failed)}")
    page = build((LESSONS / "README.md").read_text(encoding="utf-8"), results)
    write_whole(options.output, page.encode("utf-8"))
    print(f"{os.path.relpath(options.output)}: {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main)
