"""Add the index of the feed."""

from shared.migrations import create_indexes, drop_indexes

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
phase = "expand"

INDEXES = {"ix_order_events_xid_id": ["xid", "id"]}


def upgrade() -> None:
    """The feed is read by (xid, id)."""
    create_indexes("order_events", INDEXES)


def downgrade() -> None:
    """Without the index the feed reads all steps."""
    drop_indexes("order_events", INDEXES)
