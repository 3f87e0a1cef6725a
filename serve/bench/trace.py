"""The trace that every rung of the ladder answers: streams that each send their next prompt when one is answered."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from serve.bench.arrivals import Closed
from serve.bench.client import Request
from serve.bench.load import Load


@dataclass(frozen=True, slots=True)
class Trace:
    """`prompt` random tokens in, `output` out, greedy, to the last token; `for_s` seconds of it."""

    model: str
    vocabulary: int
    streams: int = 8
    prompt: int = 32
    output: int = 128
    for_s: float = 10.0

    def ids(self, draw: random.Random) -> list[int]:
        """A prompt that nobody sent before."""
        return [draw.randrange(1, self.vocabulary) for _ in range(self.prompt)]

    def request(self) -> Callable[[random.Random], Request]:
        sampling = {"model": self.model, "max_tokens": self.output, "temperature": 0, "ignore_eos": True}
        return lambda draw: Request("/v1/completions", {**sampling, "prompt": self.ids(draw)})

    def load(self, key: str) -> Load:
        return Load("ladder", Closed(self.streams), self.request(), key)

    def plain(self) -> dict[str, Any]:
        return asdict(self)
