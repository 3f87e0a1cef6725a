"""A tenant with a key, made as an administrator makes them."""

from __future__ import annotations

from typing import Any

from serve.tenants.directory import Tenants
from serve.tenants.given import KeyGiven, OrganisationGiven, TenantGiven
from serve.tenants.rows import NewKey
from serve.tenants.store import Store


def made(store: Store, key: dict[str, Any] | None = None, tenant: dict[str, Any] | None = None) -> NewKey:
    """The organisation acme, its tenant web, and a key."""
    with store.acting("tester") as acts:
        acts.create_organisation("acme", OrganisationGiven())
        acts.create_tenant("web", "acme", TenantGiven.model_validate(tenant or {}))
        return acts.create_key("web", KeyGiven.model_validate({"name": "ci", **(key or {})}))


def bearer(key: NewKey) -> str:
    return f"Bearer {key.secret.reveal()}"


def router(store: Store, **clock: Any) -> Tenants:
    """What a router holds just after its start."""
    tenants = Tenants(store.pepper, **clock)
    tenants.refresh(store)
    return tenants
