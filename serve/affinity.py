"""Which replica of a model a job goes to: balanced, or where turns of a conversation find their cache. Pure: loads are
given.

A job's key is made of its tenant, its adapter and the first blocks of its prompt. What a conversation adds comes at its
end, so its turns share their key; prefix caches are the tenant's alone, so tenants never do. By rendezvous hashing
each key has an order of the replicas, the same in every router: one that joins takes an even share of the keys, and
those of one that leaves are spread over the rest. Nobody else's move.

The job goes to the first replica of its order whose load is within the bound (after Mirrokni et al., "Consistent
Hashing with Bounded Loads", SODA 2018): a key that everybody asks for spills to its next replica, and makes none hot.

A job without a key goes where its tenant has least, within the same bound. Fair turns are taken in each replica by
itself: a tenant whose few jobs meet in one of them would get its share of that one alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

BLOCK_TOKENS = 16  # what prefix caches share is whole blocks
BOUND = 1.25  # times the mean load
SLACK = 1  # requests above that: with two replicas and one answer on its way, the bound alone would part a conversation

Ids = Sequence[int]


def key_of(
    tenant_id: str, adapter: str | None, prompt_ids: Ids, blocks: int, preambles: Iterable[Ids] = ()
) -> bytes | None:
    """The key of a job, of at most so many whole blocks. None: its prompt has no block of its own, any replica will do.

    `preambles`: what a template puts before every prompt. It tells no conversations apart, so blocks are counted after
    the longest of them that the prompt begins with.
    """
    shared = max((len(p) for p in preambles if tuple(prompt_ids[: len(p)]) == tuple(p)), default=0)
    own = min(blocks, (len(prompt_ids) - shared) // BLOCK_TOKENS) * BLOCK_TOKENS
    if own <= 0:
        return None
    hashed = blake2b(f"{tenant_id}\0{adapter or ''}\0".encode(), digest_size=16)
    hashed.update(array("Q", prompt_ids[shared : shared + own]).tobytes())
    return hashed.digest()


def order_of(key: bytes, replicas: Iterable[str]) -> list[str]:
    """All replicas, the key's favourite first."""
    return sorted(replicas, key=lambda name: blake2b(name.encode(), digest_size=8, key=key).digest())


def ranked(key: bytes, loads: Mapping[str, int]) -> list[str]:
    """The replicas in the order in which they should be tried. `loads`: requests of each, waiting or at work."""
    most = _most(loads)
    # Stable: within the bound, and above it, the key's own order holds. The least loaded is always within.
    return sorted(order_of(key, loads), key=lambda name: loads[name] > most)


def balanced(loads: Mapping[str, int], own: Mapping[str, int]) -> list[str]:
    """The same for a job without a key. `own`: of its tenant, 0 where there is none. Ties keep the order of `loads`."""
    most = _most(loads)
    return sorted(loads, key=lambda name: (loads[name] > most, own.get(name, 0), loads[name]))


def _most(loads: Mapping[str, int]) -> float:
    return BOUND * sum(loads.values()) / max(1, len(loads)) + SLACK


def common_start(prompts: Sequence[Ids]) -> tuple[int, ...]:
    """The ids with which all of them begin."""
    shared = 0
    while all(len(p) > shared and p[shared] == prompts[0][shared] for p in prompts):
        shared += 1
    return tuple(prompts[0][:shared])
