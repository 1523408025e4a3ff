"""The inventory service's tables. Their queries are in queries.py, those of the release audit in audit/."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy import Identity as IdentityColumn
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from inventory_service.domain import Kind
from shared.enumerations import Unit
from shared.horizon import CURRENT_XID
from shared.rights import Rights
from shared.tables import MESSAGING_RIGHTS, NOW, Base


class StockItem(Base):
    """The stock of one sku; available = on_hand - reserved."""

    __tablename__ = "stock_items"

    sku: Mapped[str] = mapped_column(primary_key=True)
    on_hand: Mapped[int] = mapped_column(BigInteger)
    reserved: Mapped[int] = mapped_column(BigInteger, server_default="0")
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (CheckConstraint("0 <= reserved AND reserved <= on_hand", name="reserved_within_on_hand"),)


_BY_PEOPLE = text("cause NOT IN ('sale', 'return')")


class StockMovement(Base):
    """One change of on_hand with its cause. on_hand is the sum of all changes of the sku. Append only."""

    __tablename__ = "stock_movements"

    sku: Mapped[str] = mapped_column(ForeignKey(StockItem.sku), primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, IdentityColumn(), primary_key=True)
    change: Mapped[int] = mapped_column(BigInteger)
    cause: Mapped[str]
    order_id: Mapped[uuid.UUID | None]
    moved_by: Mapped[str]
    trace_id: Mapped[str]
    moved_at: Mapped[datetime] = mapped_column(server_default=NOW)
    # What was on hand then. NULL in rows of versions before this column.
    on_hand_after: Mapped[int | None] = mapped_column(BigInteger)
    reason: Mapped[str | None]
    note: Mapped[str | None]
    purchase_order_id: Mapped[uuid.UUID | None]

    __table_args__ = (
        # Sales are many, and pay for none of these; the key finds those of a sku.
        Index("ix_stock_movements_by_people", "id", postgresql_where=_BY_PEOPLE),
        Index("ix_stock_movements_by_people_cause", "cause", "id", postgresql_where=_BY_PEOPLE),
        Index("ix_stock_movements_by_people_sku", "sku", "id", postgresql_where=_BY_PEOPLE),
        Index("ix_stock_movements_returned", "sku", "id", postgresql_where=text("cause = 'return'")),
        Index(
            "ix_stock_movements_received",
            "purchase_order_id",
            "sku",
            postgresql_where=text("purchase_order_id IS NOT NULL"),
        ),
    )


class ReservationRow(Base):
    """The reservation of one order, in any state."""

    __tablename__ = "reservations"

    order_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    reservation_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    state: Mapped[str]
    kind: Mapped[str] = mapped_column(server_default=Kind.ORDER)
    # Who reserved by hand. NULL for an order's reservation, and for those made before this column existed.
    made_by: Mapped[str | None]
    expires_at: Mapped[datetime | None]
    # Fingerprint of what the order asks for: the items are in components. NULL in rows of versions before recipes, and
    # of reservations by hand.
    asked: Mapped[uuid.UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (Index("ix_reservations_expiring", "expires_at", postgresql_where=text("state = 'RESERVED'")),)


class ReservationItem(Base):
    """The quantity of one stocked sku in a reservation."""

    __tablename__ = "reservation_items"

    order_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(ReservationRow.order_id), primary_key=True)
    sku: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int] = mapped_column(BigInteger)


class StockSignal(Base):
    """What was last told about a sku: whether it is sold out or low, and what is left where that is little."""

    __tablename__ = "stock_signals"

    sku: Mapped[str] = mapped_column(primary_key=True)
    sold_out: Mapped[bool]
    few: Mapped[int | None] = mapped_column(BigInteger)
    version: Mapped[int] = mapped_column(BigInteger)
    since: Mapped[datetime] = mapped_column(server_default=NOW)
    low: Mapped[bool] = mapped_column(server_default=text("false"))


class RecipeRow(Base):
    """A sku that is made of others when it is sold. It has no stock of its own."""

    __tablename__ = "recipes"

    sku: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")
    changed_by: Mapped[str]
    changed_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (Index(None, "changed_at"),)


class RecipeLine(Base):
    """How much of a stocked sku goes into one piece of a made one."""

    __tablename__ = "recipe_lines"

    sku: Mapped[str] = mapped_column(ForeignKey(RecipeRow.sku), primary_key=True)
    component: Mapped[str] = mapped_column(ForeignKey(StockItem.sku), primary_key=True)
    quantity: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        CheckConstraint("quantity BETWEEN 1 AND 1000000", name="quantity_within_limits"),
        Index(None, "component"),
    )


class SupplierRow(Base):
    """Whom stock is bought from. Never deleted."""

    __tablename__ = "suppliers"

    supplier_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str | None]
    phone: Mapped[str | None]
    lead_days: Mapped[int]
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")


class StockRule(Base):
    """In what a sku is counted, when it is low, and when and how much of it is ordered again."""

    __tablename__ = "stock_rules"

    sku: Mapped[str] = mapped_column(ForeignKey(StockItem.sku), primary_key=True)
    unit: Mapped[str] = mapped_column(server_default=Unit.PIECE)
    low_at: Mapped[int | None] = mapped_column(BigInteger)
    reorder_at: Mapped[int | None] = mapped_column(BigInteger)
    reorder_to: Mapped[int | None] = mapped_column(BigInteger)
    supplier_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey(SupplierRow.supplier_id))
    pack_size: Mapped[int] = mapped_column(BigInteger, server_default="1")
    snoozed_until: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")

    __table_args__ = (
        CheckConstraint("unit IN ('piece', 'g', 'ml')", name="unit_is_known"),
        CheckConstraint("low_at >= 0", name="low_at_not_negative"),
        CheckConstraint("pack_size >= 1", name="pack_size_from_one"),
        CheckConstraint(
            "(reorder_at IS NULL) = (reorder_to IS NULL) AND 0 <= reorder_at AND reorder_at < reorder_to",
            name="reorder_at_below_reorder_to",
        ),
        CheckConstraint("reorder_at IS NULL OR supplier_id IS NOT NULL", name="reorder_needs_a_supplier"),
        # `reorder` looks at these alone, page by page.
        Index("ix_stock_rules_reordered", "sku", postgresql_where=text("reorder_at IS NOT NULL")),
    )


class PurchaseOrderRow(Base):
    """What was or may be bought from a supplier. At most one of a supplier is PROPOSED."""

    __tablename__ = "purchase_orders"

    po_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    supplier_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(SupplierRow.supplier_id))
    status: Mapped[str]
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")
    note: Mapped[str | None]
    made_by: Mapped[str]
    made_at: Mapped[datetime] = mapped_column(server_default=NOW)
    ordered_at: Mapped[datetime | None]
    expected_at: Mapped[datetime | None]
    closed_at: Mapped[datetime | None]

    __table_args__ = (
        Index("uq_purchase_orders_proposed", "supplier_id", unique=True, postgresql_where=text("status = 'PROPOSED'")),
        Index(None, "status", "po_id"),
        Index(None, "supplier_id", "po_id"),
        Index(None, "supplier_id", "status", "po_id"),
    )


class PurchaseOrderLine(Base):
    """So much of one sku in a purchase order, and how much of it has come."""

    __tablename__ = "purchase_order_lines"

    po_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(PurchaseOrderRow.po_id), primary_key=True)
    sku: Mapped[str] = mapped_column(ForeignKey(StockItem.sku), primary_key=True)
    quantity: Mapped[int] = mapped_column(BigInteger)
    received: Mapped[int] = mapped_column(BigInteger, server_default="0")
    unit_cost: Mapped[int | None] = mapped_column(BigInteger)
    currency: Mapped[str | None]

    __table_args__ = (
        CheckConstraint("0 <= received AND received <= quantity", name="received_within_quantity"),
        CheckConstraint("quantity >= 1", name="quantity_from_one"),
        # What is still to come of a sku: few lines are open, whatever was ever ordered.
        Index("ix_purchase_order_lines_open", "sku", postgresql_where=text("received < quantity")),
    )


class ReleaseEvent(Base):
    """The release audit: stock that became available again, why and by whom. Append only."""

    __tablename__ = "inventory_release_events"

    id: Mapped[int] = mapped_column(BigInteger, IdentityColumn(), primary_key=True)
    order_id: Mapped[uuid.UUID]
    reservation_id: Mapped[uuid.UUID]
    sku: Mapped[str]
    quantity: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str]
    requested_by: Mapped[str]
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    trace_id: Mapped[str]
    released_at: Mapped[datetime] = mapped_column(server_default=NOW)
    # The transaction that wrote the row. Seals use it to know that no earlier row can appear any more.
    xid: Mapped[int] = mapped_column(BigInteger, server_default=text(CURRENT_XID))

    __table_args__ = (
        UniqueConstraint("reservation_id", "sku"),
        Index(None, "released_at", "id"),
        Index(None, "xid", "id"),
        *(
            Index(None, column, "released_at", "id")
            for column in ("order_id", "sku", "reason", "requested_by", "trace_id")
        ),
    )


class SealRow(Base):
    """One seal of the chain. Append only."""

    __tablename__ = "release_seals"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    until_xid: Mapped[int] = mapped_column(BigInteger)
    until_id: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int]
    total: Mapped[int] = mapped_column(BigInteger)
    sealed_at: Mapped[datetime]
    key_id: Mapped[str]
    mac: Mapped[str]

    __table_args__ = (Index(None, "until_xid", "until_id"),)


class ExportRow(Base):
    """One export: who, what and when. `rows` and `sha256` are NULL until it finishes. Never deleted."""

    __tablename__ = "release_exports"

    export_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    exported_by: Mapped[str]
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    filters: Mapped[dict[str, Any]] = mapped_column(JSONB)
    sealed_to: Mapped[int] = mapped_column(BigInteger)  # seq of the newest seal when the export began; 0 if none
    until_xid: Mapped[int] = mapped_column(BigInteger)
    until_id: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(server_default=NOW)
    finished_at: Mapped[datetime | None]


RIGHTS = MESSAGING_RIGHTS | {
    "stock_items": Rights(
        changed=("on_hand", "reserved", "version", "updated_at"),
        read=("sku", "on_hand", "reserved", "version", "updated_at"),
    ),
    "stock_movements": Rights(
        read=("sku", "id", "change", "cause", "order_id", "moved_at", "on_hand_after", "reason", "purchase_order_id")
    ),
    "reservations": Rights(
        changed=("state", "expires_at", "updated_at"),
        read=(
            "order_id",
            "reservation_id",
            "state",
            "kind",
            "made_by",
            "expires_at",
            "asked",
            "created_at",
            "updated_at",
        ),
    ),
    "reservation_items": Rights(read=("order_id", "sku", "quantity")),
    "stock_signals": Rights(
        changed=("sold_out", "few", "low", "version", "since"),
        read=("sku", "sold_out", "few", "low", "version", "since"),
    ),
    "recipes": Rights(
        changed=("version", "changed_by", "changed_at"),
        deleted_because="a sku that is not made any more has no recipe",
        read=("sku", "version", "changed_by", "changed_at"),
    ),
    "recipe_lines": Rights(
        deleted_because="the lines of a recipe are replaced by those of its next version",
        read=("sku", "component", "quantity"),
    ),
    # How to reach a supplier is for those who buy.
    "suppliers": Rights(
        changed=("name", "email", "phone", "lead_days", "active", "version"),
        read=("supplier_id", "name", "lead_days", "active", "version"),
    ),
    "stock_rules": Rights(
        changed=(
            *("unit", "low_at", "reorder_at", "reorder_to"),
            *("supplier_id", "pack_size", "snoozed_until", "version"),
        ),
        read=("sku", "unit", "low_at", "reorder_at", "reorder_to", "supplier_id", "pack_size", "snoozed_until"),
    ),
    "purchase_orders": Rights(
        changed=("status", "version", "note", "ordered_at", "expected_at", "closed_at"),
        read=("po_id", "supplier_id", "status", "version", "made_by", "made_at", "ordered_at", "closed_at"),
    ),
    "purchase_order_lines": Rights(
        changed=("received", "unit_cost"),
        deleted_because="the lines of a proposal are replaced until it is ordered",
        read=("po_id", "sku", "quantity", "received"),
    ),
    "idempotency_keys": Rights(deleted_because="a stored answer is deleted after 48 hours"),
    # The evidence of the release audit, which `ecom audit verify` reads.
    "inventory_release_events": Rights(
        read=(
            "id",
            "order_id",
            "reservation_id",
            "sku",
            "quantity",
            "reason",
            "requested_by",
            "roles",
            "trace_id",
            "released_at",
            "xid",
        )
    ),
    "release_seals": Rights(
        read=("seq", "until_xid", "until_id", "rows", "total", "sealed_at", "key_id", "mac"),
    ),
    # An export that finishes says how many rows it had.
    "release_exports": Rights(
        changed=("rows", "sha256", "finished_at"),
        read=(
            "export_id",
            "exported_by",
            "roles",
            "filters",
            "sealed_to",
            "until_xid",
            "until_id",
            "rows",
            "sha256",
            "started_at",
            "finished_at",
        ),
    ),
}
TABLES = frozenset(RIGHTS)
