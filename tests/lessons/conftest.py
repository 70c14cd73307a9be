"""A place for lessons to run in: a text under the name that they ask for, and a folder for their pictures."""

import importlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
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
        patch.setattr(importlib.import_module("drawing"), "PICTURES", folder)
        yield folder
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Kept:
    """Where `common` keeps a data set, and what comes of it out of the package."""

    folder: str  # the constant that names the folder
    stand_in: str  # the file out of the package
    original: str  # the constant that names the original
    nowhere: object  # the same, out of reach
    read: str  # the function that reads the data


DIGITS = Kept("DIGITS", "mnist_5k.csv.gz", "MNIST", UNREACHABLE, "digits")
NAMES = Kept("NAMES", "names_of_2017.txt", "NAMES_TXT", PublicFile("names.txt", NOWHERE, None), "names")


def stand_in_folder(kept: Kept, folder: Path) -> Path:
    """The folder, with the stand-in out of the package in it; skips where that cannot be had."""
    common = importlib.import_module("common")
    at_hand = getattr(common, kept.folder) / kept.stand_in
    if at_hand.is_file():
        shutil.copy(at_hand, folder)
        return folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, kept.folder, folder)
        patch.setattr(common, kept.original, kept.nowhere)
        try:
            getattr(common, kept.read)()
        except UserError as error:
            pytest.skip(f"the stand-in for the {kept.read} cannot be had: {error}")
    return folder


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 5,000 digits, out of the package."""
    return stand_in_folder(DIGITS, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def names_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 29,910 names, out of the package, which pyarrow reads."""
    return stand_in_folder(NAMES, tmp_path_factory.mktemp("names"))


@pytest.fixture
def digits(digits_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lessons read the 5,000 digits, whichever are at hand: figures do not compare across."""
    monkeypatch.setattr(importlib.import_module("common"), DIGITS.folder, digits_folder)


@pytest.fixture
def named(names_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lessons read the 29,910 names, whichever are at hand: figures do not compare across."""
    monkeypatch.setattr(importlib.import_module("common"), NAMES.folder, names_folder)
