"""Text out of a model: the KV cache, sampling, and streaming."""

from engine.text.tokenizer import Tokenizer

LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens, that one character can take


class TextStream:
    """Text out of tokens as they come: no character is split, and what a stop text may remove waits."""

    def __init__(self, tokenizer: Tokenizer, stop: str | None = None) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.stopped = False
        self._ids: list[int] = []
        self._held = ""

    def push(self, token: int) -> str:
        """The text that can be shown now that this token has come."""
        if self.stopped:
            return ""
        self._ids.append(token)
        text = self.tokenizer.decode(self._ids)
        if text.endswith("\ufffd") and len(self._ids) < LONGEST_CHARACTER:
            return ""  # the rest of a character of several bytes may still come
        self._ids.clear()
        self._held += text
        if self.stop is None:
            return self._release(len(self._held))
        found = self._held.find(self.stop)
        if found >= 0:
            self.stopped = True
            return self._release(found)
        begun = (size for size in range(len(self.stop) - 1, 0, -1) if self._held.endswith(self.stop[:size]))
        return self._release(len(self._held) - next(begun, 0))

    def finish(self) -> str:
        """What was held back, now that no more tokens come."""
        if self.stopped:
            return ""
        self._held += self.tokenizer.decode(self._ids)
        self._ids.clear()
        return self._release(len(self._held))

    def _release(self, size: int) -> str:
        shown, self._held = self._held[:size], self._held[size:]
        return shown
