"""What a router holds in memory: from an API key to its tenant, without any waiting."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable

from serve.errors import TenantSuspended, Unauthorized
from serve.tenants import keys
from serve.tenants.rows import NO_LIMITS, Changes, KeyRow, OrganisationRow, SecretRow, TenantRow
from serve.tenants.store import Store
from serve.words import Level, Limits, Secret, Tenant

_NONE = SecretRow(keys.NOBODY)


class Tenants:
    """All keys of a deployment with their tenants and organisations, as of change `number`."""

    def __init__(
        self,
        pepper: Secret,
        organisations: Iterable[OrganisationRow] = (),
        tenants: Iterable[TenantRow] = (),
        keys: Iterable[KeyRow] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pepper, self._clock = pepper, clock
        self.apply(Changes(0, True, tuple(organisations), tuple(tenants), tuple(keys)))

    def identify(self, authorization: str | None) -> Tenant:
        """The tenant of an Authorization header; Unauthorized, or TenantSuspended.

        An unknown id and a wrong secret run the same HMAC and the same two compares, so that time tells nothing; what
        is wrong with a key is told only to those who hold its secret.
        """
        parsed = keys.parse(authorization)
        if parsed is None:
            raise Unauthorized("send an API key of this server as `Authorization: Bearer sk-…`")
        key = self._keys.get(parsed[0])
        digest = keys.digest(self._pepper, parsed[1])
        first, second = _two(key.secrets if key else ())
        is_first, is_second = hmac.compare_digest(digest, first.digest), hmac.compare_digest(digest, second.digest)
        tenant = self._tenants.get(key.tenant_id) if key else None
        organisation = self._organisations.get(tenant.organisation_id) if tenant else None
        if key is None or tenant is None or organisation is None or not (is_first or is_second):
            raise Unauthorized("this API key is not known here, or was revoked")
        self._check(key, first if is_first else second, tenant, organisation)
        return self._tenant(key, tenant, organisation)

    def refresh(self, store: Store) -> None:
        """Take what changed. It blocks, as the store does."""
        self.apply(store.changes_since(self.number))

    def apply(self, changes: Changes) -> None:
        """On the thread that identifies: nobody may see half of it."""
        if changes.whole:
            self._organisations = dict[str, OrganisationRow]()
            self._tenants = dict[str, TenantRow]()
            self._keys = dict[str, KeyRow]()
        for organisation in changes.organisations:
            self._organisations[organisation.organisation_id] = organisation
        for tenant in changes.tenants:
            self._tenants[tenant.tenant_id] = tenant
        for key in changes.keys:
            self._keys[key.key_id] = key
        for removed in (c for c in changes.organisations if c.removed):
            del self._organisations[removed.organisation_id]
        for gone in (c for c in changes.tenants if c.removed):
            del self._tenants[gone.tenant_id]
        for revoked in (c for c in changes.keys if c.removed):
            del self._keys[revoked.key_id]
        self.number = changes.number

    def _check(self, key: KeyRow, secret: SecretRow, tenant: TenantRow, organisation: OrganisationRow) -> None:
        now = self._clock()
        if any(end is not None and end <= now for end in (secret.expires_at, key.expires_at)):
            raise Unauthorized("this API key has expired")
        if key.suspended:
            raise TenantSuspended("this API key is suspended; ask whoever runs this server")
        if tenant.suspended or organisation.suspended:
            raise TenantSuspended("this tenant is suspended; ask whoever runs this server")

    def _tenant(self, key: KeyRow, tenant: TenantRow, organisation: OrganisationRow) -> Tenant:
        """Made anew each time: nothing here can be older than the rows."""
        levels: tuple[tuple[Level, str, Limits], ...] = (
            ("key", key.key_id, key.limits),
            ("tenant", tenant.tenant_id, tenant.limits),
            ("organisation", organisation.organisation_id, organisation.limits),
        )
        return Tenant(
            tenant.tenant_id,
            key.key_id,
            keys.cache_salt(self._pepper, tenant.tenant_id),
            organisation.organisation_id,
            tenant.weight,
            tenant.band,
            _both(key.models, tenant.models),
            key.scopes,
            tenant.ceilings,
            tuple(level for level in levels if level[2] != NO_LIMITS),
        )


def _two(secrets: tuple[SecretRow, ...]) -> tuple[SecretRow, SecretRow]:
    """Always two to compare with, however many there are."""
    padded = (*secrets, _NONE, _NONE)
    return padded[0], padded[1]


def _both(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    """Models that both allow: a key never has more than its tenant, whatever was granted before."""
    if one is None or other is None:
        return other if one is None else one
    return one & other
