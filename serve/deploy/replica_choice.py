"""Affinity for Ray Serve: a router's own choice of an engine replica, by `serve.affinity` and the loads it knows.

It stands where Serve's power of two choices stands, inside each router process. Waiting for a first replica, back-off,
probing, retries after a death and cancellation remain Serve's own.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve.affinity import key_of, ranked
from serve.words import Job


def affinity(blocks: int, preambles: Sequence[Sequence[int]]) -> RequestRouterConfig:
    """For an engine's deployment. Arguments as in `serve.affinity.key_of`."""
    return RequestRouterConfig(
        request_router_class=f"{__name__}.AffinityRouter",
        request_router_kwargs={"blocks": blocks, "preambles": [list(p) for p in preambles]},
    )


class AffinityRouter(RequestRouter):  # type: ignore[misc]
    """What is no job (a question whether the engine lives) goes to one of two replicas at random."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_their_way = Counter[ReplicaID]()  # from this router
        self._choosing = dict[int, PendingRequest]()  # by the id of their metadata, which is all that Serve hands on
        self._chosen = dict[int, ReplicaID]()  # the same, when they have a replica but are not sent yet
        self._probing = set[asyncio.Task[Any]]()

    def initialize_state(self, blocks: int, preambles: Sequence[Sequence[int]]) -> None:
        self._blocks, self._preambles = blocks, [tuple(p) for p in preambles]

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each: the next is tried when the one before is dead, or does not say its load."""
        key = None
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # or Serve would ask again without a pause
            job = pending_request.args[0] if pending_request.args else None
            if isinstance(job, Job):
                key = key_of(job.share.tenant_id, job.adapter, job.prompt_ids, self._blocks, self._preambles)
        if key is None:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        self._probe(candidate_replicas)
        by_name = {r.replica_id.unique_id: r for r in candidate_replicas}
        unsent = Counter(self._chosen.values())
        loads = {name: self._load(r.replica_id) + unsent[r.replica_id] for name, r in by_name.items()}
        return [[by_name[name]] for name in ranked(key, loads)]

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
            return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        finally:
            # Serve sends it before anything else can run, so it counts without a gap, and never twice.
            del self._choosing[place]
            self._chosen.pop(place, None)

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: Any = None) -> None:
        """Serve's own looks for the request by an id that all jobs of one HTTP request share: it would find the wrong
        one, and then, for the last of them, none at all, for ever."""
        mine = self._choosing.get(id(request_metadata))
        if mine is not None and not mine.future.done():
            self._pending_requests_by_id[mine.metadata.internal_request_id] = mine
            # Many choices are made before the first of them is sent.
            self._chosen[id(request_metadata)] = replica.replica_id
        super()._fulfill_next_pending_request(replica, request_metadata)

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        self._on_their_way[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Also of one that was cancelled, or that never left."""
        super().on_request_completed(replica_id, internal_request_id)
        self._on_their_way[replica_id] -= 1
        if self._on_their_way[replica_id] <= 0:
            del self._on_their_way[replica_id]
