"""The ledger: a row per request, and counters of refusals beyond those with a row."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"
branch_labels = depends_on = None

WORDS = ("code", "router", "engine", "organisation_id", "tenant_id", "key_id", "model", "adapter", "form", "template")
COUNTS = ("jobs", "prompt_tokens", "computed_prompt_tokens", "cached_tokens", "output_tokens", "cost")


def upgrade() -> None:
    op.create_table(
        "ledger",
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("opened_s", sa.Double, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("closed_s", sa.Double),
        sa.Column("outcome", sa.String, nullable=False),
        *(sa.Column(name, sa.String, nullable=False) for name in WORDS),
        sa.Column("stream", sa.Boolean, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in COUNTS),
        *(sa.Column(name, sa.Double) for name in ("queue_s", "ttft_s", "duration_s")),
    )
    op.create_index("ledger_by_tenant", "ledger", ["tenant_id", "opened_s"])
    op.create_index("ledger_by_time", "ledger", ["opened_s", "request_id"])
    still_open = sa.text("closed_s IS NULL")
    op.create_index("ledger_open", "ledger", ["router"], sqlite_where=still_open, postgresql_where=still_open)
    op.create_table(
        "ledger_refusals",
        sa.Column("router", sa.String, primary_key=True),
        sa.Column("minute_s", sa.BigInteger, primary_key=True),
        sa.Column("key_id", sa.String, primary_key=True),
        sa.Column("code", sa.String, primary_key=True),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("organisation_id", sa.String, nullable=False),
        sa.Column("tenant_id", sa.String, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
    )
    op.create_index("ledger_refusals_by_tenant", "ledger_refusals", ["tenant_id", "minute_s"])
    op.create_index("ledger_refusals_by_time", "ledger_refusals", ["minute_s"])


def downgrade() -> None:
    op.drop_table("ledger_refusals")
    op.drop_table("ledger")
