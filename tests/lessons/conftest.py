"""A place for lessons to run in: a text under the name that they ask for, and a folder for their pictures."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.commands import TEXT

from engine.preparation.recipes import write_dataset


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, the current one, with the data set; pictures go there too. Threads are restored."""
    folder = tmp_path_factory.mktemp("lessons")
    write_dataset("shakespeare_char", TEXT, "char", 0.1, [], print, folder / "data")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        common = importlib.import_module("common")
        patch.setattr(common, "PICTURES", folder)
        patch.setattr(common, "ROOT", folder)
        yield folder
    torch.set_num_threads(threads)
