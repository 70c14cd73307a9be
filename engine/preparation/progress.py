"""How far a preparation is: a bar on a terminal, elsewhere a line now and then."""

import itertools
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from engine.preparation.inputs import Input, Part, Place

INTERVAL = 20.0  # seconds between two lines


class PreparationProgress:
    """Shows the share of the input's bytes that is done; only the rate where the size is unknown."""

    def __init__(self, inputs: list[Input], say: Callable[[str], None], place: Place) -> None:
        self.say = say
        # Bytes before each input, and in all.
        self._ends = [0, *itertools.accumulate(item.size for item in inputs)]
        self._first = self._done = self._ends[place.index]
        self._text_bytes = 0
        self._started = self._said = time.monotonic()
        self._bar = None
        if sys.stdout.isatty():
            total = self._ends[-1] or None
            self._bar = tqdm(
                initial=self._done, total=total, unit="B", unit_scale=True, leave=False, dynamic_ncols=True
            )

    def update(self, last: Part, text_bytes: int, tokens: int) -> None:
        """So many bytes of text more are done, up to and with the part `last`; and so many tokens in all."""
        before, after = self._ends[last.start.index : last.start.index + 2]
        self._done = before + int(last.share * (after - before))
        self._text_bytes += text_bytes
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(f"{tokens:,} tokens", refresh=False)
            self._bar.update(self._done - self._bar.n)
        elif now - self._said >= INTERVAL:
            self._said = now
            self.say(self._line(tokens, now - self._started))

    def _line(self, tokens: int, seconds: float) -> str:
        rate = f"{tokens:,} tokens, {self._text_bytes / seconds / 1e6:.1f} MB of text a second"
        fresh, left = self._done - self._first, self._ends[-1] - self._done
        if not fresh:
            return rate
        minutes, seconds = divmod(round(left / fresh * seconds), 60)
        done = self._done / self._ends[-1]
        return f"{done:.0%}, {rate}, about {minutes} min {seconds:02d} s left"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
