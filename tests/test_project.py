"""What pyproject.toml, the requirements and the rules of CONTRIBUTING.md say of the files is true of them."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable

import pytest
from support.commands import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TOP = sorted(path.stem for path in ROOT.glob("*.py"))
PRODUCT = [path for part in ("*.py", "engine/**/*.py", "tasks/*.py") for path in ROOT.glob(part)]
OTHERS = [path for part in ("docs", "lessons", "tests") for path in (ROOT / part).rglob("*.py")]
OURS = {*TOP, "engine", "tasks", "support", "tests", *(path.stem for path in OTHERS)}
STANDARD = sys.stdlib_module_names | {"compression"}  # which Python has from 3.14 on


def packages_in(nodes: Iterable[ast.AST]) -> set[str]:
    """The packages that import statements name, but for the standard library's and our own."""
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names} - STANDARD - OURS


def required(name: str) -> set[str]:
    """The names in a requirements file, spelled as the package index compares them."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {normal(re.split(r"[^\w.-]", line)[0]) for line in lines if re.match(r"\w", line)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def undeclared(packages: set[str], declared: set[str]) -> list[str]:
    """Those packages that no declared distribution brings."""
    installed = importlib.metadata.packages_distributions()
    return [
        package
        for package in sorted(packages)
        if not declared & {normal(name) for name in installed.get(package, [package])}
    ]


def test_what_the_program_always_imports_is_required() -> None:
    packages = set().union(*(packages_in(ast.parse(path.read_bytes()).body) for path in PRODUCT))
    assert not undeclared(packages, required("requirements.txt"))


def test_every_package_that_is_imported_anywhere_is_declared() -> None:
    nodes = [node for path in PRODUCT + OTHERS for node in ast.walk(ast.parse(path.read_bytes()))]
    assert not undeclared(
        packages_in(nodes), required("requirements.txt") | required("requirements-tests.txt")
    )


def test_model_py_imports_torch_and_the_standard_library_only() -> None:
    tree = ast.parse((ROOT / "model.py").read_bytes())
    assert packages_in(ast.walk(tree)) == {"torch"}
    assert not {"engine", *TOP} & {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_every_script_is_installed_and_none_may_be_imported_by_the_engine() -> None:
    assert PROJECT["tool"]["setuptools"]["py-modules"] == TOP
    (contract,) = (
        rule for rule in PROJECT["tool"]["importlinter"]["contracts"] if rule["type"] == "forbidden"
    )
    assert contract["forbidden_modules"] == [name for name in TOP if name != "model"]


@pytest.mark.parametrize("room", sorted({path.parent.name for path in ROOT.glob("engine/*/*.py")}))
def test_every_room_says_in_one_sentence_what_it_is_for(room: str) -> None:
    words = ast.get_docstring(ast.parse((ROOT / "engine" / room / "__init__.py").read_bytes()))
    assert words is not None and words.count(".") - len(re.findall(r"\w\.\w", words)) == 1, words
