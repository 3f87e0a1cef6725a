"""What administrators do: kept whole, told in the audit log, and never more than they may give."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import ValidationError
from sqlalchemy import text

from serve.errors import BadRequest, Conflict, NotFound
from serve.tenants.given import CeilingsGiven, KeyGiven, LimitsGiven, OrganisationGiven, TenantGiven
from serve.tenants.rows import KeyRow, TenantRow
from serve.tenants.store import Store
from serve.tenants.tables import METADATA
from serve.words import Ceilings, Limits
from tests.support.people import made


def everything(store: Store) -> str:
    """Every row of every table, as text."""
    with store._engine.connect() as connection:
        return "\n".join(
            str(row) for t in METADATA.sorted_tables for row in connection.execute(text(f"SELECT * FROM {t.name}"))
        )


def test_migrations_make_exactly_these_tables(store: Store) -> None:
    def ours(_: Any, name: str | None, kind: str, *rest: Any) -> bool:
        return kind != "table" or name in METADATA.tables

    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": ours, "compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_what_may_be_set_is_what_a_router_knows() -> None:
    assert set(LimitsGiven.model_fields) == {f.name for f in fields(Limits)}
    assert set(CeilingsGiven.model_fields) == {f.name for f in fields(Ceilings)}


def test_each_act_stands_in_the_audit_log_with_its_actor(store: Store) -> None:
    key = made(store).key
    with store.acting("ann") as acts:
        acts.change("tenant", "web", TenantGiven.model_validate({"weight": 3, "limits": {"tokens_per_minute": 9}}))
    with store.acting("ben") as acts:
        acts.suspend("key", key.key_id)
        acts.resume("key", key.key_id)
        acts.rotate(key.key_id, 60)
        acts.remove("key", key.key_id)
    told = [(row.actor, row.act, row.level, row.object_id) for row in reversed(store.audit())]
    assert told == [
        ("tester", "create", "organisation", "acme"), ("tester", "create", "tenant", "web"),
        ("tester", "create", "key", key.key_id), ("ann", "change", "tenant", "web"),
        ("ben", "suspend", "key", key.key_id), ("ben", "resume", "key", key.key_id),
        ("ben", "rotate", "key", key.key_id), ("ben", "revoke", "key", key.key_id),
    ]  # fmt: skip
    (changed,) = [row for row in store.audit("web") if row.act == "change"]
    assert changed.changes == {"weight": [1.0, 3.0], "limits": [{}, {"tokens_per_minute": 9}]}
    last = store.audit(most=1)[0]
    assert [row.act for row in store.audit(before=last.audit_id, most=2)] == ["rotate", "resume"]


def test_a_change_that_changes_nothing_is_not_told(store: Store) -> None:
    made(store, tenant={"weight": 2})
    number, told = store.changes_since(0).number, len(store.audit())
    with store.acting("ann") as acts:
        acts.change("tenant", "web", TenantGiven(weight=2.0))
        acts.resume("tenant", "web")
    assert (store.changes_since(0).number, len(store.audit())) == (number, told)


def test_acts_of_one_transaction_are_kept_all_or_none(store: Store) -> None:
    def twice() -> None:
        with store.acting("ann") as acts:
            acts.create_organisation("acme", OrganisationGiven())
            acts.create_organisation("acme", OrganisationGiven())

    with pytest.raises(Conflict):
        twice()
    assert (store.page("organisation"), store.audit()) == ([], [])


def test_only_what_is_given_changes_and_null_takes_a_limit_away(store: Store) -> None:
    made(store, tenant={"limits": {"tokens_per_minute": 5, "concurrent_requests": 0}, "models": ["a"]})
    with store.acting("ann") as acts:
        after = acts.change("tenant", "web", TenantGiven.model_validate({"limits": {"tokens_per_minute": None}}))
    assert isinstance(after, TenantRow)
    assert after.limits == Limits(concurrent_requests=0)
    assert after.models == frozenset({"a"})
    with store.acting("ann") as acts:
        after = acts.change("tenant", "web", TenantGiven.model_validate({"models": None}))
    assert isinstance(after, TenantRow)
    assert after.models is None
    assert store.get("tenant", "web") == after


@pytest.mark.parametrize("given", [
    {"weight": 0}, {"weight": None}, {"band": "royal"}, {"limits": {"tokens_per_minute": -1}},
    {"limits": {"tokens_per_minute": 1.5}}, {"limits": {"tokens_per_week": 1}}, {"models": ["a b"]}, {"removed": True},
    {"organisation_id": "other"}, {"change": 1}, {"suspended": None},
])  # fmt: skip
def test_what_nobody_may_set_or_no_sense_can_be_made_of_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TenantGiven.model_validate(given)


def test_a_key_gets_no_model_that_its_tenant_has_not(store: Store) -> None:
    key = made(store, tenant={"models": ["a", "b"]}, key={"models": ["a"]}).key
    with store.acting("ann") as acts:
        with pytest.raises(BadRequest, match="c is not allowed"):
            acts.create_key("web", KeyGiven(name="more", models=frozenset("ac")))
        with pytest.raises(BadRequest, match="c is not allowed"):
            acts.change("key", key.key_id, KeyGiven(models=frozenset("c")))
    with pytest.raises(ValidationError):
        KeyGiven.model_validate({"scopes": ["admin"]})


def test_names_and_ids_have_one_owner_for_ever(store: Store) -> None:
    key = made(store).key
    with store.acting("ann") as acts:
        with pytest.raises(Conflict, match="named ci"):
            acts.create_key("web", KeyGiven(name="ci"))
        acts.remove("key", key.key_id)
        other = acts.create_key("web", KeyGiven(name="ci")).key
        assert other.key_id != key.key_id
        acts.remove("tenant", "web")
        with pytest.raises(Conflict, match="not given twice"):
            acts.create_tenant("web", "acme", TenantGiven())
    for level, gone in (("tenant", "web"), ("key", key.key_id), ("key", other.key_id)):
        with pytest.raises(NotFound):
            store.get(level, gone)  # type: ignore[arg-type]
    assert store.page("key") == store.page("tenant") == []


def test_a_key_has_at_most_two_live_secrets(store: Store) -> None:
    key = made(store).key
    with store.acting("ann") as acts:
        assert len(acts.rotate(key.key_id, 3600).key.secrets) == 2
        with pytest.raises(Conflict, match="two live secrets"):
            acts.rotate(key.key_id, 3600)
        only = acts.rotate(key.key_id, 0).key
    assert [s.expires_at for s in only.secrets] == [None]
    assert store.get("key", key.key_id) == only


def test_no_row_error_or_log_holds_a_secret(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    first = made(store)
    with store.acting("ann") as acts:
        second = acts.rotate(first.key.key_id, 60)
        with pytest.raises(Conflict) as refused:
            acts.create_key("web", KeyGiven(name="ci"))
    shown = everything(store) + caplog.text + repr(refused.value) + repr((first, second)) + str(second)
    for key in (first, second):
        secret = key.secret.reveal().split("_")[1]
        assert len(secret) == 64
        assert secret not in shown
    digests = [s.digest for s in second.key.secrets]
    assert all(d in everything(store) for d in digests)
    assert not any(d in repr(store.audit()) + repr(second) for d in digests)


def test_administrators_act_one_after_another(store: Store) -> None:
    made(store)

    def create(i: int) -> KeyRow:
        with store.acting(f"a{i}") as acts:
            return acts.create_key("web", KeyGiven(name=f"k{i}")).key

    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(create, range(12)))
    assert len({k.key_id for k in keys}) == 12
    assert store.changes_since(0).number == 13


def test_pages_follow_each_other_and_keep_to_their_parent(store: Store) -> None:
    made(store)
    with store.acting("ann") as acts:
        acts.create_tenant("app", "acme", TenantGiven())
        other = acts.create_key("app", KeyGiven(name="ci")).key
        ids = sorted(acts.create_key("web", KeyGiven(name=f"k{i}")).key.key_id for i in range(4))
    whole = [k for k in store.page("key", "web") if isinstance(k, KeyRow)]
    assert set(ids) < {k.key_id for k in whole}
    first, rest = store.page("key", "web", most=2), store.page("key", "web", after=whole[1].key_id)
    assert first + rest == whole
    assert all(len(k.secrets) == 1 for k in whole)
    assert store.page("key", "app") == [other]
