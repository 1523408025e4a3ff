"""Drop the indexes of orders and their steps that no query needs."""

import sqlalchemy as sa
from alembic import op

from shared.migrations import lock_in_short_attempts, replace_primary_key

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nobody looks for a row by its id alone; the new key serves the queries of the index that is dropped."""
    replace_primary_key("order_events", "uq_order_events_order_id_id")
    op.drop_index("ix_order_events_order_id_id", "order_events")
    # Orders past their deadline are found by status and time of creation.
    lock_in_short_attempts("orders")
    op.drop_index("ix_orders_unsettled", "orders")


def downgrade() -> None:
    """Build the indexes of before."""
    op.drop_constraint("pk_order_events", "order_events")
    op.create_primary_key("pk_order_events", "order_events", ["id"])
    op.create_index("ix_order_events_order_id_id", "order_events", ["order_id", "id"])
    op.create_index("uq_order_events_order_id_id", "order_events", ["order_id", "id"], unique=True)
    op.create_index(
        "ix_orders_unsettled", "orders", ["created_at"], postgresql_where=sa.text("status IN ('PENDING', 'RESERVED')")
    )
