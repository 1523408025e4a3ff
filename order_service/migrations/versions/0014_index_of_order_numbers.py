"""Build the index of the numbers of orders."""

from shared.migrations import create_indexes, drop_indexes

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None
phase = "expand"

INDEXES = {"uq_orders_order_no": ["order_no"]}


def upgrade() -> None:
    """Build it while others write."""
    create_indexes("orders", INDEXES, unique=True)


def downgrade() -> None:
    """Drop it."""
    drop_indexes("orders", INDEXES)
