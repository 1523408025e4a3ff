"""Indexes for pages of orders by creation, and for orders past their deadline."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
phase = "expand"

BEFORE = {
    "ix_orders_status_order_id": ["status", "order_id"],
    "ix_orders_user_id_order_id": ["user_id", "order_id"],
}
AFTER = {
    "ix_orders_created_at_order_id": ["created_at", "order_id"],
    "ix_orders_user_id_created_at_order_id": ["user_id", "created_at", "order_id"],
    "ix_orders_status_created_at_order_id": ["status", "created_at", "order_id"],
}


def upgrade() -> None:
    """Orders are paged by (created_at, order_id)."""
    for name, columns in AFTER.items():
        op.create_index(name, "orders", columns)
    for name in BEFORE:
        op.drop_index(name, "orders")
    op.create_index(
        "ix_orders_unsettled", "orders", ["created_at"], postgresql_where=sa.text("status IN ('PENDING', 'RESERVED')")
    )


def downgrade() -> None:
    """Orders are paged by order_id."""
    op.drop_index("ix_orders_unsettled", "orders")
    for name, columns in BEFORE.items():
        op.create_index(name, "orders", columns)
    for name in AFTER:
        op.drop_index(name, "orders")
