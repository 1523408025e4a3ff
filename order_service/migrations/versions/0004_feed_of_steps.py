"""Add the transaction id of each step, for the feed of the steps of all orders."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
phase = "expand"

COLUMNS = {"order_events": "xid", "orders": "feed_xid"}


def upgrade() -> None:
    """Every new step gets the id of its transaction, and its order keeps the largest."""
    # A constant default changes no row on disk, so each table is locked for a moment only. Existing steps read 0 and
    # therefore come first, in the order of their ids.
    for table, column in COLUMNS.items():
        op.add_column(table, sa.Column(column, sa.BigInteger, nullable=False, server_default=sa.text("0")))
        op.alter_column(table, column, server_default=sa.text("(pg_current_xact_id()::text::bigint)"))


def downgrade() -> None:
    """Drop the transaction ids."""
    for table, column in COLUMNS.items():
        op.drop_column(table, column)
