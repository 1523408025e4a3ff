"""The first version of the inventory database."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from shared.migrations import create_messaging_tables_v1, drop_messaging_tables_v1

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    create_messaging_tables_v1()
    op.create_table(
        "inventory_release_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("order_id", sa.Uuid, nullable=False),
        sa.Column("reservation_id", sa.Uuid, nullable=False),
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("requested_by", sa.Text, nullable=False),
        sa.Column("roles", postgresql.ARRAY(sa.Text), nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_inventory_release_events"),
        sa.UniqueConstraint("reservation_id", "sku", name="uq_inventory_release_events_reservation_id_sku"),
    )
    op.create_index(
        "ix_inventory_release_events_order_id_released_at_id",
        "inventory_release_events",
        ["order_id", "released_at", "id"],
        unique=False,
    )
    op.create_index(
        "ix_inventory_release_events_reason_released_at_id",
        "inventory_release_events",
        ["reason", "released_at", "id"],
        unique=False,
    )
    op.create_index(
        "ix_inventory_release_events_released_at_id", "inventory_release_events", ["released_at", "id"], unique=False
    )
    op.create_index(
        "ix_inventory_release_events_requested_by_released_at_id",
        "inventory_release_events",
        ["requested_by", "released_at", "id"],
        unique=False,
    )
    op.create_index(
        "ix_inventory_release_events_sku_released_at_id",
        "inventory_release_events",
        ["sku", "released_at", "id"],
        unique=False,
    )
    op.create_index(
        "ix_inventory_release_events_trace_id_released_at_id",
        "inventory_release_events",
        ["trace_id", "released_at", "id"],
        unique=False,
    )
    op.create_table(
        "reservations",
        sa.Column("order_id", sa.Uuid, nullable=False),
        sa.Column("reservation_id", sa.Uuid, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, server_default="order", nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("order_id", name="pk_reservations"),
        sa.UniqueConstraint("reservation_id", name="uq_reservations_reservation_id"),
    )
    op.create_index(
        "ix_reservations_expiring",
        "reservations",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("state = 'RESERVED'"),
    )
    op.create_table(
        "stock_items",
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("on_hand", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("version", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("0 <= reserved AND reserved <= on_hand", name="ck_stock_items_reserved_within_on_hand"),
        sa.PrimaryKeyConstraint("sku", name="pk_stock_items"),
    )
    op.create_table(
        "reservation_items",
        sa.Column("order_id", sa.Uuid, nullable=False),
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["order_id"], ["reservations.order_id"], name="fk_reservation_items_order_id"),
        sa.PrimaryKeyConstraint("order_id", "sku", name="pk_reservation_items"),
    )
    op.create_table(
        "stock_movements",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("change", sa.BigInteger(), nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("order_id", sa.Uuid, nullable=True),
        sa.Column("moved_by", sa.Text, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["sku"], ["stock_items.sku"], name="fk_stock_movements_sku"),
        sa.PrimaryKeyConstraint("id", name="pk_stock_movements"),
    )
    op.create_index("ix_stock_movements_sku_id", "stock_movements", ["sku", "id"], unique=False)


def downgrade() -> None:
    for table in ("stock_movements", "reservation_items", "stock_items", "reservations", "inventory_release_events"):
        op.drop_table(table)
    drop_messaging_tables_v1()
