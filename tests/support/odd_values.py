"""Values of every field that an administrator sets: right ones, and whatever else a client may send in their place."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from serve.tenants.given import MOST, CeilingsGiven, LimitsGiven

_NUMBERS: list[Any] = [0, -0.0, 5e-324, 1e-9, 0.001, 0.5, 1.0, 1000, 1000.5, 2**31, MOST, MOST + 1, 2**53, 2**53 + 1,
            2**63, 10**30, 1e300, float("nan"), float("inf"), -1, True, False, "1", "", None, [], {}]  # fmt: skip
_TIMES: list[Any] = ["9999-12-31T23:59:59-05:00", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59Z",
          "0001-01-01T00:00:00+05:00", "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "2031-02-30T00:00:00Z",
          "2031-01-01", "2031-01-01T00:00:00", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z",
          "2031-01-01T00:00:00.5+14:00", "2031-01-01t00:00:00z", "1893456000", 1893456000, 1e12, 10**30, True,
          float("nan"), "", "never", None]  # fmt: skip
_NAMES: list[Any] = ["ci", "a" * 63, "a" * 64, "ß" * 63, "e\u0301", "\u202eevil", "a\u200b", "a\x00", "a\n", " a", "İ",
          "𝒜", "٣", "-", "", None, 1, True, []]  # fmt: skip
OFFSETS = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))

numbers = st.one_of(st.sampled_from(_NUMBERS), st.integers(0, 10**6), st.integers(), st.floats())
times = st.one_of(st.sampled_from(_TIMES), st.datetimes(timezones=OFFSETS).map(lambda moment: moment.isoformat()))
names = st.one_of(st.sampled_from(_NAMES), st.text("abc .@:/+-é", max_size=8), st.text(max_size=70))
_TRUTHS: list[Any] = [True, False, True, False, 0, 1, "yes", "true", None, []]
truths = st.sampled_from(_TRUTHS)
bands = st.sampled_from(["interactive", "standard", "batch", "Batch", "", None, 1])
_LISTS = [[f"{i:03}" + "m" * 197 for i in range(256)], [str(i) for i in range(257)], "a", {"a": 1}, ["a", "a"]]
models = st.one_of(
    st.none(), st.lists(st.text("ab./:-", max_size=4) | names, max_size=3), st.sampled_from(_LISTS)
)  # fmt: skip
scopes = st.one_of(st.lists(st.sampled_from(["generate", "usage", "generate", "usage", "admin"]), max_size=3), names)


def _each_of(known: Any) -> st.SearchStrategy[Any]:
    fields = st.sampled_from([*known.model_fields, *known.model_fields, "token_per_day"])
    return st.dictionaries(fields, st.integers(0, MOST) | numbers, max_size=3) | st.sampled_from([None, [], "x"])


limits, ceilings = _each_of(LimitsGiven), _each_of(CeilingsGiven)
organisations = st.fixed_dictionaries({}, optional={"limits": limits, "suspended": truths})
tenants = st.fixed_dictionaries(
    {},
    optional={
        "weight": st.floats(0.001, 1000) | numbers,
        "band": bands,
        "models": models,
        "limits": limits,
        "ceilings": ceilings,
        "suspended": truths,
    },
)
keys = st.fixed_dictionaries(
    {"name": names},
    optional={"scopes": scopes, "models": models, "limits": limits, "expires_at": times, "suspended": truths},
)
