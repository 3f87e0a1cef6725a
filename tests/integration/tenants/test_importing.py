"""A YAML file of tenants: what it says is so, and saying it again changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event

from serve.errors import BadRequest, Conflict, TenantSuspended, Unauthorized, UnknownField
from serve.tenants.importing import apply, read
from serve.tenants.rows import KeyRow, TenantRow
from serve.tenants.showing import shown
from serve.tenants.store import Store
from serve.words import Limits
from tests.support.people import bearer, router

FILE = """
organisations:
  - id: acme
    limits: {budget_per_month: 5000000}
    tenants:
      - id: web
        weight: 2
        band: interactive
        models: [starcoder, starcoder-sql]
        limits: {tokens_per_minute: 60000}
        keys:
          - name: ci
            models: [starcoder]
            expires_at: 2031-01-01T00:00:00Z
          - name: editors
      - id: batch
"""


def test_a_file_is_made_true_and_a_second_time_changes_nothing(store: Store) -> None:
    first = apply(store, read(FILE), "ann")
    assert [d.rsplit(" ", 1)[0] for d in first.done] == [
        "create organisation", "create tenant", "create key", "create key", "create tenant",
    ]  # fmt: skip
    assert [k.key.name for k in first.keys] == ["ci", "editors"]
    number = store.changes_since(0).number
    assert apply(store, read(FILE), "ann", prune=True) == ([], [], [])
    assert store.changes_since(0).number == number
    tenant = router(store).identify(bearer(first.keys[0]))
    assert (tenant.organisation_id, tenant.tenant_id, tenant.weight) == ("acme", "web", 2.0)
    assert tenant.models == frozenset({"starcoder"})
    assert tenant.limits == (
        ("tenant", "web", Limits(tokens_per_minute=60_000)),
        ("organisation", "acme", Limits(budget_per_month=5_000_000)),
    )


def test_a_changed_file_changes_only_what_it_says(store: Store) -> None:
    made = apply(store, read(FILE), "ann").keys
    changed = FILE.replace("weight: 2", "weight: 3").replace("          - name: editors\n", "")
    again = apply(store, read(changed), "ben")
    assert (again.done, again.keys) == (["change tenant web"], [])
    assert router(store).identify(bearer(made[1])).weight == 3.0  # left out of the file, left alone


def test_prune_suspends_what_the_file_does_not_name_and_removes_nothing(store: Store) -> None:
    ci, editors = apply(store, read(FILE), "ann").keys
    less = FILE.replace("          - name: editors\n", "").replace("      - id: batch\n", "")
    pruned = apply(store, read(less), "ann", prune=True)
    assert sorted(pruned.done) == [f"suspend key {editors.key.key_id}", "suspend tenant batch"]
    tenants = router(store)
    assert tenants.identify(bearer(ci)).tenant_id == "web"
    with pytest.raises(TenantSuspended):
        tenants.identify(bearer(editors))
    # Naming it again does not resume it by itself: somebody may have suspended it for a reason.
    again = apply(store, read(FILE), "ann")
    assert (again.done, again.suspended) == ([], ["key editors of web", "tenant batch"])
    told = apply(store, read(FILE.replace("name: editors", "name: editors\n            suspended: false")), "ann")
    assert told.done == [f"resume key {editors.key.key_id}"]


def test_a_file_with_a_mistake_does_nothing_at_all(store: Store) -> None:
    beyond = FILE.replace("models: [starcoder]", "models: [other]")
    with pytest.raises(BadRequest, match="other is not allowed"):
        apply(store, read(beyond), "ann")
    assert store.page("organisation") == []


@pytest.mark.parametrize(
    ("was", "becomes", "sentence"),
    [("weight: 2", "wieght: 2", r"organisations\.0\.tenants\.0\.wieght: unknown field; did you mean `weight`\?"),
     ("tokens_per_minute: 60000", "token_per_minute: 1", r"did you mean `tokens_per_minute`\?"),
     ("name: ci", "name: ci\n            digest: abc", r"keys\.0\.digest: unknown field"),
     ("name: ci", "name: ci\n            scopes: [admin]", r"keys\.0\.scopes"),
     ("weight: 2", "weight: -2", r"tenants\.0\.weight: .*or equal to 0.001"),
     ("expires_at: 2031-01-01T00:00:00Z", "expires_at: 2031-01-01T00:00:00", r"expires_at: .*timezone"),
     ("name: editors", "name: ci", "key of web ci stands there twice"),
     ("id: batch", "id: web", "tenant web stands there twice"),
     ("id: batch", "id: Not An Id", r"tenants\.1\.id"),
     ("organisations:", "organizations:", "did you mean `organisations`"),
     ("id: acme", "id: [", "not YAML")],
)  # fmt: skip
def test_mistakes_are_named_by_their_field(was: str, becomes: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence) as refused:
        read(FILE.replace(was, becomes, 1))
    assert isinstance(refused.value, UnknownField) == ("unknown field" in str(refused.value))


def test_a_tenant_does_not_move_to_another_organisation(store: Store) -> None:
    apply(store, read(FILE), "ann")
    with pytest.raises(Conflict, match="belongs to the organisation acme"):
        apply(store, read(FILE.replace("id: acme", "id: other")), "ann")


def test_what_is_shown_has_times_and_limits_but_no_digest(store: Store) -> None:
    (ci, _) = apply(store, read(FILE), "ann").keys
    key, tenant = store.get("key", ci.key.key_id), store.get("tenant", "web")
    assert isinstance(key, KeyRow)
    assert isinstance(tenant, TenantRow)
    told = shown(key)
    assert (told["expires_at"], told["models"], told["limits"]) == ("2031-01-01T00:00:00+00:00", ["starcoder"], {})
    assert set(told["secrets"][0]) == {"created_at", "expires_at"}
    assert key.secrets[0].digest not in str(told)
    assert shown(tenant)["limits"] == {"tokens_per_minute": 60000}


def many(tenants: int, weight: int) -> str:
    """A file of one organisation with so many tenants, each with a key."""
    told = [f"      - {{id: t{i}, weight: {weight}, keys: [{{name: ci}}]}}" for i in range(tenants)]
    return "\n".join(["organisations:", "  - id: acme", "    tenants:", *told])


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    sent = list[str]()

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(store._engine, "before_cursor_execute", note)
    yield sent
    event.remove(store._engine, "before_cursor_execute", note)


def test_thousands_are_imported_in_a_few_statements_each_with_its_audit_row(store: Store) -> None:
    said = list[str]()
    with statements(store) as sent:
        first = apply(store, read(many(1500, weight=2)), "ann", say=said.append)
    assert len(sent) < 20
    assert said == ["1,000 of 1,500 tenants"]
    assert (len(first.done), len(first.keys)) == (3001, 1500)
    with statements(store) as sent:
        changed = apply(store, read(many(1400, weight=3)), "ben", prune=True)
    assert len(sent) < 20
    assert [d.split()[0] for d in changed.done] == ["change"] * 1400 + ["suspend"] * 100
    assert changed.keys == []
    tenants = router(store)
    assert {tenants.identify(bearer(key)).weight for key in first.keys[:1400]} == {3.0}
    with pytest.raises(TenantSuspended):
        tenants.identify(bearer(first.keys[1450]))
    told = store.audit(most=5000)
    assert [(a.act, a.actor) for a in told[:1500]] == [("suspend", "ben")] * 100 + [("change", "ben")] * 1400
    assert len(told) == 1500 + 3001
    assert told[1499].changes == {"weight": [2.0, 3.0]}
    number = store.changes_since(0).number
    assert apply(store, read(many(1400, weight=3)), "ben", prune=True) == ([], [], [])
    assert store.changes_since(0).number == number


def test_whatever_an_act_does_among_many_it_does_as_if_alone(store: Store) -> None:
    (ci, editors) = apply(store, read(FILE), "ann").keys
    with store.acting("ben") as acts:
        acts.expect_many()
        wanted = read(many(1, weight=2)).organisations[0].tenants[0]
        acts.create_tenant("t0", "acme", wanted)
        new = acts.create_key("t0", wanted.keys[0])
        with pytest.raises(Conflict):
            acts.create_key("t0", wanted.keys[0])
        assert [getattr(k, "secrets", None) for k in acts.page("key", "t0")] == [new.key.secrets]
        acts.suspend("tenant", "t0")
        acts.resume("tenant", "t0")
        rotated = acts.rotate(ci.key.key_id, 60)
        acts.remove("key", editors.key.key_id)
        again = acts.rotate(new.key.key_id, 0)
    tenants = router(store)
    assert tenants.identify(bearer(rotated)) == tenants.identify(bearer(ci))
    assert tenants.identify(bearer(again)).tenant_id == "t0"
    for gone in (new, editors):
        with pytest.raises(Unauthorized):
            tenants.identify(bearer(gone))
