"""The largest numbers that an administrator may set are counted exactly, in memory and in the doubles of Redis."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from serve.errors import LimitReached
from serve.limits import NOTHING, Need
from serve.limitstore.base import LimitStore
from serve.tenants.given import MOST
from serve.words import Limits
from tests.support.limit_stores import Clock, tenant
from tests.support.properties import FEW, examples

_NAMES = count()


@examples(FEW)
@given(limit=st.integers(MOST - 3, MOST), left=st.integers(-3, 9), asked=st.integers(1, 9), runs=st.integers(0, 9))
async def test_what_fits_into_the_largest_budget_is_exact(
    store: LimitStore, clock: Clock, limit: int, left: int, asked: int, runs: int
) -> None:
    who = tenant(f"t{next(_NAMES)}", tenant=Limits(tokens_per_day=limit, budget_per_month=limit))
    first = await store.reserve(f"{who.tenant_id}-0", who, Need(0, 0, 0))
    await store.restore(first, "tenant", limit - left, limit - left, clock())
    held = await _fits(store, who.tenant_id, "1", limit, Need(runs, 0, runs))
    assert held == (runs <= left)
    assert await _fits(store, who.tenant_id, "2", limit, Need(asked, 0, asked)) == (asked + runs * held <= left)
    await store.settle(first, NOTHING)


async def _fits(store: LimitStore, name: str, hold: str, limit: int, need: Need) -> bool:
    who = tenant(name, tenant=Limits(tokens_per_day=limit, budget_per_month=limit))
    try:
        await store.reserve(f"{name}-{hold}", who, need)
    except LimitReached:
        return False
    return True
