"""Organisations, tenants and keys as a YAML file says them. Importing it again changes nothing.

What the file leaves out is left alone: fields, and with `prune` off whole objects too. `prune` suspends what the
file does not name and removes nothing. A secret cannot stand in the file; a new key's is made and told once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from serve.errors import BadRequest, Conflict
from serve.tenants.acts import Acts
from serve.tenants.given import Id, KeyGiven, KeyName, OrganisationGiven, TenantGiven, explained
from serve.tenants.rows import KeyRow, NewKey, OrganisationRow, Row, TenantRow
from serve.tenants.store import Store
from serve.words import Level

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same YAML, ten times as fast
_TOLD_EACH = 1000  # tenants


class WantedKey(KeyGiven):
    name: KeyName


class WantedTenant(TenantGiven):
    id: Id
    keys: tuple[WantedKey, ...] = ()


class WantedOrganisation(OrganisationGiven):
    id: Id
    tenants: tuple[WantedTenant, ...] = ()


class Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    organisations: tuple[WantedOrganisation, ...]

    @model_validator(mode="after")
    def _named_once(self) -> Wanted:
        tenants = [t for o in self.organisations for t in o.tenants]
        _once("organisation", [o.id for o in self.organisations])
        _once("tenant", [t.id for t in tenants])
        for tenant in tenants:
            _once(f"key of {tenant.id}", [k.name for k in tenant.keys])
        return self


class Imported(NamedTuple):
    """`done`: each act in words; nothing when the store was so already. `suspended`: named, but suspended still."""

    done: list[str]
    keys: list[NewKey]
    suspended: list[str]


def read(text: str | bytes) -> Wanted:
    """What a file wants; BadRequest names the first field that is wrong."""
    try:
        raw = yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as e:
        raise BadRequest(f"not YAML: {e}") from None
    except (ValueError, OverflowError, RecursionError) as e:  # a 30th of February, a number of 5,000 digits
        raise BadRequest(f"not YAML: {e}") from None
    if not isinstance(raw, dict):
        raise BadRequest("a file of tenants is a mapping that starts with `organisations:`")
    try:
        return Wanted.model_validate(raw)
    except ValidationError as e:
        raise explained(e, Wanted) from None


def apply(
    store: Store, wanted: Wanted, actor: str, prune: bool = False, say: Callable[[str], None] | None = None
) -> Imported:
    """Make the store as the file wants it, in one transaction: all of it or nothing. `say`: how far it has come."""
    tenants, looked_at = sum(len(o.tenants) for o in wanted.organisations), 0
    with store.acting(actor) as acts:
        acts.expect_many()
        keys, suspended = list[NewKey](), list[str]()
        for organisation in wanted.organisations:
            _put(acts, "organisation", organisation.id, organisation, suspended)
            for tenant in organisation.tenants:
                _put(acts, "tenant", tenant.id, tenant, suspended, organisation.id)
                keys += _put_keys(acts, tenant, suspended)
                looked_at += 1
                if say and looked_at % _TOLD_EACH == 0:
                    say(f"{looked_at:,} of {tenants:,} tenants")
        if prune:
            _prune(acts, wanted)
        return Imported([f"{act} {level} {name}" for act, level, name in acts.told], keys, suspended)


def _put(
    acts: Acts,
    level: Level,
    object_id: str,
    given: WantedOrganisation | WantedTenant,
    suspended: list[str],
    parent_id: str = "",
) -> None:
    row: Row | None = acts.find(level, object_id)
    if isinstance(given, WantedOrganisation):
        row = acts.change(level, object_id, given) if row else acts.create_organisation(object_id, given)
    elif isinstance(row, TenantRow) and row.organisation_id != parent_id:
        raise Conflict(f"the tenant {object_id} belongs to the organisation {row.organisation_id}", "organisations")
    else:
        row = acts.change(level, object_id, given) if row else acts.create_tenant(object_id, parent_id, given)
    if row.suspended and not given.suspended:
        suspended.append(f"{level} {object_id}")


def _put_keys(acts: Acts, tenant: WantedTenant, suspended: list[str]) -> list[NewKey]:
    there = {k.name: k for k in acts.page("key", tenant.id) if isinstance(k, KeyRow)}
    new = list[NewKey]()
    for given in tenant.keys:
        key = there.get(given.name)
        if key is None:
            new.append(acts.create_key(tenant.id, given))
        elif acts.change("key", key.key_id, given).suspended and not given.suspended:
            suspended.append(f"key {given.name} of {tenant.id}")
    return new


def _prune(acts: Acts, wanted: Wanted) -> None:
    """Suspend what is not named. What is below a suspended organisation or tenant is refused with it."""
    named = {o.id: {t.id: {k.name for k in t.keys} for t in o.tenants} for o in wanted.organisations}
    for organisation in acts.page("organisation"):
        assert isinstance(organisation, OrganisationRow)
        if organisation.organisation_id not in named:
            acts.suspend("organisation", organisation.organisation_id)
            continue
        tenants = named[organisation.organisation_id]
        for tenant in acts.page("tenant", organisation.organisation_id):
            assert isinstance(tenant, TenantRow)
            if tenant.tenant_id not in tenants:
                acts.suspend("tenant", tenant.tenant_id)
                continue
            for key in acts.page("key", tenant.tenant_id):
                assert isinstance(key, KeyRow)
                if key.name not in tenants[tenant.tenant_id]:
                    acts.suspend("key", key.key_id)


def _once(what: str, names: list[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"the {what} {name} stands there twice")
