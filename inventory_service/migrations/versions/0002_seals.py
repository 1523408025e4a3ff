"""Add the seals of the release audit and the record of its exports."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Add the transaction id of each release, the seals and the exports."""
    now = sa.text("now()")
    moment = sa.DateTime(timezone=True)
    # Existing rows get the id of this transaction, so they come first in the chain.
    op.add_column(
        "inventory_release_events",
        sa.Column("xid", sa.BigInteger, nullable=False, server_default=sa.text("(pg_current_xact_id()::text::bigint)")),
    )
    op.create_index("ix_inventory_release_events_xid_id", "inventory_release_events", ["xid", "id"])
    op.create_table(
        "release_seals",
        sa.Column("seq", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("until_xid", sa.BigInteger, nullable=False),
        sa.Column("until_id", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("sealed_at", moment, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("mac", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_release_seals"),
    )
    op.create_index("ix_release_seals_until_xid_until_id", "release_seals", ["until_xid", "until_id"])
    op.create_table(
        "release_exports",
        sa.Column("export_id", sa.Uuid, nullable=False),
        sa.Column("exported_by", sa.Text, nullable=False),
        sa.Column("roles", ARRAY(sa.Text), nullable=False),
        sa.Column("filters", JSONB, nullable=False),
        sa.Column("sealed_to", sa.BigInteger, nullable=False),
        sa.Column("until_xid", sa.BigInteger, nullable=False),
        sa.Column("until_id", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger),
        sa.Column("sha256", sa.Text),
        sa.Column("started_at", moment, nullable=False, server_default=now),
        sa.Column("finished_at", moment),
        sa.PrimaryKeyConstraint("export_id", name="pk_release_exports"),
    )


def downgrade() -> None:
    """Drop the seals, the exports and the transaction ids."""
    op.drop_table("release_exports")
    op.drop_table("release_seals")
    op.drop_index("ix_inventory_release_events_xid_id", "inventory_release_events")
    op.drop_column("inventory_release_events", "xid")
