"""Build the index of orders by what they hold."""

from shared.migrations import create_indexes, drop_indexes

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None
phase = "expand"

INDEXES = {"ix_order_items_sku_order_id": ["sku", "order_id"]}


def upgrade() -> None:
    """Build it while others write."""
    create_indexes("order_items", INDEXES)


def downgrade() -> None:
    """Drop it."""
    drop_indexes("order_items", INDEXES)
