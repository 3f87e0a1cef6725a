"""The place of the tenants' tables in the chain."""

from __future__ import annotations

revision, down_revision = "0001", None
branch_labels = depends_on = None


def upgrade() -> None:
    """Nothing yet."""


def downgrade() -> None:
    """Nothing yet."""
