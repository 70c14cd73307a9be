"""JSON that a stranger may have written: read, and checked by type before anything relies on it.

meta = read_json_object(path)
check_fields(meta, {"step": COUNT, "best_loss": float | None}, str(path))
config = dataclass_from(GPTConfig, meta["model"], str(path))
"""

import dataclasses
import json
import reprlib
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from engine.errors import UserError

AnyDataclass = TypeVar("AnyDataclass")

COUNT = Annotated[int, range(2**63)]  # an int in a range


def read_json_object(path: Path, advice: str = "") -> dict[str, Any]:
    """The object in a JSON file. Raises UserError that names the file; `advice` ends the sentence."""
    ending = f"; {advice}" if advice else ""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}{ending}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}{ending}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object{ending}")
    return content


def check_fields(
    content: object,
    kinds: Mapping[str, Any],
    where: str,
    *,
    optional: Collection[str] = (),
    advice: str = "",
) -> dict[str, Any]:
    """`content` itself, once it is an object whose fields are of these types; others are not looked at.

    Raises UserError that names the field; `where` begins the sentence, `advice` ends it.
    """
    ending = f"; {advice}" if advice else ""
    if not isinstance(content, dict):
        raise UserError(f"{where} is no object with {', '.join(kinds)}{ending}")
    for name, kind in kinds.items():
        if name not in content and name not in optional:
            raise UserError(f"{where}: {name} is missing{ending}")
        if name in content and not is_of_type(content[name], kind):
            raise UserError(
                f"{where}: {name} must be {in_words(kind)}, not {reprlib.repr(content[name])}{ending}"
            )
    return content


def dataclass_from(
    kind: type[AnyDataclass], content: object, where: str, *, required: Collection[str] = ()
) -> AnyDataclass:
    """A dataclass from an object with its fields; those that have a default may be missing, if not required.

    Raises UserError for what is missing, unknown, or of another type, and for a ValueError of the dataclass.
    """
    kinds = typing.get_type_hints(kind, include_extras=True)
    fields = dataclasses.fields(typing.cast(Any, kind))
    optional = {field.name for field in fields if field.default is not dataclasses.MISSING} - set(required)
    values = check_fields(
        content, {field.name: kinds[field.name] for field in fields}, where, optional=optional
    )
    for name in values:
        if name not in kinds:
            raise UserError(f"{where}: {name} is unknown; known are {', '.join(kinds)}")
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def is_of_type(value: object, kind: Any) -> bool:
    """Whether a value out of JSON is of a type: a plain one, a Literal, a union, list[…], dict[str, …].

    An integer serves as a float, and True serves as neither. Annotated[int, range(1, 9)] is 1 to 8,
    and Annotated[str, ("a", "b")] one of the two.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(is_of_type(value, argument) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin is Annotated:
        return is_of_type(value, arguments[0]) and value in arguments[1]
    if origin is list:
        return isinstance(value, list) and all(is_of_type(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(is_of_type(item, arguments[1]) for item in value.values())
    return type(value) is kind or (kind is float and type(value) is int)


def in_words(kind: Any) -> str:
    """A type as an error message names it: "int", "text or none", "'train' or 'val'", "int of at least 0"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(in_words(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if origin is Annotated:
        allowed = arguments[1]
        if isinstance(allowed, tuple):
            return " or ".join(map(repr, allowed))
        largest = "" if allowed.stop == 2**63 else f" and at most {allowed.stop - 1}"
        return f"{in_words(arguments[0])} of at least {allowed.start}{largest}"
    if origin is not None:
        return f"{in_words(origin)} of {in_words(arguments[-1])}"
    words = {types.NoneType: "none", str: "text", dict: "object"}
    return words.get(kind) or kind.__name__
