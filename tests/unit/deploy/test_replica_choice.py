"""A router's choice of replicas: Ray Serve's own loop around our class, and replicas that only count."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from serve.deploy.replica_choice import ReplicaRouter
from serve.words import Job, Sampling, Secret, Share

BLOCKS = 4
DEPLOYMENT = DeploymentID(name="engine-tiny", app_name="tested")


class Replica:
    """What Serve's loop wants of one. `load`: what it tells; an exception is raised."""

    max_ongoing_requests = 100_000

    def __init__(self, name: str, load: int | Exception = 0) -> None:
        self.replica_id = ReplicaID(unique_id=name, deployment_id=DEPLOYMENT)
        self.load, self.asked = load, 0

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.load, Exception):
            raise self.load
        return self.load


def job(conversation: int, tokens: int = 200, tenant: str = "team", toward: str | None = None) -> Job:
    draw = random.Random(conversation)
    ids = tuple(draw.randrange(50_000) for _ in range(tokens))
    return Job("job", ids, Sampling(max_tokens=1), Secret("salt"), share=Share(tenant), toward=toward)


def asking(*args: object, request_id: str = "") -> PendingRequest:
    name = request_id or f"{random.random()}"
    metadata = RequestMetadata(request_id=name, internal_request_id=name)
    return PendingRequest(args=list(args), kwargs={}, metadata=metadata)


class Chooser:
    """A router of one deployment, as Serve drives it: choose, send, answered, ended."""

    def __init__(self, *replicas: Replica, blocks: int = BLOCKS) -> None:
        self.router = ReplicaRouter(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
        self.router.initialize_state(blocks=blocks, preambles=[[7] * 20])
        self.sent: dict[str, list[str]] = {r.replica_id.unique_id: [] for r in replicas}
        self.on = {r.replica_id.unique_id: r for r in replicas}
        self.router.update_replicas(list(replicas))

    async def send(self, pending: PendingRequest) -> str:
        async with asyncio.timeout(5):  # not `wait_for`: between choice and dispatch nothing else may run, as in Serve
            replica: Any = await self.router._choose_replica_for_request(pending)
        self.router.on_send_request(replica.replica_id)
        name = str(replica.replica_id.unique_id)
        self.sent.setdefault(name, []).append(pending.metadata.internal_request_id)
        return name

    def end(self, name: str) -> None:
        """One that is on its way there has ended."""
        self.router.on_request_completed(self.on[name].replica_id, self.sent[name].pop())
        self.router.decrement_queue_len_cache(self.on[name].replica_id)


@pytest.fixture
async def chooser() -> Chooser:
    made = Chooser(Replica("a"), Replica("b"))
    await asyncio.sleep(0.01)  # both have told their load
    return made


async def test_turns_of_conversations_meet_and_conversations_spread(chooser: Chooser) -> None:
    homes = list[str]()
    for conversation in range(40):
        for tokens in (100, 200, 800):
            name = await chooser.send(asking(job(conversation, tokens)))
            homes.append(name)
            chooser.end(name)
    turns = [set(homes[i : i + 3]) for i in range(0, len(homes), 3)]
    assert all(len(replicas) == 1 for replicas in turns)
    assert min(Counter(homes).values()) > len(homes) / 4


async def test_a_burst_of_one_conversation_is_spread_before_any_of_it_is_sent(chooser: Chooser) -> None:
    names = await asyncio.gather(*(chooser.send(asking(job(1))) for _ in range(64)))
    assert max(Counter(names).values()) <= 1.25 * 32 + 3


async def test_all_jobs_of_one_request_are_sent(chooser: Chooser) -> None:
    """They share Serve's internal id, because it is the HTTP request's."""
    asked = [asking(job(i), request_id="same") for i in range(32)]
    names = await asyncio.gather(*(chooser.send(pending) for pending in asked))
    assert len(names) == 32
    assert set(names) == {"a", "b"}


async def test_what_other_routers_sent_counts(chooser: Chooser) -> None:
    home = await chooser.send(asking(job(1)))
    chooser.end(home)
    chooser.router.on_new_queue_len_info(chooser.on[home].replica_id, 10)
    assert await chooser.send(asking(job(1))) != home


async def test_a_replica_that_has_not_told_its_load_for_a_while_is_asked(chooser: Chooser) -> None:
    home = await chooser.send(asking(job(1)))
    chooser.end(home)
    (other,) = chooser.on.keys() - {home}
    chooser.on[other].load = 30
    chooser.router.replica_queue_len_cache.invalidate_key(chooser.on[other].replica_id)
    before = chooser.on[other].asked
    await chooser.send(asking(job(1)))
    await asyncio.sleep(0.01)
    assert chooser.on[other].asked == before + 1
    assert chooser.router.replica_queue_len_cache.get(chooser.on[other].replica_id) == 30


async def test_a_dead_home_is_left_for_the_next(chooser: Chooser) -> None:
    home = await chooser.send(asking(job(1)))
    chooser.end(home)
    chooser.on[home].load = ActorDiedError()
    chooser.router.on_replica_actor_unavailable(chooser.on[home].replica_id)
    (other,) = chooser.on.keys() - {home}
    assert await chooser.send(asking(job(1))) == other
    assert [r.unique_id for r in chooser.router.curr_replicas] == [other]


async def test_who_leaves_before_there_is_a_replica_leaves_nothing_behind() -> None:
    chooser = Chooser()
    leaving = asyncio.create_task(chooser.send(asking(job(1))))
    staying = asyncio.create_task(chooser.send(asking(job(2))))
    await asyncio.sleep(0.01)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert not staying.done()
    chooser.router.update_replicas([Replica("late")])
    assert await staying == "late"
    assert leaving.cancelled()
    assert not chooser.router._choosing
    assert not chooser.router._chosen


async def test_counts_return_to_nothing_when_all_have_ended(chooser: Chooser) -> None:
    for name in await asyncio.gather(*(chooser.send(asking(job(i))) for i in range(20))):
        chooser.end(name)
    assert not chooser.router._on_their_way
    assert not chooser.router._of_tenant
    assert not chooser.router._tenants
    assert not chooser.router._chosen


async def test_counts_return_to_nothing_when_jobs_of_one_request_have_ended() -> None:
    chooser = Chooser(Replica("a"), Replica("b"), blocks=0)
    await asyncio.sleep(0.01)
    asked = [asking(job(i), request_id="same") for i in range(7)]
    names = await asyncio.gather(*(chooser.send(pending) for pending in asked))
    assert sorted(Counter(names).values()) == [3, 4]
    for name in names[:-1]:
        chooser.end(name)
    assert sum(chooser.router._of_tenant.values()) == 1
    chooser.end(names[-1])
    assert not chooser.router._of_tenant
    assert not chooser.router._tenants


async def test_balanced_spreads_each_tenant_though_another_has_all_the_load() -> None:
    chooser = Chooser(Replica("a"), Replica("b"), blocks=0)
    await asyncio.sleep(0.01)
    draw = random.Random(0)
    many = [await chooser.send(asking(job(1, tenant="many"))) for _ in range(100)]
    few = [await chooser.send(asking(job(2, tenant="few"))) for _ in range(8)]
    assert Counter(few) == {"a": 4, "b": 4}
    for i in range(300):  # one ends and the next comes, in any order
        mine, tenant = (few, "few") if i % 3 == 0 else (many, "many")
        chooser.end(mine.pop(draw.randrange(len(mine))))
        mine.append(await chooser.send(asking(job(i, tenant=tenant))))
        assert abs(Counter(few)["a"] - 4) <= 1


async def test_balanced_takes_the_less_loaded_where_the_tenant_has_none_and_never_one_above_the_bound() -> None:
    chooser = Chooser(Replica("a", load=12), Replica("b", load=8), blocks=0)
    await asyncio.sleep(0.01)
    assert await chooser.send(asking(job(1))) == "b"
    chooser.router.on_new_queue_len_info(chooser.on["a"].replica_id, 20)
    assert await chooser.send(asking(job(2))) == "b"


async def test_a_job_that_was_given_back_goes_where_there_is_room_and_elsewhere_when_that_is_gone(
    chooser: Chooser,
) -> None:
    home = await chooser.send(asking(job(1)))
    (other,) = chooser.on.keys() - {home}
    assert await chooser.send(asking(job(1, toward=other))) == other
    assert await chooser.send(asking(job(1, toward="gone"))) == home


async def test_questions_and_prompts_without_a_block_go_anywhere(chooser: Chooser) -> None:
    for asked in ((), (["job-1"],), (job(1, tokens=15),)):
        names = {await chooser.send(asking(*asked)) for _ in range(30)}
        assert names == {"a", "b"}
