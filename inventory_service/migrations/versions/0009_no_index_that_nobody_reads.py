"""Drop the index of movements that no query needs."""

from alembic import op

from shared.migrations import replace_primary_key

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None
phase = "contract"


def upgrade() -> None:
    """Nobody looks for a row by its id alone; the new key serves the queries of the index that is dropped."""
    replace_primary_key("stock_movements", "uq_stock_movements_sku_id")
    op.drop_index("ix_stock_movements_sku_id", "stock_movements")


def downgrade() -> None:
    """Build the indexes of before."""
    op.drop_constraint("pk_stock_movements", "stock_movements")
    op.create_primary_key("pk_stock_movements", "stock_movements", ["id"])
    op.create_index("ix_stock_movements_sku_id", "stock_movements", ["sku", "id"])
    op.create_index("uq_stock_movements_sku_id", "stock_movements", ["sku", "id"], unique=True)
