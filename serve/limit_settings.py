"""The part of the configuration that speaks of limits and prices. `settings` puts it into the whole."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Literal

from pydantic import Field, SecretStr

from serve.services import Frozen

Loss = Literal["open", "closed", "local"]


class Price(Frozen):
    """What tokens cost, in the deployment's currency per million: so many millionths of it for each token."""

    prompt: Decimal = Field(Decimal(0), ge=0, decimal_places=6, description="Per million prompt tokens.")
    cached_prompt: Decimal | None = Field(
        None, ge=0, decimal_places=6, description="Per million prompt tokens found in the prefix cache; else as prompt."
    )
    output: Decimal = Field(Decimal(0), ge=0, decimal_places=6, description="Per million output tokens.")

    def of(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """Millionths of the currency; the sum is rounded up, once. `cached_tokens` are among the prompt's."""
        cached = self.prompt if self.cached_prompt is None else self.cached_prompt
        uncached = prompt_tokens - cached_tokens
        return math.ceil(uncached * self.prompt + cached_tokens * cached + output_tokens * self.output)


class OnLoss(Frozen):
    """What a band of tenants gets while the shared store of limits is lost."""

    interactive: Loss = Field("local", description="open: uncounted; closed: 503; local: counted by each router alone.")
    standard: Loss = Field("local", description="The same choice for standard.")
    batch: Loss = Field("closed", description="The same choice for batch.")


class LimitStore(Frozen):
    """Where is counted what tenants hold: in the one router's memory, or in a Redis that all routers share."""

    redis_url: SecretStr | None = Field(None, description="redis://…, needed for several routers; none: in process.")
    deadline_ms: float = Field(100, gt=0, description="Most milliseconds that one call may take before it counts lost.")
    failures: int = Field(3, ge=1, description="Lost calls in a row after which Redis is left alone.")
    probe_s: float = Field(1, gt=0, description="Seconds between two looks whether it is back.")
    connections: int = Field(64, ge=1, description="Open connections to Redis, per router.")
    hold_s: float = Field(
        120, ge=1, description="Seconds after which a hold of a dead router vanishes; a living one renews it thrice."
    )
    kept_settlements: int = Field(10_000, ge=0, description="Charges kept, per router, until a lost Redis is back.")
    on_loss: OnLoss = OnLoss()
