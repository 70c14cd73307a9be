"""JSON from strangers: what is wrong with it is one sentence that names the field."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from engine.errors import UserError
from engine.json_files import COUNT, check_fields, dataclass_from, read_json_object
from engine.value_types import is_of_type

BYTE = Annotated[int, range(256)]


@pytest.mark.parametrize(
    ("kind", "fitting", "unfit"),
    [
        (int, [0, -5, 10**30], [True, 1.0, "1", None]),
        (float, [0.5, 3], [True, "0.5", None]),
        (bool, [True, False], [0, 1, "true"]),
        (str, ["", "a"], [b"a", 1, ["a"]]),
        (int | None, [None, 3], ["", False]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0]),
        (COUNT, [0, 2**63 - 1], [-1, 2**63, 0.0, True]),
        (BYTE, [0, 255], [256, None]),
        (dict, [{}, {"a": 1}], [[], None]),
        (dict[str, BYTE], [{}, {"a": 255}], [{"a": 256}, {"a": 1, "b": "2"}, []]),
        (list[str | None], [[], ["a", None]], [["a", 1], {}, "a"]),
        (list[dict], [[{}]], [[[]], [None]]),
    ],
)
def test_a_value_is_of_a_type_or_not(kind: Any, fitting: list, unfit: list) -> None:
    assert [value for value in fitting if not is_of_type(value, kind)] == []
    assert [value for value in unfit if is_of_type(value, kind)] == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or none"),
        (str, "text"),
        (Literal["train", "val"], "train or val"),
        (COUNT, "a whole number of at least 0"),
        (Annotated[int, range(1, 9)], "a whole number of at least 1 and at most 8"),
        (dict[str, str], "an object of text"),
        (list[dict], "a list of object"),
    ],
)
def test_the_error_says_what_a_field_must_be(kind: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        check_fields({"x": ["wrong" * 100]}, {"x": kind}, "a.json", advice="prepare it again")
    said = str(error.value)
    assert said.startswith(f"a.json: x must be {words}, not ['wrong") and said.endswith("; prepare it again")
    assert len(said) < 150


def test_fields_that_are_missing_are_named_unless_they_are_optional() -> None:
    kinds = {"a": int, "b": str}
    assert check_fields({"a": 1, "more": 2}, kinds, "x", optional=["b"]) == {"a": 1, "more": 2}
    with pytest.raises(UserError, match="x: b is missing"):
        check_fields({"a": 1}, kinds, "x", optional=["a"])
    with pytest.raises(UserError, match="x: b must be text"):
        check_fields({"a": 1, "b": 2}, kinds, "x", optional=["b"])
    with pytest.raises(UserError, match="x is no object with a, b"):
        check_fields([], kinds, "x")


@dataclass
class Size:
    width: int
    depth: int = 1
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.width < self.depth:
            raise ValueError("too deep")


def test_a_dataclass_comes_from_its_fields_and_nothing_else() -> None:
    assert dataclass_from(Size, {"width": 3, "share": 1}, "x") == Size(3, share=1)
    for content, required, said in (
        ({}, (), "x: width is missing"),
        ({"width": 3}, ("depth",), "x: depth is missing"),
        ({"width": "3"}, (), "x: width must be a whole number, not '3'"),
        ({"width": 3, "height": 1}, (), "x: height is unknown; known are width, depth, share"),
        ({"width": 3, "depth": 4}, (), "x: too deep"),
        (None, (), "x is no object with width, depth, share"),
    ):
        with pytest.raises(UserError) as error:
            dataclass_from(Size, content, "x", required=required)
        assert str(error.value) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "cannot be read: Expecting"),
        (b"\xff\xfe", "cannot be read: 'utf-8' codec"),
        (b"[" * 100_000, "cannot be read: maximum recursion"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read: Exceeds the limit"),
        (b"[]", "holds no JSON object"),
        (None, "there is no "),
    ],
)
def test_a_file_that_holds_no_object_is_named_with_the_advice(
    content: bytes | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "meta.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json_object(path, "prepare it again")
    assert str(path) in str(error.value) and said in str(error.value)
    assert str(error.value).endswith("; prepare it again")
