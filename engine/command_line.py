"""Reading command lines and configuration files into checked settings, and running a script."""

import argparse
import contextlib
import dataclasses
import difflib
import os
import runpy
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import UserError
from engine.settings import NANOGPT_CONFIGS, RETIRED, TrainSettings


def retired(kind: type) -> dict[str, str]:
    """The names in RETIRED that are not settings of this script."""
    return {
        name: why
        for name, why in RETIRED.items()
        if name not in {field.name for field in dataclasses.fields(kind)}
    }


def read_settings(kind: type, arguments: Sequence[str], description: str | None) -> "Sources":
    """Read a command line, and the configuration file that it may name, into checked values.

    Raises UserError for what is not a setting of `kind` or not of its type. `--help` prints and exits.
    """
    usage = (
        "%(prog)s [CONFIG_FILE] [--NAME=VALUE ...]"
        if kind is TrainSettings
        else "%(prog)s [--NAME=VALUE ...]"
    )
    parser = Parser(
        usage=usage,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if kind is TrainSettings:
        parser.add_argument(
            "config_file", nargs="?", help="a Python file of settings, such as configs/shakespeare_char.py"
        )
    for field in dataclasses.fields(kind):
        spellings = dict.fromkeys((f"--{field.name}", f"--{field.name.replace('_', '-')}"))
        text = f"{field.metadata['meaning']} (default: {field.default})".replace("%", "%%")
        parser.add_argument(
            *spellings, dest=field.name, metavar=type_name(field.type), help=text, default=argparse.SUPPRESS
        )
    ignored = retired(kind)
    for name in ignored:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    known, unknown = parser.parse_known_args(list(arguments))
    for argument in unknown:
        if not argument.startswith("-"):
            raise UserError(
                f"{argument!r} on the command line belongs to no setting; settings are written --name=value"
            )
        name = argument.lstrip("-").split("=")[0].replace("-", "_")
        raise UserError(f"command line: --{name} is not a setting{_did_you_mean(name, kind)}")
    given = vars(known)
    path = given.pop("config_file", None)
    remarks = [f"{name} is ignored: {ignored[name]}" for name in given if name in ignored]
    command_line = {name: parse_text(kind, name, text) for name, text in given.items() if name not in ignored}
    from_file, for_cpu = ({}, {}) if path is None else read_config_file(kind, path, remarks)
    return Sources(kind, path, from_file, for_cpu, command_line, remarks)


@dataclass
class Sources:
    """Where settings come from, kept apart until it is known whether the device is a CPU."""

    kind: type
    path: str | None
    file: dict[str, Any]
    cpu: dict[str, Any]
    command_line: dict[str, Any]
    remarks: list[str]

    def peek(self, name: str) -> Any:
        """A setting that the `cpu` part may not change, such as the device."""
        default = {field.name: field.default for field in dataclasses.fields(self.kind)}[name]
        return self.command_line.get(name, self.file.get(name, default))

    def settings(self, on_cpu: bool, base: Mapping[str, Any] | None = None) -> Any:
        """The settings object, checked. `base` takes the place of the defaults, for a run that goes on."""
        merged = dict(base or {}) | self.file | (self.cpu if on_cpu else {}) | self.command_line
        settings = self.kind(**merged)
        settings.check()
        return settings


def read_config_file(kind: type, path: str, remarks: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a configuration file; its settings, and those of its `cpu` dictionary.

    Modules, functions, classes and names that begin with an underscore are the file's own affair.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no configuration file {path}{_similar_file(path)}")
    try:
        namespace = runpy.run_path(path)
    except Exception as error:  # whatever a file of the user's raises is the user's to see
        raise UserError(f"{path} does not run: {type(error).__name__}: {error}") from error
    cpu = namespace.pop("cpu", {})
    if not isinstance(cpu, dict):
        raise UserError(f"{path}: cpu must be a dictionary of settings, such as cpu = dict(n_layer=4)")
    ignored = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
    values = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and not isinstance(value, ignored)
    }
    without = retired(kind)
    remarks += [f"{path}: {name} is ignored: {without[name]}" for name in values if name in without]
    values = {name: value for name, value in values.items() if name not in without}
    for name in ("device", "init_from", "out_dir"):
        if name in cpu:
            raise UserError(
                f"{path}: {name} cannot stand in the cpu part, which is read after the device is known"
            )
    checked = [
        {name: check_value(kind, name, value, where) for name, value in part.items()}
        for part, where in ((values, path), (cpu, f"{path}, cpu part"))
    ]
    return checked[0], checked[1]


def check_value(kind: type, name: str, value: Any, where: str) -> Any:
    """A value of the setting's type and within its limits, else UserError. An integer serves as a float."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if name not in fields:
        raise UserError(f"{where}: {name} is not a setting{_did_you_mean(name, kind)}")
    field = fields[name]
    value = _fit(field.type, value)
    if value is _MISFIT:
        raise UserError(f"{where}: {name} must be {_in_words(field.type)}")
    comparisons = {
        "at_least": (lambda limit: value >= limit, "at least"),
        "above": (lambda limit: value > limit, "above"),
        "at_most": (lambda limit: value <= limit, "at most"),
        "below": (lambda limit: value < limit, "below"),
    }
    if value is not None:
        for limit_name, limit in field.metadata["limits"].items():
            holds, words = comparisons[limit_name]
            if not holds(limit):
                raise UserError(f"{where}: {name} is {value}; it must be {words} {limit}")
        if isinstance(value, float) and not abs(value) < float("inf"):
            raise UserError(f"{where}: {name} is {value}; it must be a finite number")
    return value


def parse_text(kind: type, name: str, text: str) -> Any:
    """The value that a command-line text stands for: `1e-3`, `true`, `none`, or the text itself."""
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    choices = _alternatives(field.type)
    candidates: list[Any] = []
    if type(None) in choices and text.lower() == "none":
        return None
    if bool in choices and text.lower() in ("true", "false"):
        candidates.append(text.lower() == "true")
    for number in (int, float):
        if number in choices:
            candidates += _as_number(number, text)
    candidates.append(text)
    for candidate in candidates:
        if _fit(field.type, candidate) is not _MISFIT:
            return check_value(kind, name, candidate, "command line")
    raise UserError(f"command line: --{name}={text}: {name} must be {_in_words(field.type)}")


def type_name(annotation: Any) -> str:
    """An annotation in words: "int", "float or none", "scratch, resume or auto"."""
    words = []
    for choice in _alternatives(annotation):
        words.append(
            {type(None): "none", bool: "True, False"}.get(choice) or getattr(choice, "__name__", str(choice))
        )
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _in_words(annotation: Any) -> str:
    """What a value must be, for an error message."""
    names = {"int": "a whole number", "float": "a number", "str": "text"}
    name = type_name(annotation)
    return " or ".join(names.get(word, word) for word in name.split(" or "))


_MISFIT = object()


def _alternatives(annotation: Any) -> list[Any]:
    """int | None | Literal["a"] as a flat list: types, and the literal strings themselves."""
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [choice for part in typing.get_args(annotation) for choice in _alternatives(part)]
    return [annotation]


def _fit(annotation: Any, value: Any) -> Any:
    """The value where it fits the annotation, else _MISFIT. True is no integer; 1 is a float."""
    for choice in _alternatives(annotation):
        if isinstance(choice, str):
            if isinstance(value, str) and value == choice:
                return value
        elif type(value) is choice:
            return value
        elif choice is float and type(value) is int:
            return float(value)
    return _MISFIT


def _as_number(number: type, text: str) -> list[Any]:
    try:
        return [number(text)]
    except ValueError:
        return []


def _did_you_mean(name: str, kind: type) -> str:
    close = difflib.get_close_matches(
        name, [field.name for field in dataclasses.fields(kind)], n=1, cutoff=0.6
    )
    return f"; did you mean {close[0]}?" if close else "; --help lists them all"


def _similar_file(path: str) -> str:
    if Path(path).parent.name == "config" and Path(path).stem in NANOGPT_CONFIGS:
        return f"; here nanoGPT's file is: python train.py {NANOGPT_CONFIGS[Path(path).stem]}"
    folder = Path(path).parent
    names = [str(file) for file in sorted(folder.glob("*.py"))] if folder.is_dir() else []
    close = difflib.get_close_matches(path, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints as UserErrors of one line."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"command line: {message}")


EXIT_USER_ERROR = 2


def script_settings(kind: type, description: str | None) -> "Sources":
    """Read a script's command line at once, above its slow imports: --help and mistakes end it here."""
    with _errors_end_the_script():
        return read_settings(kind, _arguments(), description)


def run_script(main: Callable[[Any], int | None], given: Any = None) -> None:
    """Run a script's `main`, with its command line or what is `given` in place of it, and exit.

    One line and status 2 for a UserError, with `--debug` its traceback too; a traceback for a bug.
    """
    with _errors_end_the_script():
        status = main(_arguments() if given is None else given)
    sys.exit(status or 0)


def _arguments() -> list[str]:
    return [argument for argument in sys.argv[1:] if argument != "--debug"]


@contextlib.contextmanager
def _errors_end_the_script() -> Iterator[None]:
    """Under `torchrun` every process meets the same error as a rule, and the first one prints it.

    The others give it the time to do so, whereupon torchrun ends them; one that met it alone prints then.
    """
    try:
        yield
    except UserError as error:
        if "--debug" in sys.argv[1:]:
            raise
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            time.sleep(5)
        where = "" if rank == "0" else f" (rank {rank})"
        print(f"error{where}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `python sample.py | head`
        sys.exit(0)
