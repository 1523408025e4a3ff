"""Movements with reasons and a running balance, recipes, rules of stock, suppliers and purchase orders."""

import sqlalchemy as sa
from alembic import op

from shared.migrations import create_idempotency_keys_v1

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None
phase = "expand"

MOMENT = sa.DateTime(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    """New tables, and columns that the version before leaves empty."""
    create_idempotency_keys_v1()
    for column in (
        sa.Column("on_hand_after", sa.BigInteger),
        sa.Column("reason", sa.Text),
        sa.Column("note", sa.Text),
        sa.Column("purchase_order_id", sa.Uuid),
    ):
        op.add_column("stock_movements", column)
    op.add_column("reservations", sa.Column("asked", sa.Uuid))
    op.add_column("stock_signals", sa.Column("low", sa.Boolean, server_default=sa.text("false"), nullable=False))
    _create_recipes()
    _create_suppliers()
    _create_rules()
    _create_purchase_orders()


def _create_recipes() -> None:
    op.create_table(
        "recipes",
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, server_default="1", nullable=False),
        sa.Column("changed_by", sa.Text, nullable=False),
        sa.Column("changed_at", MOMENT, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("sku", name="pk_recipes"),
    )
    op.create_index("ix_recipes_changed_at", "recipes", ["changed_at"])
    op.create_table(
        "recipe_lines",
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("component", sa.Text, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.CheckConstraint("quantity BETWEEN 1 AND 1000000", name="ck_recipe_lines_quantity_within_limits"),
        sa.ForeignKeyConstraint(["sku"], ["recipes.sku"], name="fk_recipe_lines_sku"),
        sa.ForeignKeyConstraint(["component"], ["stock_items.sku"], name="fk_recipe_lines_component"),
        sa.PrimaryKeyConstraint("sku", "component", name="pk_recipe_lines"),
    )
    op.create_index("ix_recipe_lines_component", "recipe_lines", ["component"])


def _create_suppliers() -> None:
    op.create_table(
        "suppliers",
        sa.Column("supplier_id", sa.Uuid, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("email", sa.Text),
        sa.Column("phone", sa.Text),
        sa.Column("lead_days", sa.Integer, nullable=False),
        sa.Column("active", sa.Boolean, server_default=sa.text("true"), nullable=False),
        sa.Column("version", sa.BigInteger, server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("supplier_id", name="pk_suppliers"),
        sa.UniqueConstraint("name", name="uq_suppliers_name"),
    )


def _create_rules() -> None:
    op.create_table(
        "stock_rules",
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("unit", sa.Text, server_default="piece", nullable=False),
        sa.Column("low_at", sa.BigInteger),
        sa.Column("reorder_at", sa.BigInteger),
        sa.Column("reorder_to", sa.BigInteger),
        sa.Column("supplier_id", sa.Uuid),
        sa.Column("pack_size", sa.BigInteger, server_default="1", nullable=False),
        sa.Column("snoozed_until", MOMENT),
        sa.Column("version", sa.BigInteger, server_default="1", nullable=False),
        sa.CheckConstraint("unit IN ('piece', 'g', 'ml')", name="ck_stock_rules_unit_is_known"),
        sa.CheckConstraint("low_at >= 0", name="ck_stock_rules_low_at_not_negative"),
        sa.CheckConstraint("pack_size >= 1", name="ck_stock_rules_pack_size_from_one"),
        sa.CheckConstraint(
            "(reorder_at IS NULL) = (reorder_to IS NULL) AND 0 <= reorder_at AND reorder_at < reorder_to",
            name="ck_stock_rules_reorder_at_below_reorder_to",
        ),
        sa.CheckConstraint(
            "reorder_at IS NULL OR supplier_id IS NOT NULL", name="ck_stock_rules_reorder_needs_a_supplier"
        ),
        sa.ForeignKeyConstraint(["sku"], ["stock_items.sku"], name="fk_stock_rules_sku"),
        sa.ForeignKeyConstraint(["supplier_id"], ["suppliers.supplier_id"], name="fk_stock_rules_supplier_id"),
        sa.PrimaryKeyConstraint("sku", name="pk_stock_rules"),
    )
    # `reorder` looks at these alone, page by page.
    op.create_index(
        "ix_stock_rules_reordered", "stock_rules", ["sku"], postgresql_where=sa.text("reorder_at IS NOT NULL")
    )


def _create_purchase_orders() -> None:
    op.create_table(
        "purchase_orders",
        sa.Column("po_id", sa.Uuid, nullable=False),
        sa.Column("supplier_id", sa.Uuid, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, server_default="1", nullable=False),
        sa.Column("note", sa.Text),
        sa.Column("made_by", sa.Text, nullable=False),
        sa.Column("made_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column("ordered_at", MOMENT),
        sa.Column("expected_at", MOMENT),
        sa.Column("closed_at", MOMENT),
        sa.ForeignKeyConstraint(["supplier_id"], ["suppliers.supplier_id"], name="fk_purchase_orders_supplier_id"),
        sa.PrimaryKeyConstraint("po_id", name="pk_purchase_orders"),
    )
    op.create_index(
        "uq_purchase_orders_proposed",
        "purchase_orders",
        ["supplier_id"],
        unique=True,
        postgresql_where=sa.text("status = 'PROPOSED'"),
    )
    op.create_index("ix_purchase_orders_status_po_id", "purchase_orders", ["status", "po_id"])
    op.create_index("ix_purchase_orders_supplier_id_po_id", "purchase_orders", ["supplier_id", "po_id"])
    op.create_index(
        "ix_purchase_orders_supplier_id_status_po_id", "purchase_orders", ["supplier_id", "status", "po_id"]
    )
    op.create_table(
        "purchase_order_lines",
        sa.Column("po_id", sa.Uuid, nullable=False),
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("received", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("unit_cost", sa.BigInteger),
        sa.Column("currency", sa.Text),
        sa.CheckConstraint(
            "0 <= received AND received <= quantity", name="ck_purchase_order_lines_received_within_quantity"
        ),
        sa.CheckConstraint("quantity >= 1", name="ck_purchase_order_lines_quantity_from_one"),
        sa.ForeignKeyConstraint(["po_id"], ["purchase_orders.po_id"], name="fk_purchase_order_lines_po_id"),
        sa.ForeignKeyConstraint(["sku"], ["stock_items.sku"], name="fk_purchase_order_lines_sku"),
        sa.PrimaryKeyConstraint("po_id", "sku", name="pk_purchase_order_lines"),
    )
    # What is still to come of a sku: few lines are open, whatever was ever ordered.
    op.create_index(
        "ix_purchase_order_lines_open", "purchase_order_lines", ["sku"], postgresql_where=sa.text("received < quantity")
    )


def downgrade() -> None:
    """Recipes, rules, suppliers, purchase orders, and the reasons and balances of movements are lost."""
    for table in (
        "purchase_order_lines",
        "purchase_orders",
        "stock_rules",
        "suppliers",
        "recipe_lines",
        "recipes",
        "idempotency_keys",
    ):
        op.drop_table(table)
    op.drop_column("stock_signals", "low")
    op.drop_column("reservations", "asked")
    for column in ("purchase_order_id", "note", "reason", "on_hand_after"):
        op.drop_column("stock_movements", column)
