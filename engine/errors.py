"""Errors that a user can cause and fix."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path


class UserError(ValueError):
    """An error that the user can fix; its text is one line that names the thing and the fix.

    Line breaks and terminal codes in quoted text are shown escaped.
    """

    def __init__(self, text: str) -> None:
        super().__init__("".join(one if one.isprintable() else repr(one)[1:-1] for one in text))


def did_you_mean(
    name: str, names: Iterable[str], aliases: Mapping[str, str] | None = None, otherwise: str = ""
) -> str:
    """The end of a sentence about an unknown name: "; did you mean max_iters?", or `otherwise`.

    `aliases` maps other words for a name to it. Of a path the last part is compared.
    """
    meant = {known.rstrip("/").rpartition("/")[2]: known for known in names}
    alias, asked = (aliases or {}).get(name), name.rstrip("/").rpartition("/")[2]
    close = [alias] if alias in meant else difflib.get_close_matches(asked, meant, n=1, cutoff=0.6)
    return f"; did you mean {meant[close[0]]}?" if close else otherwise


def similar_file(path: str | Path) -> str:
    """`did_you_mean` for a missing file, among the files in its folder."""
    return did_you_mean(str(path), (str(file) for file in sorted(Path(path).parent.glob("*"))))
