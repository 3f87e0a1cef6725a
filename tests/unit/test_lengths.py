"""What is held for an answer is what this tenant's answers usually need."""

from __future__ import annotations

from serve.lengths import ENOUGH, FIRST_TOKENS, SAMPLES, Kind, Lengths

CHAT = Kind("acme", "m", "chat")


def noted(lengths: Lengths, kind: Kind, tokens: list[int]) -> Lengths:
    for count in tokens:
        lengths.note(kind, count)
    return lengths


def test_until_enough_is_known_a_sensible_part_of_max_tokens_is_held() -> None:
    lengths = noted(Lengths(), CHAT, [5] * (ENOUGH - 1))
    assert lengths.expected(CHAT, 100) == 100
    assert lengths.expected(CHAT, 8000) == FIRST_TOKENS


def test_then_the_ninetieth_percentile_and_never_more_than_max_tokens() -> None:
    lengths = noted(Lengths(), CHAT, list(range(1, 41)))
    assert lengths.expected(CHAT, 8000) == 36
    assert lengths.expected(CHAT, 20) == 20


def test_empty_answers_still_hold_a_token() -> None:
    assert noted(Lengths(), CHAT, [0] * ENOUGH).expected(CHAT, 100) == 1


def test_old_answers_are_forgotten() -> None:
    lengths = noted(Lengths(), CHAT, [1000] * SAMPLES + [10] * SAMPLES)
    assert lengths.expected(CHAT, 8000) == 10


def test_tenants_models_and_forms_are_apart() -> None:
    lengths = noted(Lengths(), CHAT, [10] * SAMPLES)
    for other in (CHAT._replace(tenant_id="b"), CHAT._replace(model="n"), CHAT._replace(form="fim")):
        assert lengths.expected(other, 100) == 100


def test_memory_is_bounded_and_the_least_recent_goes_first() -> None:
    lengths = Lengths(kinds=2)
    kinds = [CHAT._replace(tenant_id=str(i)) for i in range(3)]
    for kind in kinds:
        noted(lengths, kind, [10] * SAMPLES)
    assert [lengths.expected(kind, 100) for kind in kinds] == [100, 10, 10]
