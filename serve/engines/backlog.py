"""How long who has to wait for an engine: what waits, and how fast the engine works. Pure: `now` is passed in.

Everything is counted as the fair queue charges it: a prompt token costs 1, an output token 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from serve.fairshare import OUTPUT_COST, PROMPT_COST, Claim

_WINDOW_S = 10.0  # over which the engine's speed is averaged
_SHARE_OF_NEW = 0.1  # of the newest answer in the mean length


@dataclass(slots=True)
class Speed:
    """Service per second of an engine, while it had work."""

    _made: float = 0.0
    _busy_s: float = 0.0
    _since_s: float | None = None  # when the stretch of work began that still goes on

    def begin(self, now_s: float) -> None:
        if self._since_s is None:
            self._since_s = now_s

    def made(self, cost: float, now_s: float) -> None:
        if self._since_s is None:
            return
        gone_s = now_s - self._since_s
        kept = math.exp(-gone_s / _WINDOW_S)
        self._made = self._made * kept + cost
        self._busy_s = self._busy_s * kept + gone_s
        self._since_s = now_s

    def end(self) -> None:
        self._since_s = None

    @property
    def per_s(self) -> float | None:
        """None: not enough was seen."""
        return self._made / self._busy_s if self._busy_s >= 1.0 and self._made > 0 else None


@dataclass(slots=True)
class Backlog:
    """What waits for one engine, by tenant."""

    speed: Speed = field(default_factory=Speed)
    mean_output: float = 64.0  # tokens of an answer, until answers are known
    _cost: dict[str, float] = field(default_factory=dict)  # by tenant, of those that wait
    _weight: dict[str, float] = field(default_factory=dict)
    _costs: dict[str, float] = field(default_factory=dict)  # by job

    def add(self, claim: Claim, max_tokens: int) -> None:
        output = min(float(max_tokens), self.mean_output)
        cost = PROMPT_COST * claim.prompt_tokens + OUTPUT_COST * output * claim.sequences
        self._costs[claim.job_id] = cost
        self._cost[claim.tenant] = self._cost.get(claim.tenant, 0.0) + cost
        self._weight[claim.tenant] = claim.weight

    def remove(self, claim: Claim) -> None:
        left = self._cost[claim.tenant] - self._costs.pop(claim.job_id)
        if left > 1e-6:
            self._cost[claim.tenant] = left
        else:
            del self._cost[claim.tenant], self._weight[claim.tenant]

    def answered(self, tokens: float) -> None:
        """A whole answer of so many tokens was made."""
        self.mean_output += _SHARE_OF_NEW * (tokens - self.mean_output)

    def wait_s(self, tenant: str, weight: float) -> float | None:
        """How long the tenant's next job would wait, if all who wait now share by weight. None: not known."""
        rate = self.speed.per_s
        if rate is None:
            return None
        own = self._cost.get(tenant, 0.0)
        others = self._others(tenant, own / weight)
        return (own + others) / rate

    def _others(self, tenant: str, level: float) -> float:
        """What the others get until this tenant has had what it waits for: each at most as much per weight."""
        waiting: Mapping[str, float] = self._cost
        return sum(min(cost, level * self._weight[t]) for t, cost in waiting.items() if t != tenant)
