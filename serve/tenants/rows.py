"""What is kept of organisations, tenants and keys, as values. Times are seconds since 1970, of UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from serve.words import Band, Ceilings, Level, Limits, Scope, Secret

NO_LIMITS, NO_CEILINGS = Limits(), Ceilings()  # one object for the many that have none


@dataclass(frozen=True, slots=True)
class OrganisationRow:
    organisation_id: str
    limits: Limits = NO_LIMITS
    suspended: bool = False
    removed: bool = False
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class TenantRow:
    tenant_id: str
    organisation_id: str
    weight: float = 1.0
    band: Band = "standard"
    models: frozenset[str] | None = None  # None is all
    limits: Limits = NO_LIMITS
    ceilings: Ceilings = NO_CEILINGS
    suspended: bool = False
    removed: bool = False
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class SecretRow:
    """One of a key's at most two live secrets. `digest`: hex HMAC-SHA-256 of the secret under the pepper."""

    digest: str = field(repr=False)
    created_at: float = 0.0
    expires_at: float | None = None  # the end of its grace after a rotation


@dataclass(frozen=True, slots=True)
class KeyRow:
    key_id: str
    tenant_id: str
    name: str
    secrets: tuple[SecretRow, ...] = ()
    scopes: frozenset[Scope] = frozenset[Scope](("generate", "usage"))
    models: frozenset[str] | None = None  # None is all of its tenant's
    limits: Limits = NO_LIMITS
    expires_at: float | None = None
    suspended: bool = False
    removed: bool = False
    created_at: float = 0.0


Row = OrganisationRow | TenantRow | KeyRow


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One act of an administrator. `changes`: field → what it was and what it is; never a secret or a digest."""

    audit_id: int
    at: float
    actor: str
    act: str
    level: Level
    object_id: str
    changes: dict[str, list[object]]


class NewKey(NamedTuple):
    """A key and its text, which is told this once."""

    key: KeyRow
    secret: Secret


class Changes(NamedTuple):
    """What changed after some change number. `whole`: it is everything, and what is not in it is gone."""

    number: int
    whole: bool = False
    organisations: tuple[OrganisationRow, ...] = ()
    tenants: tuple[TenantRow, ...] = ()
    keys: tuple[KeyRow, ...] = ()
