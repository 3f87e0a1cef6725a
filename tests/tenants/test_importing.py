"""A YAML file of tenants: what it says is so, and saying it again changes nothing."""

from __future__ import annotations

import pytest

from serve.errors import BadRequest, Conflict, TenantSuspended, UnknownField
from serve.tenants.importing import apply, read
from serve.tenants.rows import KeyRow, TenantRow
from serve.tenants.showing import shown
from serve.tenants.store import Store
from serve.words import Limits
from tests.tenants.people import bearer, router

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
     ("weight: 2", "weight: -2", r"tenants\.0\.weight: .*greater than 0"),
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
