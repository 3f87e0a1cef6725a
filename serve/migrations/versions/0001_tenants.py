"""Organisations, tenants, keys, their secrets, and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tenant_changes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("pepper_mark", sa.String(64)),
    )
    op.execute("INSERT INTO tenant_changes (id, number) VALUES (1, 0)")
    op.create_table(
        "organisations",
        sa.Column("organisation_id", sa.String(64), primary_key=True),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("suspended", sa.Boolean, nullable=False),
        sa.Column("removed", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("change", sa.BigInteger, nullable=False),
    )
    op.create_index("organisations_change", "organisations", ["change"])
    op.create_table(
        "tenants",
        sa.Column("tenant_id", sa.String(64), primary_key=True),
        sa.Column("organisation_id", sa.String(64), sa.ForeignKey("organisations.organisation_id"), nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("band", sa.String(16), nullable=False),
        sa.Column("models", sa.JSON),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("ceilings", sa.JSON, nullable=False),
        sa.Column("suspended", sa.Boolean, nullable=False),
        sa.Column("removed", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("change", sa.BigInteger, nullable=False),
    )
    op.create_index("tenants_change", "tenants", ["change"])
    op.create_index("tenants_organisation", "tenants", ["organisation_id"])
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("tenant_id", sa.String(64), sa.ForeignKey("tenants.tenant_id"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("models", sa.JSON),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("suspended", sa.Boolean, nullable=False),
        sa.Column("removed", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("change", sa.BigInteger, nullable=False),
    )
    op.create_index("api_keys_change", "api_keys", ["change"])
    op.create_index("api_keys_tenant", "api_keys", ["tenant_id"])
    op.create_table(
        "api_key_secrets",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(32), sa.ForeignKey("api_keys.key_id"), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
    )
    op.create_index("api_key_secrets_key", "api_key_secrets", ["key_id"])
    op.create_table(
        "tenant_audit",
        sa.Column("audit_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("act", sa.String(32), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("object_id", sa.String(64), nullable=False),
        sa.Column("changes", sa.JSON, nullable=False),
    )
    op.create_index("tenant_audit_object", "tenant_audit", ["object_id"])
