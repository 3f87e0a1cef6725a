"""What vLLM (0.32) says of a job, as events. It imports no vLLM: the shapes are those of its RequestOutput."""

from __future__ import annotations

import math
from typing import Any

from serve.errors import GenerationFailed
from serve.words import Event, Finish, Job, Start, TokenLogprob, Usage


class OutputReader:
    """Turns vLLM's outputs of one job into events.

    vLLM cannot help making one token. Of a job that wants none, nobody hears of it, whoever counts.
    """

    def __init__(self, job: Job) -> None:
        self._job, self.made, self._cached, self._begun = job, 0, 0, False

    def events(self, output: Any) -> list[Event]:
        events = [self._event(choice, output) for choice in output.outputs]
        if output.finished and events:
            usage = Usage(len(self._job.prompt_ids), self.made, self._cached)
            events[-1] = events[-1]._replace(usage=usage)
        return events

    def _event(self, choice: Any, output: Any) -> Event:
        sampling, scores = self._job.sampling, None
        start, self._begun = None if self._begun else self._start(output), True
        finish = _finish(choice.finish_reason)
        if sampling.max_tokens == 0:
            return Event(choice.index, (), "", finish and "length", start=start)
        self.made += len(choice.token_ids)
        if choice.logprobs is not None:
            pairs = zip(choice.token_ids, choice.logprobs, strict=True)
            scores = tuple(_score(i, found, sampling.logprobs or 0) for i, found in pairs)
        return Event(choice.index, tuple(choice.token_ids), choice.text, finish, None, scores, start)

    def left_s(self, gone_s: float) -> float:
        """Until `max_tokens` at the pace so far; `gone_s`: since the first output. Infinite while nobody knows."""
        most = self._job.sampling.max_tokens
        if most is None or self.made < 2:
            return math.inf
        return (most * self._job.sampling.n - self.made) * gone_s / (self.made - 1)

    def _start(self, output: Any) -> Start:
        prompt, top = self._job.prompt_ids, self._job.sampling.prompt_logprobs
        self._cached = output.num_cached_tokens or 0
        scores = None
        if top is not None:
            scores = tuple(_score(i, found, top) for i, found in zip(prompt, output.prompt_logprobs, strict=True))
        stats = output.metrics
        queue_s = max(0.0, stats.scheduled_ts - stats.queued_ts) if stats else 0.0
        return Start(len(prompt), self._cached, queue_s, scores)


def _score(token_id: int, found: Any, top: int) -> TokenLogprob:
    """`found`: vLLM's Logprob by token id, the token itself and the likeliest; None for a prompt's first token."""
    if found is None:
        return TokenLogprob(token_id, None, ())
    ranked = sorted((x.rank, i, x.logprob) for i, x in found.items() if x.rank <= top)
    return TokenLogprob(token_id, found[token_id].logprob, tuple((i, logprob) for _, i, logprob in ranked))


def _finish(reason: str | None) -> Finish | None:
    if reason is None or reason == "length":
        return "length" if reason else None
    if reason != "stop":  # "abort" or "error": no answer that could be called finished
        raise GenerationFailed("the engine could not finish this answer; other requests are not affected")
    return "stop"
