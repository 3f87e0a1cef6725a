"""Why Ray does not place a replica, in its own words. On one machine what is not there will not come."""

from __future__ import annotations

import re
from typing import Any

_SLOW = "to be scheduled"


def unplaceable(application: Any) -> str | None:
    """Of `ray.serve.schema.ApplicationStatusOverview`: None as long as all may still be placed.

    Serve tells after RAY_SERVE_SLOW_STARTUP_WARNING_S what a replica requires and what is available. One that waits for
    nothing but a slow process finds its resources there.
    """
    for deployment in application.deployments.values():
        if _SLOW in deployment.message and (lacking := _lacking(deployment.message)):
            return (
                f"Ray cannot place a replica for lack of {', '.join(lacking)}: {' '.join(deployment.message.split())}"
            )
    return None


def _lacking(message: str) -> list[str]:
    required, available = (_resources(message, word) for word in ("required for each replica", "resources available"))
    return sorted(name for name, amount in required.items() if amount > available.get(name, 0.0))


def _resources(message: str, word: str) -> dict[str, float]:
    """What stands behind such a word, as `{"CPU": 1.0, "GPU": 1.0}` or with single quotes."""
    found = re.search(rf"{word}: ({{[^}}]*}})", message)
    pairs = re.findall(r"['\"]([\w:.-]+)['\"]: ([\d.e+-]+)", found[1]) if found else []
    return {name: float(amount) for name, amount in pairs}
