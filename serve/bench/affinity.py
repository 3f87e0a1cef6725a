"""`starserve bench affinity`: conversations over several engines, their turns meeting by affinity or spread by load.

Each choice is a deployment of its own, started as its users start it; the same conversations, the same seeds. What
stands for the answers in later prompts is drawn beforehand and not what the engine said, so that both get the same
prompts, to the token; an answer is therefore never found again, only the prompt before it.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from serve.bench.arrivals import Closed
from serve.bench.client import Request
from serve.bench.load import Load, run
from serve.bench.rungs import Rung, stack
from serve.bench.summary import summary
from serve.logs import REQUESTS
from serve.settings import Settings

CHOICES = ("balanced", "affinity")
WARM_UP = -1  # its seed
LOGGED_WITHIN_S = 15.0  # a line comes when its request has ended


@dataclass(frozen=True, slots=True)
class Conversations:
    """`users` that each hold `each` conversations of `turns` turns, one after the other. Lengths in tokens.

    A first prompt is the `preamble`, which all share, and `opening`; each later one is the one before, an answer
    (`output`) and what the user says next (`added`).
    """

    model: str
    vocabulary: int
    users: int
    turns: int
    each: int
    preamble: int
    opening: int
    added: int
    output: int
    pause_s: float

    @property
    def repeated(self) -> float:
        """The share of prompt tokens that stood in the prompt before: what could be found again."""
        lengths = [self.preamble + self.opening + i * (self.output + self.added) for i in range(self.turns)]
        return sum(lengths[:-1]) / sum(lengths)

    def loads(self, key: str) -> list[Load]:
        return [Load(f"user-{i}", Closed(1, self.pause_s), self._speaker(), key) for i in range(self.users)]

    def _speaker(self) -> Callable[[random.Random], Request]:
        said, turn = list[int](), 0

        def ask(draw: random.Random) -> Request:
            nonlocal said, turn
            if turn % self.turns == 0:
                said = self._ids(random.Random(0), self.preamble) + self._ids(draw, self.opening)
            else:
                said = said + self._ids(draw, self.output + self.added)
            turn += 1
            body = {"model": self.model, "prompt": said, "max_tokens": self.output, "temperature": 0,
                    "ignore_eos": True}  # fmt: skip
            return Request("/v1/completions", body)

        return ask

    def _ids(self, draw: random.Random, number: int) -> list[int]:
        return [draw.randrange(1, self.vocabulary) for _ in range(number)]


def measure(
    settings: Settings, cache: Path, talk: Conversations, choice: str, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """A round for each seed, after a warm-up of other conversations."""
    (model,) = settings.models
    engine = model.engine.model_copy(update={"replica_choice": choice})
    models = (model.model_copy(update={"engine": engine}),)
    with stack(settings.model_copy(update={"models": models, "logs": "json"}), cache, choice) as rung:
        _round(rung, talk, talk.turns, WARM_UP)
        return [_round(rung, talk, talk.turns * talk.each, seed) for seed in seeds]


def _round(rung: Rung, talk: Conversations, requests: int, seed: int) -> dict[str, Any]:
    before = len(_engines(rung))
    ran = asyncio.run(run(rung.address, talk.loads(rung.key), math.inf, seed, most=requests))
    told = summary(ran, fresh_prompts=False)
    engines = _engines(rung, before + told.all.outcomes.get("done", 0))[before:]
    ttft = told.all.times.get("ttft_s", {})
    return {
        "seed": seed, "cached_share": told.all.cached_share, "output_tokens_s": told.all.output_tokens_s,
        "prompt_tokens": told.all.prompt_tokens, "ttft_p50_s": ttft.get("p50", math.nan),
        "ttft_p90_s": ttft.get("p90", math.nan), "engines": dict(Counter(engines)), "wall_s": ran.wall_s,
        "outcomes": dict(told.all.outcomes), "verdict": told.verdict,
    }  # fmt: skip


def _engines(rung: Rung, wanted: int = 0) -> list[str]:
    """Who answered each request so far, by the log; waits until so many lines are there."""
    deadline, log = time.monotonic() + LOGGED_WITHIN_S, rung.folder / REQUESTS
    while True:
        lines = log.read_text().splitlines() if log.exists() else []
        told = [json.loads(line) for line in lines]
        found = [str(line["engine"]) for line in told if line.get("engine")]
        if len(found) >= wanted or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def middle(rounds: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(median(told[name] for told in rounds))


def table(found: Mapping[str, Sequence[Mapping[str, Any]]], talk: Conversations) -> list[tuple[str, ...]]:
    """Medians over the rounds, and of ratios over pairs of rounds with the same seed."""
    rows: list[tuple[str, ...]] = [
        ("choice", "found in cache %", "could be %", "tokens/s", "TTFT p50 s", "p90 s", "requests per engine")
    ]
    for choice, rounds in found.items():
        spread = sum((Counter(told["engines"]) for told in rounds), Counter[str]())
        rows.append((
            choice, f"{100 * middle(rounds, 'cached_share'):.1f}", f"{100 * talk.repeated:.1f}",
            f"{middle(rounds, 'output_tokens_s'):.0f}", f"{middle(rounds, 'ttft_p50_s'):.3f}",
            f"{middle(rounds, 'ttft_p90_s'):.3f}", " / ".join(str(n) for n in sorted(spread.values(), reverse=True)),
        ))  # fmt: skip
    names = ("cached_share", "output_tokens_s", "ttft_p50_s", "ttft_p90_s")
    share, rate, half, most = (f"{_ratio(found, name):.2f}" for name in names)
    return [*rows, ("affinity ÷ balanced", share, "", rate, half, most, "")]


def _ratio(found: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> float:
    pairs = zip(found["affinity"], found["balanced"], strict=True)
    return float(median(a[name] / b[name] if b[name] else math.nan for a, b in pairs))


def doubts(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Why some of these numbers must not be used."""
    said = []
    for choice, rounds in found.items():
        for told in rounds:
            if told["verdict"] != "VALID":
                said.append(f"{choice}, seed {told['seed']}: {told['verdict']}")
            if lost := {k: n for k, n in told["outcomes"].items() if k != "done"}:
                said.append(f"{choice}, seed {told['seed']}: not all were answered: {lost}")
    return said
