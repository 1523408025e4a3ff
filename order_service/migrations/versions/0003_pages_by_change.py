"""Add the indexes for pages of orders by their last change."""

from shared.migrations import create_indexes, drop_indexes

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
phase = "expand"

INDEXES = {
    "ix_orders_updated_at_order_id": ["updated_at", "order_id"],
    "ix_orders_user_id_updated_at_order_id": ["user_id", "updated_at", "order_id"],
    "ix_orders_status_updated_at_order_id": ["status", "updated_at", "order_id"],
}


def upgrade() -> None:
    """Orders are also paged by (updated_at, order_id)."""
    create_indexes("orders", INDEXES)


def downgrade() -> None:
    """Orders are paged by (created_at, order_id) only."""
    drop_indexes("orders", INDEXES)
