"""README, docs and notebook: every command, file, link and import that they name is there."""

import ast
import functools
import importlib
import re
import shlex
from pathlib import Path

import pytest
from support.commands import ROOT, command

PAGES = sorted(
    path for part in ("*.md", "docs/*.md", "data/*.md", "lessons/*.md") for path in ROOT.glob(part)
)
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
# The tables of this page name nanoGPT's own commands in their first column.
OF_NANOGPT = re.compile(r"^\| `(python|torchrun) [^|]*\|", re.MULTILINE)
CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`\n]+)`|^((?: {4}.*\n)+)", re.DOTALL | re.MULTILINE)


def code_of(page: Path) -> list[str]:
    """What a page sets as code: blocks, indented lines, and words in backticks."""
    text = page.read_text(encoding="utf-8")
    if page.name == "from-nanogpt.md":
        text = OF_NANOGPT.sub("|", text)
    return ["".join(found) for found in CODE.findall(text)]


def commands_in(code: str) -> list[list[str]]:
    """The command lines that run Python: their words from the script, or from `-m`, on."""
    found = []
    for line in re.split(r"\n|&&|\|", code.replace("\\\n", " ")):
        if not re.match(r"\s*(\$ |!)?(srun )?(python|torchrun) ", line):
            continue
        words = shlex.split(line, comments=True)
        starts = [number for number, word in enumerate(words) if word.endswith(".py") or word == "-m"]
        if starts:
            found.append(words[starts[0] :])
    return found


@functools.cache
def options_of(script: str) -> frozenset[str]:
    """The options that a script's `--help` lists (`--help` and `--debug` belong to each)."""
    if script == "sweep.py":  # takes train.py's settings, with several values each
        return options_of("train.py") | {"--devices"}
    finished = command(ROOT, script, "--help")
    assert finished.returncode == 0, f"{script} --help: {finished.stderr}"
    lines = (line.strip() for line in finished.stdout.splitlines() if re.match(r" +-", line))
    listed = [re.findall(r"--[\w-]+", re.split(r"\s{2,}", line)[0]) for line in lines]
    return frozenset(option for options in listed for option in options) | {"--help", "--debug"}


def added_by_diffs(page: Path) -> set[str]:
    """Files and settings that the page's own diffs add."""
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"^\+\+\+ b/(\S+)", text, re.MULTILINE)
    return {*files, *(f"--{name}" for name in re.findall(r"^\+ {4}(\w+): ", text, re.MULTILINE))}


def faults_of(words: list[str]) -> list[str]:
    """What is wrong with a command line that a page names."""
    script, *arguments = words
    if script == "-m":
        missing = importlib.util.find_spec(arguments[0]) is None
        return [f"there is no module {arguments[0]}"] if missing else []
    if not (ROOT / script).is_file():
        return [f"there is no {script}"]
    faults = [
        f"there is no {word}"
        for word in arguments
        if word.startswith("configs/") and not (ROOT / word).is_file()
    ]
    options = [word.split("=")[0] for word in arguments if re.match(r"--\w", word)]
    return faults + [f"{script} has no {option}" for option in options if option not in options_of(script)]


@by_page
def test_every_command_names_a_script_and_options_that_exist(page: Path) -> None:
    lines = [words for code in code_of(page) for words in commands_in(code)]
    faults = [fault for words in lines for fault in faults_of(words)]
    assert not [fault for fault in faults if fault.split()[-1] not in added_by_diffs(page)]


def test_made_up_scripts_options_and_files_are_found() -> None:
    code = (
        "torchrun --nproc_per_node=2 train.py configs/no.py --learning_rat=1\n"
        "python shrink.py  # --smaller\n"
        "python prepare.py web --input 'a b.txt' \\\n    --dedupe && python count.py gpt3 --tokens 3e9\n"
        "python -m engine.nothing"
    )
    assert [fault for words in commands_in(code) for fault in faults_of(words)] == [
        "there is no configs/no.py",
        "train.py has no --learning_rat",
        "there is no shrink.py",
        "prepare.py has no --dedupe",
        "there is no module engine.nothing",
    ]


@by_page
def test_every_file_and_link_is_there(page: Path) -> None:
    named = [
        ROOT / code
        for code in code_of(page)
        if re.fullmatch(r"(configs|docs|engine|lessons|tests)/[\w/.-]*", code)
        and "lessons/pictures" not in code
    ]
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    named += [page.parent / link for link in links if "://" not in link]
    assert not [str(path) for path in named if not path.exists()]


@by_page
def test_every_import_of_a_python_example_works(page: Path) -> None:
    for block in re.findall(
        r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert not [name.name for name in node.names if not hasattr(module, name.name)]


def test_the_readme_is_read_in_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def test_the_index_of_the_documentation_is_complete() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")]
    assert not [page.name for page in pages if page.name != "README.md" and f"({page.name})" not in index]
