"""A place for lessons to run in: a text under the name that they ask for, and a folder for their pictures."""

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.commands import TEXT
from support.datasets import write_dataset

from engine.download import PublicFile
from engine.errors import UserError

NOWHERE = "http://127.0.0.1:9/none"
UNREACHABLE = tuple(PublicFile(f"none-{i}.gz", NOWHERE, "0" * 64) for i in range(4))


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, the current one, with the data set; pictures go there too. Threads are restored."""
    folder = tmp_path_factory.mktemp("lessons")
    write_dataset("shakespeare_char", TEXT, "char", 0.1, folder / "data")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(importlib.import_module("common"), "PICTURES", folder)
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 5,000 digits, out of the package; skips where it cannot be had."""
    common = importlib.import_module("common")
    folder = tmp_path_factory.mktemp("digits")
    at_hand = common.DIGITS / "mnist_5k.csv.gz"
    if at_hand.is_file():
        shutil.copy(at_hand, folder)
        return folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "DIGITS", folder)
        patch.setattr(common, "MNIST", UNREACHABLE)
        try:
            common.digits()
        except UserError as error:
            pytest.skip(f"the 5,000 digits cannot be had: {error}")
    return folder


@pytest.fixture
def digits(digits_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lessons read the 5,000 digits, whichever are at hand: figures do not compare across."""
    monkeypatch.setattr(importlib.import_module("common"), "DIGITS", digits_folder)


@pytest.fixture(scope="session")
def names_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 29,910 names, out of the package; skips where it cannot be had."""
    common = importlib.import_module("common")
    folder = tmp_path_factory.mktemp("names")
    at_hand = common.NAMES / "names_of_2017.txt"
    if at_hand.is_file():
        shutil.copy(at_hand, folder)
        return folder
    pytest.importorskip("pyarrow", reason="the optional package pyarrow is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "NAMES", folder)
        patch.setattr(common, "NAMES_TXT", PublicFile("names.txt", NOWHERE, None))
        try:
            common.names()
        except UserError as error:
            pytest.skip(f"the 29,910 names cannot be had: {error}")
    return folder


@pytest.fixture
def named(names_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lessons read the 29,910 names, whichever are at hand: figures do not compare across."""
    monkeypatch.setattr(importlib.import_module("common"), "NAMES", names_folder)
