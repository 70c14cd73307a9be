"""Versions that a result depends on: the program, its commit, and the libraries that decide on rounding."""

import functools
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

import engine

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def versions() -> dict[str, str | None]:
    """The versions that every checkpoint records."""
    return {
        "plaingpt": engine.__version__,
        "commit": commit_of(ROOT),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def commit_of(folder: Path) -> str | None:
    """The current commit of a git checkout, with "-dirty" if files differ from it; None if unknown."""
    if not (folder / ".git").exists():  # a folder inside somebody else's checkout has no commit of its own
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    # In a git hook these variables name another checkout.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        found = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, no answer, or a checkout that git refuses to read
        return None
    return found.stdout.strip() or None
