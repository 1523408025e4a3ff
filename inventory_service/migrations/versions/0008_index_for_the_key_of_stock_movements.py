"""Build the index of the next primary key of stock_movements."""

from shared.migrations import create_indexes, drop_indexes

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
phase = "expand"

INDEXES = {"uq_stock_movements_sku_id": ["sku", "id"]}


def upgrade() -> None:
    """Build it while others write."""
    create_indexes("stock_movements", INDEXES, unique=True)


def downgrade() -> None:
    """Drop it."""
    drop_indexes("stock_movements", INDEXES)
