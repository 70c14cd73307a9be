"""Read command lines and configuration files into checked settings, and run scripts.

A script reads its command line above its slow imports, so that `--help` and mistakes are answered at once:

    OPTIONS = read_early(read_options) if __name__ == "__main__" else None
    import torch
    ...
    if __name__ == "__main__":
        run_script(main, OPTIONS)
"""

import argparse
import contextlib
import dataclasses
import importlib
import operator
import os
import re
import runpy
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from engine.console import escape_what_cannot_be_shown, silence
from engine.errors import UserError, did_you_mean, similar_file
from engine.settings import (
    ALIASES,
    NANOGPT_CONFIGS,
    NANOGPT_IMPORTS,
    NANOGPT_MARKS,
    RETIRED,
    SECTIONS,
    TrainSettings,
)
from engine.value_types import alternatives, in_words, is_of_type

EXIT_USER_ERROR = 2
DEBUG = "--debug"
ROOT = Path(__file__).resolve().parents[1]
COMPARISONS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}
Options = TypeVar("Options")


def read_early(read: Callable[[Sequence[str]], Options]) -> Options:
    """Apply `read` to the command line of this process; a UserError ends the script."""
    with errors_end_the_script():
        return read(_arguments())


def run_script(main: Callable[[Any], int | None], options: Any = None) -> typing.NoReturn:
    """Run a script's `main` with its options, or its command line; exit with the status that it returns."""
    with errors_end_the_script():
        sys.exit(main(_arguments() if options is None else options) or 0)


def _arguments() -> list[str]:
    return [argument for argument in sys.argv[1:] if argument != DEBUG]


@contextlib.contextmanager
def errors_end_the_script() -> Iterator[None]:
    """For a UserError, print one line and exit with status 2; other errors keep their traceback.

    With `--debug` a UserError keeps its traceback, too. Under `torchrun` usually all processes raise the same
    error: rank 0 prints it at once and torchrun ends the others, which would print five seconds later.
    """
    escape_what_cannot_be_shown()
    try:
        yield
    except UserError as error:
        if DEBUG in sys.argv:
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
        silence(sys.stdout)  # `python sample.py | head`
        sys.exit(0)


class Parser(argparse.ArgumentParser):
    """argparse with its errors as UserErrors of one line; also takes `--max-iters` for `--max_iters`."""

    def __init__(self, **given: Any) -> None:
        super().__init__(
            **{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False} | given
        )

    def error(self, message: str) -> typing.NoReturn:
        if "arguments are required" in message:
            examples = re.findall(r"^    (python .*?)(?:  |$)", self.description or "", re.M)
            message += f"; for example: {examples[0]}" if examples else ""
        raise UserError(f"command line: {message}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            meant = did_you_mean(str(value), choices, otherwise=f"; it can be {', '.join(choices)}")
            name = "/".join(action.option_strings) or action.dest
            raise UserError(f"command line: {name}: invalid choice: {value!r}{meant}")

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        """The options in a command line. Raises UserError for an unknown one, with the closest name."""
        known, unknown = self.parse_known_args([self._as_declared(argument) for argument in arguments])
        for argument in unknown:
            if not argument.startswith("-"):
                raise UserError(
                    f"{argument!r} on the command line belongs to no option; options are written --name=value"
                )
            name = argument.lstrip("-").split("=")[0]
            names = [option.lstrip("-") for option in self._option_string_actions]
            meant = did_you_mean(name, names, ALIASES, otherwise="; --help lists them all")
            raise UserError(f"command line: --{name} is not an option{meant}")
        return known

    def _as_declared(self, argument: str) -> str:
        """`--max-iters=5` as `--max_iters=5` if that is an option; other arguments unchanged."""
        name, equals, value = argument.partition("=")
        with_underscores = "--" + name[2:].replace("-", "_")
        known = name.startswith("--") and with_underscores in self._option_string_actions
        return with_underscores + equals + value if known else argument


def at_least_one(text: str) -> int:
    """A whole number of 1 or more, as the `type` of an option."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it is {number}; it must be at least 1")
    return number


def read_settings(kind: type, arguments: Sequence[str], description: str | None) -> "Sources":
    """Read a command line, and the configuration file that it may name, into checked values.

    Raises UserError for an unknown setting or a value of the wrong type. `--help` prints and exits.
    """
    takes_file = issubclass(kind, TrainSettings)
    usage = f"%(prog)s {'[CONFIG_FILE] ' if takes_file else ''}[--NAME=VALUE ...]"
    parser = Parser(usage=usage, description=description)
    if takes_file:
        parser.add_argument(
            "config_file", nargs="?", help="a Python file of settings, such as configs/shakespeare_char.py"
        )
        parser.add_argument(
            "--verbose", action="store_true", help="say at the start what else config.json records"
        )
    section: Any = parser
    for field in dataclasses.fields(kind):
        if field.name in SECTIONS:
            section = parser.add_argument_group(SECTIONS[field.name])
        if field.name in unused(kind):
            continue
        text = f"{field.metadata['meaning']} (default: {field.default})".replace("%", "%%")
        words = in_words(field.type).removeprefix("a ")
        section.add_argument(f"--{field.name}", metavar=words, help=text, default=argparse.SUPPRESS)
    ignored = retired(kind)
    for name in ignored:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    path, verbose = given.pop("config_file", None), given.pop("verbose", False)
    remarks = [f"{name} is ignored: {ignored[name]}" for name in given if name in ignored]
    command_line = {name: parse_text(kind, name, text) for name, text in given.items() if name not in ignored}
    sources = Sources(kind, path, {}, {}, command_line, remarks, verbose)
    if path is not None:
        read_config_file(sources, path)
    return sources


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings as a command line takes them, e.g. ["--n_layer=4", "--bias=False"]."""
    return [f"--{name}={value}" for name, value in settings.items()]


def unused(kind: type) -> tuple[str, ...]:
    """Settings that a script inherits from another and does not use."""
    return getattr(kind, "UNUSED", ())


def retired(kind: type) -> dict[str, str]:
    """The part of RETIRED that this script has no settings for."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: why for name, why in RETIRED.items() if name not in names}


@dataclass
class Sources:
    """Settings by their source, kept apart until it is known whether the device is a CPU."""

    kind: type
    path: str | None
    file: dict[str, Any]
    cpu: dict[str, Any]
    command_line: dict[str, Any]
    remarks: list[str]
    verbose: bool = False
    nanogpt_mark: str | None = None  # the setting by which the file is recognised as nanoGPT's

    def given(self, on_cpu: bool) -> dict[str, Any]:
        """The settings that the user gives."""
        return self.file | (self.cpu if on_cpu else {}) | self.command_line

    def get(self, name: str) -> Any:
        """A setting that the `cpu` part may not change, such as the device."""
        default = {field.name: field.default for field in dataclasses.fields(self.kind)}[name]
        return self.command_line.get(name, self.file.get(name, default))

    def settings(self, on_cpu: bool, base: Mapping[str, Any] | None = None) -> Any:
        """The settings object, checked. `base` replaces the defaults when a run is resumed."""
        settings = self.kind(**dict(base or {}) | self.given(on_cpu))
        settings.check()
        return settings


def read_config_file(sources: Sources, path: str) -> None:
    """Run a configuration file, and take its settings and those of its `cpu` dictionary.

    Modules, functions, classes and names that begin with an underscore are ignored.
    """
    kind, remarks = sources.kind, sources.remarks
    namespace = _run_config_file(kind, path, remarks)
    cpu = namespace.pop("cpu", {})
    if not isinstance(cpu, dict):
        raise UserError(f"{path}: cpu must be a dictionary of settings, such as cpu = dict(n_layer=4)")
    ignored = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
    values = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and not isinstance(value, ignored)
    }
    sources.nanogpt_mark = next((name for name in NANOGPT_MARKS if name in values), None)
    without = retired(kind)
    remarks += [f"{path}: {name} is ignored: {without[name]}" for name in values if name in without]
    values = {name: value for name, value in values.items() if name not in without}
    for name in unused(kind):
        if name in values or name in cpu:
            raise UserError(f"{path}: {name} is a setting of train.py that this script has no use for")
    for name, value in values.items():
        is_fraction = isinstance(value, float) and isfinite(value) and not value.is_integer()
        if name.endswith("_iters") and is_fraction:
            values[name] = round(value)  # such as warmup_iters = 0.03 * max_iters
            remarks.append(f"{path}: {name} = {value:g} is rounded to {values[name]}")
    for name in ("device", "init_from", "out_dir"):
        if name in cpu:
            raise UserError(
                f"{path}: {name} cannot stand in the cpu part, which is read after the device is known"
            )
    sources.file, sources.cpu = (
        {name: check_value(kind, name, value, where) for name, value in part.items()}
        for part, where in ((values, path), (cpu, f"{path}, cpu part"))
    )


def _run_config_file(kind: type, path: str, remarks: list[str]) -> dict[str, Any]:
    """The names that a configuration file defines. Raises UserError if it does not run.

    nanoGPT runs its files inside train.py, so some use its imports and defaults without defining them. A
    missing name that nanoGPT provides is given to the file, with a remark.
    """
    found = _find_config_file(path)
    available = {field.name: field.default for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {}
    while True:
        try:
            namespace = runpy.run_path(found, init_globals=given)
        except NameError as error:
            if error.name in NANOGPT_IMPORTS:
                available[error.name] = importlib.import_module(NANOGPT_IMPORTS[error.name])
            if error.name in given or error.name not in available:
                raise UserError(f"{path} does not run: NameError: {error}") from error
            given[error.name] = available[error.name]
            remarks.append(f"{path} uses {error.name} without defining it, as nanoGPT's files may")
        except Exception as error:  # the user's file may raise anything
            raise UserError(f"{path} does not run: {type(error).__name__}: {error}") from error
        else:
            own = namespace.keys() - {name for name in given if namespace.get(name) is given[name]}
            return {name: namespace[name] for name in namespace if name in own}


def _find_config_file(path: str) -> str:
    """The file itself, or the one of this name beside train.py. Raises UserError, naming a similar one."""
    for file in (Path(path), ROOT / path):
        if file.is_file():
            return str(file)
    if Path(path).parent.name == "config" and Path(path).stem in NANOGPT_CONFIGS:
        instead = f"; here nanoGPT's file is: python train.py {NANOGPT_CONFIGS[Path(path).stem]}"
    else:
        instead = similar_file(path)
    raise UserError(f"there is no configuration file {path}{instead}")


def check_value(kind: type, name: str, value: Any, where: str) -> Any:
    """Check a value's type and limits, and return it; an integer becomes a float. Raises UserError."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if name not in fields:
        meant = did_you_mean(name, fields, ALIASES, otherwise="; --help lists them all")
        raise UserError(f"{where}: {name} is not a setting{meant} (a name of the file's own begins with _)")
    field = fields[name]
    value = _converted(field.type, value)
    if not is_of_type(value, field.type):
        raise UserError(f"{where}: {name} must be {in_words(field.type)}")
    if value is not None:
        for limit_name, limit in field.metadata["limits"].items():
            if not COMPARISONS[limit_name](value, limit):
                words = limit_name.replace("_", " ")
                raise UserError(f"{where}: {name} is {value}; it must be {words} {limit}")
        if isinstance(value, float) and not isfinite(value):
            raise UserError(f"{where}: {name} is {value}; it must be a finite number")
    return value


def parse_text(kind: type, name: str, text: str) -> Any:
    """The value of a command-line text: a number (`1e-3`), `true`, `none`, or the text itself."""
    (wanted,) = (field.type for field in dataclasses.fields(kind) if field.name == name)
    choices = alternatives(wanted)
    candidates: list[Any] = []
    if type(None) in choices and text.lower() == "none":
        return None
    if bool in choices and text.lower() in ("true", "false"):
        candidates.append(text.lower() == "true")
    if int in choices or float in choices:
        for number in (int, float):
            with contextlib.suppress(ValueError):
                candidates.append(number(text))
    candidates.append(text)
    for candidate in candidates:
        if is_of_type(_converted(wanted, candidate), wanted):
            return check_value(kind, name, candidate, "command line")
    raise UserError(f"command line: --{name}={text}: {name} must be {in_words(wanted)}")


def _converted(kind: Any, value: Any) -> Any:
    """A number converted to the type of a setting: 1 to a float, 1e3 to an integer. Others unchanged."""
    choices = alternatives(kind)
    if type(value) is int and int not in choices and float in choices:
        return float(value)
    if type(value) is float and value.is_integer() and float not in choices and int in choices:
        return int(value)
    return value
