"""Check values against types, and describe types in words, for settings and for JSON.

Types are plain ones, None, unions, Literal, list[…], dict[str, …], and two that list the allowed values:
Annotated[int, range(1, 9)] for 1 to 8, and Annotated[str, ("a", "b")] for one of the two.
"""

import types
import typing
from typing import Annotated, Any, Literal

WORDS = {
    types.NoneType: "none",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}
UNBOUNDED = 2**63  # the end of a range without a limit


def alternatives(kind: Any) -> list[Any]:
    """int | None | Literal["a"] as a flat list: types, and the literal values themselves."""
    if typing.get_origin(kind) is Literal:
        return list(typing.get_args(kind))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return [choice for part in typing.get_args(kind) for choice in alternatives(part)]
    return [kind]


def is_of_type(value: object, kind: Any) -> bool:
    """Whether a value is of a type. An integer counts as a float; True is neither."""
    return any(_is_one(value, choice) for choice in alternatives(kind))


def _is_one(value: object, choice: Any) -> bool:
    origin, arguments = typing.get_origin(choice), typing.get_args(choice)
    if origin is Annotated:
        return is_of_type(value, arguments[0]) and value in arguments[1]
    if origin is list:
        return isinstance(value, list) and all(is_of_type(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(is_of_type(item, arguments[1]) for item in value.values())
    if not isinstance(choice, type):
        return type(value) is type(choice) and value == choice
    return type(value) is choice or (choice is float and type(value) is int)


def in_words(kind: Any) -> str:
    """A type in words: "a number", "text or none", "train or val", "a whole number of at least 0"."""
    words = [_one_in_words(choice) for choice in alternatives(kind)]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _one_in_words(choice: Any) -> str:
    origin, arguments = typing.get_origin(choice), typing.get_args(choice)
    if origin is Annotated and isinstance(arguments[1], range):
        allowed = arguments[1]
        largest = "" if allowed.stop == UNBOUNDED else f" and at most {allowed.stop - 1}"
        return f"{in_words(arguments[0])} of at least {allowed.start}{largest}"
    if origin is Annotated:
        return in_words(Literal[arguments[1]])
    if origin is not None:
        return f"{WORDS[origin]} of {in_words(arguments[-1]).removeprefix('a ').removeprefix('an ')}"
    return WORDS[choice] if isinstance(choice, type) else str(choice)
