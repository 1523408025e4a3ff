"""Build the index of the next primary key of order_events."""

from shared.migrations import create_indexes, drop_indexes

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None
phase = "expand"

INDEXES = {"uq_order_events_order_id_id": ["order_id", "id"]}


def upgrade() -> None:
    """Build it while others write."""
    create_indexes("order_events", INDEXES, unique=True)


def downgrade() -> None:
    """Drop it."""
    drop_indexes("order_events", INDEXES)
