"""What was last told about the availability of each sku."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """A new table: the version before neither reads nor writes it."""
    op.create_table(
        "stock_signals",
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("sold_out", sa.Boolean, nullable=False),
        sa.Column("few", sa.BigInteger),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("sku", name="pk_stock_signals"),
    )


def downgrade() -> None:
    op.drop_table("stock_signals")
