"""Add the index of a user's open orders."""

from shared.migrations import create_indexes, drop_indexes

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
phase = "expand"

INDEXES = {"ix_orders_open_of_user": ["user_id"]}


def upgrade() -> None:
    """Before an order is made, its user's open orders are counted."""
    create_indexes("orders", INDEXES, where="status IN ('PENDING', 'RESERVED')")


def downgrade() -> None:
    """Without the index all orders of the user are read."""
    drop_indexes("orders", INDEXES)
