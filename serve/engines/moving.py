"""Jobs that wait in one replica of a model while another has room, or that wait in one that is leaving: given back.

Whoever dispatched a job that is given back dispatches it again; the time for which it waited goes with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import NamedTuple, Protocol

EVERY_S = 0.5  # with few replicas; all ask all, so the more there are, the less often
FEW = 4
ALL = 1_000_000  # sequences


class Room(NamedTuple):
    """What a replica tells the others. `free`: sequences that it could take at once; `waiting`: jobs in its line."""

    free: int
    waiting: int


class Moved(Exception):
    """The job had no turn here. `waited_s`: in all lines so far; `toward`: the replica that has room, if one has."""

    def __init__(self, waited_s: float, toward: str | None) -> None:
        super().__init__("another replica should answer this job")
        self.waited_s, self.toward = waited_s, toward


class Giving(Protocol):
    """A line that jobs can be taken from."""

    @property
    def waiting(self) -> int: ...

    def give_back(self, sequences: int, toward: str | None) -> None:
        """Those whose turn comes next, of at most so many sequences in all."""
        ...


def gifts(own: str, rooms: Mapping[str, Room]) -> dict[str | None, int]:
    """How many sequences `own` gives back for which replica; None: for any. Pure.

    `rooms`: of the replicas that get jobs. One that is not among them is leaving. Those that wait share what is free by
    the lengths of their lines, each by the same reckoning; what cannot be divided is for the longest.
    """
    if own not in rooms:
        return {None: ALL} if rooms else {}
    waiting = {name: room.waiting for name, room in rooms.items() if room.waiting}
    if own not in waiting:
        return {}
    whole, found = sum(waiting.values()), dict[str | None, int]()
    longest = min(waiting, key=lambda name: (-waiting[name], name))
    for name in sorted(rooms):
        if (free := rooms[name].free) <= 0 or name in waiting:
            continue
        parts = {giver: free * length // whole for giver, length in waiting.items()}
        parts[longest] += free - sum(parts.values())
        if parts[own]:
            found[name] = parts[own]
    return found


async def keep_moving(line: Giving, own: str, ask: Callable[[], Awaitable[Mapping[str, Room]]]) -> None:
    """As long as the replica lives. `ask`: the rooms of all replicas that get jobs, by name."""
    replicas = 1
    while True:
        await asyncio.sleep(EVERY_S * max(1.0, replicas / FEW))
        if not line.waiting:
            continue
        with suppress(Exception):  # nobody can be asked now: those who wait wait here
            rooms = await ask()
            replicas = len(rooms)
            for toward, sequences in gifts(own, rooms).items():
                line.give_back(sequences, toward)
