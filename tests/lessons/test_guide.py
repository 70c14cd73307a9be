"""What holds of every lesson: it stands alone, runs as the guide says, and is in the guide."""

import runpy
import sys

import pytest
import torch
from support.lessons import FOLDER, LESSONS


@pytest.mark.parametrize("path", LESSONS, ids=str)
def test_each_lesson_stands_alone_and_is_in_the_guide(path) -> None:
    source, guide = (FOLDER / path).read_text(), (FOLDER / "README.md").read_text()
    others = [other.stem for other in LESSONS if other != path]
    assert not any(f"import {other}" in source or f"import_module({other!r})" in source for other in others)
    assert f"python lessons/{path}" in source and f"python lessons/{path}" in guide


@pytest.mark.parametrize("path", LESSONS, ids=str)
def test_each_lesson_is_a_command_that_shows_the_answers_to_three_exercises(
    path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--check"])
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / path), run_name="__main__")
    torch.set_num_threads(threads)
    assert end.value.code == 0
    assert [line.partition(".")[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2", "3"]
