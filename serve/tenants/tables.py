"""The tables. Migrations make them; a test holds the two together.

Each act of an administrator takes the next change number from the one row of `tenant_changes`, and every row that it
touches carries that number. The row is locked until the act is committed, so numbers are committed in their order:
who has read up to a number has missed nothing. Rows are never deleted but marked, so that a removal is a change
like any other, and an id that stands in old bills never gets a second owner.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, ForeignKey, Index, Integer, MetaData, String, Table

METADATA = MetaData()
ID_LENGTH = 64
_JSON = JSON(none_as_null=True)
_AUDIT_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only what is called INTEGER

CHANGES = Table(
    "tenant_changes", METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("number", BigInteger, nullable=False),
    Column("pepper_mark", String(64)),  # tells whether a pepper is the one under which the digests were made
)  # fmt: skip

ORGANISATIONS = Table(
    "organisations", METADATA,
    Column("organisation_id", String(ID_LENGTH), primary_key=True),
    Column("limits", _JSON, nullable=False),
    Column("suspended", Boolean, nullable=False),
    Column("removed", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("change", BigInteger, nullable=False),
    Index("organisations_change", "change"),
)  # fmt: skip

TENANTS = Table(
    "tenants", METADATA,
    Column("tenant_id", String(ID_LENGTH), primary_key=True),
    Column("organisation_id", String(ID_LENGTH), ForeignKey(ORGANISATIONS.c.organisation_id), nullable=False),
    Column("weight", Double, nullable=False),
    Column("band", String(16), nullable=False),
    Column("models", _JSON),
    Column("limits", _JSON, nullable=False),
    Column("ceilings", _JSON, nullable=False),
    Column("suspended", Boolean, nullable=False),
    Column("removed", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("change", BigInteger, nullable=False),
    Index("tenants_change", "change"),
    Index("tenants_organisation", "organisation_id"),
)  # fmt: skip

KEYS = Table(
    "api_keys", METADATA,
    Column("key_id", String(32), primary_key=True),
    Column("tenant_id", String(ID_LENGTH), ForeignKey(TENANTS.c.tenant_id), nullable=False),
    Column("name", String(ID_LENGTH), nullable=False),
    Column("scopes", _JSON, nullable=False),
    Column("models", _JSON),
    Column("limits", _JSON, nullable=False),
    Column("expires_at", Double),
    Column("suspended", Boolean, nullable=False),
    Column("removed", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("change", BigInteger, nullable=False),
    Index("api_keys_change", "change"),
    Index("api_keys_tenant", "tenant_id"),
)  # fmt: skip

SECRETS = Table(
    "api_key_secrets", METADATA,
    Column("digest", String(64), primary_key=True),
    Column("key_id", String(32), ForeignKey(KEYS.c.key_id), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Index("api_key_secrets_key", "key_id"),
)  # fmt: skip

AUDIT = Table(
    "tenant_audit", METADATA,
    Column("audit_id", _AUDIT_ID, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("act", String(32), nullable=False),
    Column("level", String(16), nullable=False),
    Column("object_id", String(ID_LENGTH), nullable=False),
    Column("changes", _JSON, nullable=False),
    Index("tenant_audit_object", "object_id"),
)  # fmt: skip
