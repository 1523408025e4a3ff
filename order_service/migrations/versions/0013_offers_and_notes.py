"""The copy of the catalog's offers; numbers, names and notes of orders."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """New tables, and columns that the version before leaves empty."""
    now = sa.text("now()")
    moment = sa.DateTime(timezone=True)
    op.add_column("orders", sa.Column("order_no", sa.Text))
    op.add_column("orders", sa.Column("note", sa.Text))
    op.add_column("order_items", sa.Column("name", sa.Text))
    op.add_column("order_items", sa.Column("note", sa.Text))
    op.add_column("order_items", sa.Column("offer_version", sa.BigInteger))
    op.create_table(
        "offers",
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("item_id", sa.Uuid, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sellable", sa.Boolean, nullable=False),
        sa.Column("prices", postgresql.JSONB, nullable=False),
        sa.Column("heard_at", moment, server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("sku", name="pk_offers"),
    )
    op.create_table(
        "order_notes",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("order_id", sa.Uuid, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("shown", sa.Boolean, nullable=False),
        sa.Column("at", moment, server_default=now, nullable=False),
        sa.ForeignKeyConstraint(["order_id"], ["orders.order_id"], name="fk_order_notes_order_id"),
        sa.PrimaryKeyConstraint("id", name="pk_order_notes"),
    )
    op.create_index("ix_order_notes_order_id_id", "order_notes", ["order_id", "id"])


def downgrade() -> None:
    """Names, notes and numbers are lost."""
    op.drop_table("order_notes")
    op.drop_table("offers")
    for table, columns in (("order_items", ("offer_version", "note", "name")), ("orders", ("note", "order_no"))):
        for column in columns:
            op.drop_column(table, column)
