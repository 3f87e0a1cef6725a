"""A router's own choice of an engine replica, for Ray Serve, by `serve.affinity` and the loads it knows.

It stands where Serve's power of two choices stands, inside each router process. Waiting for a first replica, back-off,
probing, retries after a death and cancellation remain Serve's own.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve.affinity import balanced, key_of, ranked
from serve.words import Job


def choice(blocks: int = 0, preambles: Sequence[Sequence[int]] = ()) -> RequestRouterConfig:
    """For an engine's deployment. Arguments as in `serve.affinity.key_of`; 0 blocks: no affinity."""
    return RequestRouterConfig(
        request_router_class=f"{__name__}.ReplicaRouter",
        request_router_kwargs={"blocks": blocks, "preambles": [list(p) for p in preambles]},
    )


class _Place(NamedTuple):
    """A tenant's part of a replica."""

    tenant: str
    replica_id: ReplicaID


class ReplicaRouter(RequestRouter):  # type: ignore[misc]
    """What is no job (a question whether the engine lives) goes to one of two replicas at random."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_their_way = Counter[ReplicaID]()  # from this router
        self._of_tenant = Counter[_Place]()  # the same
        self._tenants = dict[str, tuple[str, int]]()  # of jobs on their way, by Serve's id, which several may share
        self._choosing = dict[int, PendingRequest]()  # by the id of their metadata, which is all that Serve hands on
        self._chosen = dict[int, _Place]()  # the same, when they have a replica but are not sent yet
        self._sending: PendingRequest | None = None
        self._probing = set[asyncio.Task[Any]]()

    def initialize_state(self, blocks: int, preambles: Sequence[Sequence[int]]) -> None:
        self._blocks, self._preambles = blocks, [tuple(p) for p in preambles]

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each: the next is tried when the one before is dead, or does not say its load."""
        job = None
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # or Serve would ask again without a pause
            job = _job(pending_request)
        if job is None:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        self._probe(candidate_replicas)
        by_name = {r.replica_id.unique_id: r for r in candidate_replicas}
        return [[by_name[name]] for name in self._order(job, by_name)]

    def _order(self, job: Job, replicas: dict[str, RunningReplica]) -> list[str]:
        tenant, unsent = job.share.tenant_id, list(self._chosen.values())
        loads, own = dict[str, int](), dict[str, int]()
        for name in random.sample(list(replicas), len(replicas)):  # routers that know the same choose differently
            place = _Place(tenant, replicas[name].replica_id)
            loads[name] = self._load(place.replica_id) + sum(p.replica_id == place.replica_id for p in unsent)
            own[name] = self._of_tenant[place] + unsent.count(place)
        key = key_of(tenant, job.adapter, job.prompt_ids, self._blocks, self._preambles)
        order = balanced(loads, own) if key is None else ranked(key, loads)
        # The replica that had room for a job given back is first; its own choice would have it wait again.
        return sorted(order, key=lambda name: name != job.toward)

    def _load(self, replica_id: ReplicaID) -> int:
        """Of all routers, as the replica last said if that is fresh; at least what this one has sent."""
        return max(self._on_their_way[replica_id], self._replica_queue_len_cache.get(replica_id) or 0)

    def _probe(self, replicas: Sequence[RunningReplica]) -> None:
        """Ask those that have not said their load for a while (10 s): other routers may have filled them."""
        unknown = [r for r in replicas if self._replica_queue_len_cache.get(r.replica_id) is None]
        if unknown and not self._probing:
            task = asyncio.ensure_future(self._probe_queue_lens(unknown, 0))
            self._probing.add(task)
            task.add_done_callback(self._probing.discard)

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        place = id(pending_request.metadata)
        self._choosing[place] = pending_request
        try:
            replica = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
            # Serve sends it before anything else can run, so it counts without a gap, and never twice.
            self._sending = pending_request
            asyncio.get_running_loop().call_soon(self._sent)
            return replica
        finally:
            del self._choosing[place]
            self._chosen.pop(place, None)

    def _sent(self) -> None:
        self._sending = None

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: Any = None) -> None:
        """Serve's own looks for the request by an id that all jobs of one HTTP request share: it would find the wrong
        one, and then, for the last of them, none at all, for ever."""
        mine = self._choosing.get(id(request_metadata))
        if mine is not None and not mine.future.done():
            self._pending_requests_by_id[mine.metadata.internal_request_id] = mine
            # Many choices are made before the first of them is sent.
            self._chosen[id(request_metadata)] = _Place(_tenant(mine), replica.replica_id)
        super()._fulfill_next_pending_request(replica, request_metadata)

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        self._on_their_way[replica_id] += 1
        if self._sending is not None and (tenant := _tenant(self._sending)):
            request_id = self._sending.metadata.internal_request_id
            _, jobs = self._tenants.get(request_id, ("", 0))
            self._tenants[request_id] = (tenant, jobs + 1)
            self._of_tenant[_Place(tenant, replica_id)] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Also of one that was cancelled, or that never left."""
        super().on_request_completed(replica_id, internal_request_id)
        _less(self._on_their_way, replica_id)
        tenant, jobs = self._tenants.pop(internal_request_id, ("", 0))
        if jobs > 1:
            self._tenants[internal_request_id] = (tenant, jobs - 1)
        if tenant:
            _less(self._of_tenant, _Place(tenant, replica_id))


def _less(counter: Counter[Any], key: Any) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]


def _job(pending: PendingRequest) -> Job | None:
    first = pending.args[0] if pending.args else None
    return first if isinstance(first, Job) else None


def _tenant(pending: PendingRequest) -> str:
    job = _job(pending)
    return job.share.tenant_id if job else ""
