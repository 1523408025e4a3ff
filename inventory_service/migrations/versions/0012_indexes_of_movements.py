"""Build the indexes of movements that are no sales: sales are many, and pay for none of these."""

from shared.migrations import create_indexes, drop_indexes

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None
phase = "expand"

BY_PEOPLE = {
    "ix_stock_movements_by_people": ["id"],
    "ix_stock_movements_by_people_cause": ["cause", "id"],
    "ix_stock_movements_by_people_sku": ["sku", "id"],
}
RETURNED = {"ix_stock_movements_returned": ["sku", "id"]}
RECEIVED = {"ix_stock_movements_received": ["purchase_order_id", "sku"]}


def upgrade() -> None:
    """Build them while others write."""
    create_indexes("stock_movements", BY_PEOPLE, where="cause NOT IN ('sale', 'return')")
    create_indexes("stock_movements", RETURNED, where="cause = 'return'")
    create_indexes("stock_movements", RECEIVED, where="purchase_order_id IS NOT NULL")


def downgrade() -> None:
    """Drop them."""
    drop_indexes("stock_movements", [*BY_PEOPLE, *RETURNED, *RECEIVED])
