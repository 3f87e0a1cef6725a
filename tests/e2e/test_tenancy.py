"""Many tenants on the whole stack: keys, limits, turns, and a ledger that agrees with the engines whatever dies.

All tests share one stack; `test_breaking.py` kills routers and engines of another.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.deployment import CHOICES, LONG, Deployment, answered_in_s, ask, leave_streams, ttft_s
from tests.support.stack import count, wait_for

KNOWN_WITHIN_S = 5.0  # what is promised; about 1 s is usual


CLUSTER = pytest.param("cluster", marks=pytest.mark.full)
with_cluster = pytest.mark.parametrize("variant", ["haproxy", CLUSTER], indirect=True)


@pytest.fixture(scope="session")
def keys(shared: Deployment) -> dict[str, str]:
    """Of the tenants of most tests."""
    made = shared.enrol(
        "acme",
        heavy={},
        light={},
        limited={"limits": {"requests_per_minute": 3}},
        again={"limits": {"requests_per_minute": 3}},
        batch={"band": "batch", "limits": {"concurrent_requests": 9}},
        counted={"limits": {"concurrent_requests": 9}},
    )
    last = list(made.values())[-1]
    # HAProxy asks routers in turn, and each of them learns of keys by itself.
    wait_for(lambda: {ask(shared, last, path="/v1/models").status_code for _ in range(6)} == {200}, KNOWN_WITHIN_S)
    return made


@with_cluster
def test_a_new_key_opens_and_a_revoked_or_suspended_one_is_shut_within_five_seconds(shared: Deployment) -> None:
    key = shared.enrol("brief", guest={})["guest"]
    wait_for(lambda: ask(shared, key).status_code == 200, KNOWN_WITHIN_S)
    shared.tenants("suspend", "guest")
    wait_for(lambda: ask(shared, key).status_code == 403, KNOWN_WITHIN_S)
    shared.tenants("resume", "guest")
    wait_for(lambda: ask(shared, key).status_code == 200, KNOWN_WITHIN_S)
    shared.tenants("key", "revoke", key.removeprefix("sk-").split("_")[0])
    wait_for(lambda: ask(shared, key).status_code == 401, KNOWN_WITHIN_S)


@with_cluster
def test_a_limit_holds_over_all_routers_and_says_when_to_come_back(shared: Deployment, keys: dict[str, str]) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(shared, keys["limited"]), range(20)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] * 3 + [429] * 17
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert refused.headers["x-ratelimit-limit-requests"] == "3"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"


@with_cluster
def test_a_light_tenant_is_answered_while_a_flood_still_waits(shared: Deployment, keys: dict[str, str]) -> None:
    with ThreadPoolExecutor(60) as pool:
        flood = [pool.submit(ask, shared, keys["heavy"], max_tokens=400) for _ in range(60)]
        wait_for(lambda: shared.probe.running() >= 40, within_s=30)
        assert ask(shared, keys["light"]).status_code == 200
        waiting = sum(not answer.done() for answer in flood)
        assert {answer.result().status_code for answer in flood} == {200}
    assert waiting > 20


@with_cluster
def test_the_ledger_has_every_token_that_the_engines_made(shared: Deployment, keys: dict[str, str]) -> None:
    ask(shared, keys["heavy"], n=3, temperature=1)
    ask(shared, keys["heavy"], prompt=["a", "b"])
    ask(shared, keys["heavy"], echo=True, logprobs=1, max_tokens=0)
    ask(shared, keys["heavy"], max_tokens=-1)
    leave_streams(shared, keys["heavy"], streams=4)
    found = shared.settled()
    assert sum(row["output_tokens"] for row in found) == shared.probe.output_tokens()
    assert "lost 0 (" in shared.ledger("check")
    left = [row for row in found if row["outcome"] == "cancelled" and row["tenant_id"] == "heavy"]
    assert len(left) == 4
    assert all(0 < row["output_tokens"] < CHOICES * LONG for row in left)
    assert {"done", "refused", "cancelled"} <= {row["outcome"] for row in found}


@with_cluster
def test_a_tenant_reads_its_own_usage_and_nobody_elses(shared: Deployment, keys: dict[str, str]) -> None:
    mine = [row for row in shared.settled() if row["tenant_id"] == "light"]
    told = ask(shared, keys["light"], path="/v1/usage?by=model").json()["data"]
    assert sum(group["output_tokens"] for group in told) == sum(row["output_tokens"] for row in mine)


@with_cluster
@pytest.mark.full
def test_a_database_that_is_locked_for_30_s_changes_no_ttft_and_loses_nothing(
    shared: Deployment, keys: dict[str, str]
) -> None:
    before = {row["request_id"] for row in shared.settled()}
    usual = [ttft_s(shared, keys["light"]) for _ in range(20)]
    locked = list[float]()
    with shared.locked_ledger():
        until = time.monotonic() + 30
        while time.monotonic() < until:
            locked.append(ttft_s(shared, keys["light"]))
            time.sleep(0.1)
        asked = len(usual) + len(locked)
    assert statistics.median(locked) < 5 * statistics.median(usual)
    assert max(locked) < 5 * max(usual) + 1  # whoever waited for the database would wait for tens of seconds
    found = [row for row in shared.settled() if row["request_id"] not in before]
    assert [row["outcome"] for row in found] == ["done"] * asked
    assert sum(row["output_tokens"] for row in found) == 8 * asked
    print(f"TTFT p50 {statistics.median(usual):.4f} s, locked {statistics.median(locked):.4f} s, {len(locked)} answers")


def routers_without_a_store(shared: Deployment) -> float:
    """By what each of them said; metrics come in batches."""
    samples = shared.stack.settled_metrics()
    opened, closed = (count(samples, "starserve_limit_store_events", f'event="{e}"') for e in ("opened", "closed"))
    return opened - closed


@pytest.mark.full
@pytest.mark.parametrize("variant", ["cluster"], indirect=True)
def test_while_redis_is_slow_or_gone_each_band_gets_what_was_chosen_and_limits_hold_again_afterwards(
    shared: Deployment, keys: dict[str, str]
) -> None:
    limits = shared.limits
    assert limits is not None
    for lose, back in ((limits.pause, limits.go_on), (limits.kill, limits.start)):
        assert ask(shared, keys["batch"]).status_code == 200
        lose()
        # Counted in the router's own memory; after some lost calls nobody waits for Redis any more.
        wait_for(lambda: answered_in_s(shared, keys["counted"]) < 0.5, within_s=30)
        refused = ask(shared, keys["batch"])
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "limits_unavailable")
        assert refused.headers["retry-after"]
        back()
        wait_for(lambda: ask(shared, keys["batch"]).status_code == 200, within_s=30)
        wait_for(lambda: routers_without_a_store(shared) == 0, within_s=60)
    with ThreadPoolExecutor(20) as pool:
        codes = sorted(answer.status_code for answer in pool.map(lambda _: ask(shared, keys["again"]), range(20)))
    assert codes == [200] * 3 + [429] * 17
    shared.settled()
