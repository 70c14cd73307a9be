"""Every result says which program, at which commit, computed it."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import engine
from engine import versions

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", *author, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout of one file and one commit."""
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "model.py").write_text("width = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "model.py")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


@needs_git
def test_the_commit_of_a_checkout_is_named_and_whether_files_differ_from_it(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert versions.commit_of(checkout) == commit
    git(checkout, "tag", "-a", "v1", "-m", "a tag does not take its place")
    assert versions.commit_of(checkout) == commit
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook of another repository
    assert versions.commit_of(checkout) == commit
    (checkout / "model.py").write_text("width = 2\n")
    assert versions.commit_of(checkout) == f"{commit}-dirty"


@needs_git
def test_a_folder_inside_somebody_elses_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout / "site-packages"
    installed.mkdir()
    assert versions.commit_of(installed) is None


@needs_git
def test_without_git_or_with_a_broken_checkout_there_is_no_commit_and_no_error(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / ".git" / "HEAD").write_text("nonsense")
    assert versions.commit_of(checkout) is None
    monkeypatch.setenv("PATH", str(checkout))
    assert versions.commit_of(checkout) is None


def test_versions_name_the_program_and_the_libraries() -> None:
    found = versions.versions()
    assert found["plaingpt"] == engine.__version__ and found["torch"] == torch.__version__
    assert found["commit"] is None or len(found["commit"].removesuffix("-dirty")) == 40
