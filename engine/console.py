"""Printing that never ends or cuts short the work: any terminal, any encoding, a pipe that closes."""

import io
import os
import sys
from typing import TextIO


def escape_what_cannot_be_shown() -> None:
    """Let characters that a terminal or log has no place for be printed as \\u2192, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str = "") -> None:
    """Print a line at once; where nobody reads any more, go on in silence."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence(sys.stdout)


def silence(stream: TextIO) -> None:
    """Send everything that is still written to a stream to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
