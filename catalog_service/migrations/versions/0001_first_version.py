"""The first version of the catalog database."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from shared.migrations import (
    add_copies_of_dead_messages,
    create_idempotency_keys_v1,
    create_messaging_tables_v1,
    drop_messaging_tables_v1,
)

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
phase = "expand"

MOMENT = sa.DateTime(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    create_messaging_tables_v1()
    add_copies_of_dead_messages()
    create_idempotency_keys_v1()
    op.create_table(
        "categories",
        sa.Column("category_id", sa.Uuid, nullable=False),
        sa.Column("slug", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, server_default="0", nullable=False),
        sa.Column("version", sa.BigInteger, server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("category_id", name="pk_categories"),
        sa.UniqueConstraint("slug", name="uq_categories_slug"),
    )
    op.create_table(
        "items",
        sa.Column("item_id", sa.Uuid, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("description", sa.Text, server_default="", nullable=False),
        sa.Column("category_id", sa.Uuid),
        sa.Column("images", postgresql.JSONB, server_default=sa.text("'[]'"), nullable=False),
        sa.Column("position", sa.Integer, server_default="0", nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, server_default="1", nullable=False),
        sa.Column("published_at", MOMENT),
        sa.Column("updated_at", MOMENT, server_default=NOW, nullable=False),
        sa.Column(
            "search",
            postgresql.TSVECTOR,
            sa.Computed("to_tsvector('simple', name || ' ' || description)", persisted=True),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["category_id"], ["categories.category_id"], name="fk_items_category_id"),
        sa.PrimaryKeyConstraint("item_id", name="pk_items"),
    )
    op.create_index(
        "ix_items_status_category_id_position_item_id", "items", ["status", "category_id", "position", "item_id"]
    )
    op.create_index("ix_items_status_position_item_id", "items", ["status", "position", "item_id"])
    op.create_index("ix_items_category_id", "items", ["category_id"])
    op.create_index("ix_items_search", "items", ["search"], postgresql_using="gin")
    op.create_table(
        "variants",
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("item_id", sa.Uuid, nullable=False),
        sa.Column("name", sa.Text, server_default="", nullable=False),
        sa.Column("position", sa.Integer, server_default="0", nullable=False),
        sa.Column("on_sale", sa.Boolean, server_default=sa.text("true"), nullable=False),
        sa.Column("offer_version", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["items.item_id"], name="fk_variants_item_id"),
        sa.PrimaryKeyConstraint("sku", name="pk_variants"),
    )
    op.create_index("ix_variants_item_id_position_sku", "variants", ["item_id", "position", "sku"])
    op.create_table(
        "prices",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("min_quantity", sa.Integer, nullable=False),
        sa.Column("valid_from", MOMENT, nullable=False),
        sa.Column("unit_price", sa.BigInteger),
        sa.Column("offer_version", sa.BigInteger, nullable=False),
        sa.Column("set_by", sa.Text, nullable=False),
        sa.Column("set_at", MOMENT, server_default=NOW, nullable=False),
        sa.CheckConstraint("min_quantity >= 1", name="ck_prices_min_quantity_from_one"),
        sa.CheckConstraint("unit_price >= 0", name="ck_prices_unit_price_not_negative"),
        sa.ForeignKeyConstraint(["sku"], ["variants.sku"], name="fk_prices_sku"),
        sa.PrimaryKeyConstraint("id", name="pk_prices"),
    )
    op.create_index("ix_prices_in_force", "prices", ["sku", "currency", "min_quantity", "valid_from", "id"])
    op.create_table(
        "item_versions",
        sa.Column("item_id", sa.Uuid, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("document", postgresql.JSONB, nullable=False),
        sa.Column("changed_by", sa.Text, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("at", MOMENT, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("item_id", "version", name="pk_item_versions"),
    )
    op.create_table(
        "availability",
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("sold_out", sa.Boolean, nullable=False),
        sa.Column("few", sa.BigInteger),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("sku", name="pk_availability"),
    )


def downgrade() -> None:
    for table in ("availability", "item_versions", "prices", "variants", "items", "categories", "idempotency_keys"):
        op.drop_table(table)
    drop_messaging_tables_v1()
