"""Add the transaction id of each step, for the feed of the steps of all orders."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Every new step gets the id of its transaction."""
    # A constant default changes no row on disk, so the table is locked for a moment only. Existing steps read 0 and
    # therefore come first, in the order of their ids.
    op.add_column("order_events", sa.Column("xid", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.alter_column("order_events", "xid", server_default=sa.text("(pg_current_xact_id()::text::bigint)"))
    op.create_index("ix_order_events_xid_id", "order_events", ["xid", "id"])


def downgrade() -> None:
    """Drop the transaction ids."""
    op.drop_index("ix_order_events_xid_id", "order_events")
    op.drop_column("order_events", "xid")
