"""Errors that a user can cause and fix, and the one place that prints them."""

import os
import sys
import time
from collections.abc import Callable, Sequence

EXIT_USER_ERROR = 2


class UserError(ValueError):
    """Something that the user can put right; its text is one line that names the thing and the fix."""


def run_script(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a script's `main(arguments)` and exit: one line, status 2 for a UserError; a traceback for a bug.

    With `--debug` a UserError shows its traceback too. Under `torchrun` every process meets the same
    error; the first one prints it, the others give it the time to do so.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        status = main(arguments)
    except UserError as error:
        if debug:
            raise
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)
        else:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `python sample.py | head`
        sys.exit(0)
    sys.exit(status or 0)
