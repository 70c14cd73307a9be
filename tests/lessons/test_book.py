"""The lessons as one page: whole, self-contained, and never written with a lesson missing."""

import re
from pathlib import Path
from types import ModuleType

import pytest
from support.lessons import LESSONS, learn, lesson

from engine.errors import UserError


@pytest.fixture
def book() -> ModuleType:
    """The script, as a module."""
    return lesson("book")


@pytest.fixture
def page(book: ModuleType) -> str:
    """The page of the real guide, with a small picture and one printed line for each lesson."""
    guide = (book.LESSONS / "README.md").read_text(encoding="utf-8")
    results = {number: book.Result(f"printed by <{number}>", b"a picture") for number in book.lessons()}
    return book.build(guide, results)


def test_the_page_holds_every_lessons_picture_figures_and_code(book: ModuleType, page: str) -> None:
    assert len(book.lessons()) == len(LESSONS)
    assert page.count('src="data:image/png;base64,') == len(LESSONS)
    for number, path in book.lessons().items():
        assert f"printed by &lt;{number}&gt;" in page
        assert f"<summary>{path.relative_to(book.LESSONS)}</summary>" in page


def test_the_page_needs_nothing_else_and_is_light_dark_and_for_print(page: str) -> None:
    assert not re.search(r'(src|href)="(?!data:|#|https?://)', page)
    assert not re.search(r'src="http|<link|<script|@import|url\(', page)
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_every_link_within_the_page_leads_somewhere(page: str) -> None:
    targets = set(re.findall(r'href="#([^"]+)"', page))
    assert targets and targets <= set(re.findall(r'id="([^"]+)"', page))


def test_a_lesson_that_fails_is_named_and_no_page_is_written(
    book: ModuleType, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "1_networks" / "1_broken.py"
    broken.parent.mkdir()
    broken.write_text("raise SystemExit('no luck')")
    monkeypatch.setattr(book, "LESSONS", tmp_path)
    with pytest.raises(UserError, match=r"1_networks/1_broken\.py"):
        book.main(["--quick", "--output", str(tmp_path / "book.html")])
    assert not (tmp_path / "book.html").exists()


def test_what_the_tests_ran_is_not_run_again(
    book: ModuleType, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LESSONS_RAN", str(tmp_path / "ran"))
    learn("1_networks/2_downhill", place)
    broken = tmp_path / "1_networks" / "2_downhill.py"
    broken.parent.mkdir()
    broken.write_text("raise SystemExit('run again')")
    (tmp_path / "README.md").write_text("### 1.2 Downhill\n")
    monkeypatch.setattr(book, "LESSONS", tmp_path)
    book.main(["--quick", "--reuse", str(tmp_path / "ran"), "--output", str(tmp_path / "book.html")])
    page = (tmp_path / "book.html").read_text(encoding="utf-8")
    assert "picture: " in page and "data:image/png;base64," in page
