"""Drop the index of the log that no query needs."""

from alembic import op

from shared.migrations import replace_primary_key

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
phase = "contract"


def upgrade() -> None:
    """Nobody looks for a row by its id alone; the new key serves the queries of the index that is dropped."""
    replace_primary_key("payment_log", "uq_payment_log_order_id_id")
    op.drop_index("ix_payment_log_order_id_id", "payment_log")


def downgrade() -> None:
    """Build the indexes of before."""
    op.drop_constraint("pk_payment_log", "payment_log")
    op.create_primary_key("pk_payment_log", "payment_log", ["id"])
    op.create_index("ix_payment_log_order_id_id", "payment_log", ["order_id", "id"])
    op.create_index("uq_payment_log_order_id_id", "payment_log", ["order_id", "id"], unique=True)
