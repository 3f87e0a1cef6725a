"""What is done to streams of events on their way out: several jobs become one answer, a prompt is put first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

from serve.errors import EngineLost
from serve.record import Record
from serve.words import NO_USAGE, Event, Usage

Events = AsyncGenerator[Event, None]
OUT_OF_QUOTA = "insufficient_quota"  # the code of the error that the next request gets
_MOST_WAITING = 64  # events of one answer that may wait for a slow reader


async def together(streams: Sequence[Events], choices: int) -> Events:
    """The events of several jobs, each of `choices` choices, as one answer.

    Choices are numbered through, and the usage of all stands on the last event. The first error ends all.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for piece in only:
                yield piece
        return
    queue: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(_MOST_WAITING)
    pumps = [asyncio.create_task(_pump(queue, place, stream)) for place, stream in enumerate(streams)]
    total, open_jobs = NO_USAGE, len(streams)
    try:
        while open_jobs:
            place, event = await queue.get()
            if not isinstance(event, Event):
                raise event
            if event.usage:
                open_jobs -= 1
                total = Usage.total((total, event.usage))
            yield event._replace(choice=place * choices + event.choice, usage=None if open_jobs else total)
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(queue: asyncio.Queue[tuple[int, Event | Exception]], place: int, stream: Events) -> None:
    whole = False
    try:
        async with aclosing(stream) as events:
            async for event in events:
                whole = event.usage is not None
                await queue.put((place, event))
        if not whole:
            raise EngineLost("the engine ended its answer without a finish reason")
    except Exception as e:
        await queue.put((place, e))


async def echoed(stream: Events, prompt: str, choices: int) -> Events:
    """The prompt as a first event of each choice, with its log-probabilities if they were asked for."""
    async with aclosing(stream) as events:
        async for event in events:
            if event.start:
                scores = event.start.prompt_logprobs
                for choice in range(choices):
                    yield Event(choice, (), prompt, logprobs=scores, start=None if choice else event.start)
                event = event._replace(start=None)
            yield event


def cut_off(unfinished: Iterable[int], record: Record) -> list[Event]:
    """The end of an answer whose tenant has nothing left: each open choice finishes, the last event has the usage."""
    usage = Usage(record.prompt_tokens, record.output_tokens, record.cached_tokens)
    ends = [Event(choice, (), "", "length", ended_by=OUT_OF_QUOTA) for choice in sorted(unfinished)]
    return [*ends[:-1], ends[-1]._replace(usage=usage)]


async def collect(events: Events) -> list[Event]:
    """The unary answer: the stream, joined into one event per choice, in order; the last one has the usage."""
    pieces: dict[int, list[Event]] = {}
    usage = None
    async with aclosing(events):
        async for event in events:
            pieces.setdefault(event.choice, []).append(event)
            usage = event.usage or usage
    whole = [_joined(pieces[choice]) for choice in sorted(pieces)]
    whole[-1] = whole[-1]._replace(usage=usage)
    return whole


def _joined(pieces: Sequence[Event]) -> Event:
    scored = any(piece.logprobs is not None for piece in pieces)
    return Event(
        pieces[0].choice,
        tuple(i for piece in pieces for i in piece.token_ids),
        "".join(piece.text for piece in pieces),
        next((piece.finish for piece in pieces if piece.finish), None),
        logprobs=tuple(x for piece in pieces for x in piece.logprobs or ()) if scored else None,
        ended_by=pieces[-1].ended_by,
    )
