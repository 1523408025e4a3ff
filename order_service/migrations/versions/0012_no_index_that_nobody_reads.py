"""Drop the index of the steps of orders that no query needs."""

from alembic import op

from shared.migrations import replace_primary_key

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None
phase = "contract"


def upgrade() -> None:
    """Nobody looks for a row by its id alone; the new key serves the queries of the index that is dropped."""
    replace_primary_key("order_events", "uq_order_events_order_id_id")
    op.drop_index("ix_order_events_order_id_id", "order_events")


def downgrade() -> None:
    """Build the indexes of before."""
    op.drop_constraint("pk_order_events", "order_events")
    op.create_primary_key("pk_order_events", "order_events", ["id"])
    op.create_index("ix_order_events_order_id_id", "order_events", ["order_id", "id"])
    op.create_index("uq_order_events_order_id_id", "order_events", ["order_id", "id"], unique=True)
