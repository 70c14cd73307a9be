"""Printing that never stops the program: any terminal, any encoding, a pipe that closes."""

import io
import os
import sys
from typing import TextIO


def escape_what_cannot_be_shown() -> None:
    """Print characters that the terminal's encoding lacks as \\u2192, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str = "") -> None:
    """Print a line at once; if the reader has gone, discard this and all further output."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence(sys.stdout)


def silence(stream: TextIO) -> None:
    """Discard everything that is written to a stream from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
