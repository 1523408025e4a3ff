"""Add the index of the feed."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The feed is read by (xid, id)."""
    # By itself, because the lock of a new column would last until the index is built. Steps can be read meanwhile, and
    # not written: about a second for a million steps.
    op.create_index("ix_order_events_xid_id", "order_events", ["xid", "id"])


def downgrade() -> None:
    """Without the index the feed reads all steps."""
    op.drop_index("ix_order_events_xid_id", "order_events")
