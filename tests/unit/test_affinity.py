"""Jobs meet their cache, and no replica gets hot. The loads are simulated."""

from __future__ import annotations

import random
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

import pytest

from serve.affinity import BLOCK_TOKENS, BOUND, SLACK, balanced, common_start, key_of, order_of, ranked
from serve.app import words_of
from serve.jobs import preambles
from serve.model_settings import Model
from serve.prompts import ALPACA_INPUT, ALPACA_NO_INPUT, ASSISTANT_PREAMBLE

BLOCKS = 8
OWN = BLOCKS * BLOCK_TOKENS
NAMES = [f"replica-{i}" for i in range(8)]


def ids(seed: int, number: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(50_000) for _ in range(number))


def keys(number: int) -> list[bytes]:
    found = [key_of("team", None, ids(seed, OWN), BLOCKS) for seed in range(number)]
    return [key for key in found if key is not None]


class Played(NamedTuple):
    got: Counter[str]  # requests of each replica
    worst: float  # the highest load, as a multiple of the mean
    at_home: float  # share of requests that went to their key's favourite


def played(asked: list[bytes], replicas: list[str], at_once: int) -> Played:
    """So many requests are always on their way; the oldest ends when the next comes."""
    loads, running, got, worst, at_home = dict.fromkeys(replicas, 0), deque[str](), Counter[str](), 0.0, 0
    for key in asked:
        if len(running) == at_once:
            loads[running.popleft()] -= 1
        chosen = ranked(key, loads)[0]
        loads[chosen] += 1
        running.append(chosen)
        got[chosen] += 1
        at_home += chosen == order_of(key, replicas)[0]
        if len(running) == at_once:
            worst = max(worst, max(loads.values()) * len(replicas) / at_once)
    return Played(got, worst, at_home / len(asked))


def test_turns_of_a_conversation_share_their_key() -> None:
    history = ids(1, 4000)
    (first, *later) = [key_of("team", None, history[:length], BLOCKS) for length in (OWN, OWN + 1, 600, 4000)]
    assert first is not None
    assert later == [first] * 3


def test_other_tenants_adapters_and_conversations_have_other_keys() -> None:
    prompt, other = ids(1, OWN), ids(2, OWN)
    asked = [("team", None, prompt), ("team", None, other), ("other", None, prompt), ("team", "sql", prompt)]
    assert len({key_of(*job, BLOCKS) for job in asked}) == 4


def test_a_template_s_preamble_is_not_what_conversations_are_told_apart_by() -> None:
    preamble = ids(3, 500)
    prompts = [preamble + ids(seed, OWN) for seed in range(4)]
    assert len({key_of("team", None, p, BLOCKS) for p in prompts}) == 1
    assert len({key_of("team", None, p, BLOCKS, [preamble[:40], preamble, ids(9, 5)]) for p in prompts}) == 4


def test_a_prompt_without_a_block_of_its_own_has_no_key() -> None:
    preamble = ids(3, 500)
    assert key_of("team", None, ids(1, BLOCK_TOKENS - 1), BLOCKS) is None
    assert key_of("team", None, preamble + ids(1, BLOCK_TOKENS - 1), BLOCKS, [preamble]) is None
    assert key_of("team", None, preamble, BLOCKS, [preamble]) is None
    assert key_of("team", None, (), BLOCKS) is None


def test_any_token_id_can_be_hashed() -> None:
    assert key_of("team", None, [2**63] * BLOCK_TOKENS, BLOCKS) is not None


def test_what_all_prompts_begin_with() -> None:
    assert common_start([(1, 2, 3), (1, 2, 4), (1, 2)]) == (1, 2)
    assert common_start([(1, 2), (1, 2)]) == (1, 2)
    assert common_start([(1,), (2,)]) == ()


def test_keys_are_even_over_idle_replicas() -> None:
    got = Counter(order_of(key, NAMES)[0] for key in keys(4000))
    assert min(got.values()) > 0.85 * 4000 / len(NAMES)
    assert max(got.values()) < 1.15 * 4000 / len(NAMES)


def test_every_router_has_the_same_order_however_it_lists_the_replicas() -> None:
    for key in keys(20):
        assert order_of(key, NAMES) == order_of(key, reversed(NAMES))


def test_a_replica_that_joins_takes_its_share_and_moves_nothing_else() -> None:
    asked = keys(2000)
    before = [order_of(key, NAMES)[0] for key in asked]
    after = [order_of(key, [*NAMES, "new"])[0] for key in asked]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"new"}
    assert 0.7 < len(moved) / (len(asked) / (len(NAMES) + 1)) < 1.3


def test_keys_of_a_replica_that_leaves_spread_over_the_rest_and_no_other_moves() -> None:
    gone, asked = NAMES[3], keys(4000)
    left = [name for name in NAMES if name != gone]
    homeless = Counter[str]()
    for key in asked:
        first, second, *_ = order_of(key, NAMES)
        now = order_of(key, left)[0]
        assert now == (second if first == gone else first)
        homeless[now] += first == gone
    share = homeless.total() / len(left)
    assert all(0.5 * share < homeless[name] < 1.5 * share for name in left)


@pytest.mark.parametrize("replicas", [2, 3, 8])
def test_conversations_stay_where_they_are_and_loads_are_bounded(replicas: int) -> None:
    names, conversations, turns, at_once = NAMES[:replicas], keys(600), 6, 16 * replicas
    asked = [key for key in conversations for _ in range(turns)]
    random.Random(5).shuffle(asked)
    got, worst, at_home = played(asked, names, at_once)
    assert at_home > 0.8
    assert worst <= BOUND + 2 * SLACK * replicas / at_once
    assert max(got.values()) < 1.2 * len(asked) / replicas


@pytest.mark.parametrize("replicas", [2, 3, 8])
def test_a_key_that_everybody_asks_for_spills(replicas: int) -> None:
    at_once = 16 * replicas
    got, worst, _ = played(keys(1) * 4000, NAMES[:replicas], at_once)
    assert len(got) >= replicas / BOUND  # as many as the bound needs
    assert worst <= BOUND + 2 * SLACK * replicas / at_once


def test_a_conversation_that_is_alone_is_never_parted() -> None:
    assert len(played(keys(1) * 50, NAMES[:2], at_once=2).got) == 1


def test_above_the_bound_comes_last_and_nobody_is_left_out() -> None:
    (key,) = keys(1)
    home, second, *rest = order_of(key, NAMES)
    assert ranked(key, dict.fromkeys(NAMES, 5)) == [home, second, *rest]
    assert ranked(key, {**dict.fromkeys(NAMES, 5), home: 50}) == [second, *rest, home]
    assert ranked(key, {}) == []


def test_without_a_key_a_tenant_goes_where_it_has_least_then_where_least_is() -> None:
    loads = {"a": 10, "b": 11, "c": 9}
    assert balanced(loads, {"a": 1, "b": 0, "c": 2}) == ["b", "a", "c"]
    assert balanced(loads, {}) == ["c", "a", "b"]
    assert balanced({"a": 1, "b": 1}, {}) == ["a", "b"]
    assert balanced({}, {}) == []


def test_without_a_key_nobody_goes_above_the_bound_while_another_is_within() -> None:
    assert balanced({"a": 30, "b": 10}, {"a": 0, "b": 9}) == ["b", "a"]


@pytest.mark.parametrize("template", ["alpaca", "technical-assistant", "raw"])
def test_the_preambles_of_templates_are_found(starcoder_folder: Path, template: str) -> None:
    engine = {"device": "cpu", "kv_cache_gib": 1}
    named = {"name": "tiny", "source": {"folder": str(starcoder_folder)}, "context_tokens": 512, "engine": engine}
    model = Model.model_validate({**named, "templates": {"chat": template, "instruct": "alpaca"}})
    vocabulary, prompts = words_of(model, starcoder_folder)
    texts = {vocabulary.decode(found) for found in preambles(prompts, vocabulary)}
    expected = {f"{frame}### Instruction:\n" for frame in (ALPACA_NO_INPUT, ALPACA_INPUT)}
    assert texts == expected | ({f"{ASSISTANT_PREAMBLE}Human:"} if template == "technical-assistant" else set())
