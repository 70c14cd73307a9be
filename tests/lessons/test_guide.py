"""What holds of every lesson: it stands alone, runs as the guide says, and is in the guide."""

import pytest
from support.lessons import FOLDER, LESSONS


@pytest.mark.parametrize("path", LESSONS, ids=str)
def test_each_lesson_stands_alone_and_is_in_the_guide(path) -> None:
    source, guide = (FOLDER / path).read_text(), (FOLDER / "README.md").read_text()
    others = [other.stem for other in LESSONS if other != path]
    assert not any(f"import {other}" in source or f"import_module({other!r})" in source for other in others)
    assert f"python lessons/{path}" in source and f"python lessons/{path}" in guide
