"""Join the parts of an engine replica, here and nowhere else: a count of jobs, over the fair queue, over the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from serve.engines.base import Engine
from serve.engines.receipts import Receipts
from serve.engines.turns import Turns
from serve.model_settings import Queue


class EngineParts(NamedTuple):
    """`receipts` answers jobs and knows what was made of each; `turns` is the queue beneath it."""

    receipts: Receipts
    turns: Turns


def assemble(engine: Engine, queue: Queue, places: int, count: Callable[[int], None]) -> EngineParts:
    """Put the queue and the count in front of an engine. Deployments and test rigs both call this.

    `places`: sequences that the engine works on at once. `count` gets the number of tokens of each event before it is
    handed out.
    """
    turns = Turns(engine, queue, places, on_turn=lambda job: receipts.begin(job))
    receipts = Receipts(turns, count)
    return EngineParts(receipts, turns)
