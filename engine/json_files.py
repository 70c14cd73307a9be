"""Read JSON that anyone may have written, and check its types before anything relies on it.

meta = read_json_object(path)
check_fields(meta, {"step": COUNT, "best_loss": float | None}, str(path))
config = dataclass_from(GPTConfig, meta["model"], str(path))
"""

import dataclasses
import json
import reprlib
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from engine.errors import UserError
from engine.value_types import UNBOUNDED, in_words, is_of_type

AnyDataclass = TypeVar("AnyDataclass")

COUNT = Annotated[int, range(UNBOUNDED)]


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


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Each line of a file that is not blank, as "PATH, line N" and its JSON value. Raises UserError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is no JSON: {error}") from error
            yield where, value


def check_fields(
    content: object, kinds: Mapping[str, Any], where: str, *, optional: Collection[str] = (), advice: str = ""
) -> dict[str, Any]:
    """Check that `content` is an object whose fields have these types, and return it. Other fields may exist.

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
    """A dataclass made from an object with its fields. Fields with a default may be missing, unless required.

    Raises UserError for a missing or unknown field, a wrong type, and a ValueError of the dataclass.
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
