"""Build the index of the next primary key of payment_log."""

from shared.migrations import create_indexes, drop_indexes

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
phase = "expand"

INDEXES = {"uq_payment_log_order_id_id": ["order_id", "id"]}


def upgrade() -> None:
    """Build it while others write."""
    create_indexes("payment_log", INDEXES, unique=True)


def downgrade() -> None:
    """Drop it."""
    drop_indexes("payment_log", INDEXES)
