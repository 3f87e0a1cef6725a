"""Sentences for the log that outlive a log which cannot be written, and never harm the work that they tell of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_MOST = 20  # sentences that wait


class Teller:
    """Called from one thread or task. What the log does not take waits for the next `again`, in its order."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` may raise: the disk of the log may be full."""
        self._say, self._untold = say, deque[str](maxlen=_MOST)

    def __call__(self, sentence: str) -> None:
        self._untold.append(sentence)
        self.again()

    def again(self) -> None:
        """Tell what waits. Nothing is raised, whatever the log does."""
        while self._untold:
            try:
                self._say(self._untold[0])
            except Exception:  # there is no place to tell of it; the sentence waits
                return
            self._untold.popleft()
