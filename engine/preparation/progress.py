"""How far a preparation is: a bar on a terminal, elsewhere a line now and then."""

import itertools
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from engine.preparation.inputs import Input, Part, Place

INTERVAL = 20.0  # seconds between two lines


class PreparationProgress:
    """Shows the share of the input's bytes that is done, or the rate alone."""

    def __init__(self, inputs: list[Input], say: Callable[[str], None], place: Place) -> None:
        self.say = say
        # Bytes before each input, and in all.
        self._ends = [0, *itertools.accumulate(item.size for item in inputs)]
        self._first = self._ends[place.index]
        self._text_bytes = 0
        self._started = self._said = time.monotonic()
        self._bar = tqdm(
            initial=self._first,
            total=self._ends[-1] or None,
            unit="B",
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stdout.isatty(),
        )

    def update(self, last: Part, text_bytes: int, tokens: int) -> None:
        before, after = self._ends[last.start.index : last.start.index + 2]
        done = before + int(last.share * (after - before))
        self._text_bytes += text_bytes
        self._bar.set_postfix_str(f"{tokens:,} tokens", refresh=False)
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._bar.disable and now - self._said >= INTERVAL:
            self._said, passed = now, now - self._started
            line = f"{tokens:,} tokens, {self._text_bytes / passed / 1e6:.1f} MB of text a second"
            if done > self._first:
                left = passed * (self._ends[-1] - done) / (done - self._first)
                minutes, seconds = divmod(round(left), 60)
                line = f"{done / self._ends[-1]:.0%}, {line}, about {minutes} min {seconds:02d} s left"
            self.say(line)

    def close(self) -> None:
        self._bar.close()
