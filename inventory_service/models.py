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


class StockMovement(Base):
    """One change of on_hand with its cause. on_hand is the sum of all changes of the sku."""

    __tablename__ = "stock_movements"

    sku: Mapped[str] = mapped_column(ForeignKey(StockItem.sku), primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, IdentityColumn(), primary_key=True)
    change: Mapped[int] = mapped_column(BigInteger)
    cause: Mapped[str]
    order_id: Mapped[uuid.UUID | None]
    moved_by: Mapped[str]
    trace_id: Mapped[str]
    moved_at: Mapped[datetime] = mapped_column(server_default=NOW)


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
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (Index("ix_reservations_expiring", "expires_at", postgresql_where=text("state = 'RESERVED'")),)


class ReservationItem(Base):
    """The quantity of one sku in a reservation."""

    __tablename__ = "reservation_items"

    order_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(ReservationRow.order_id), primary_key=True)
    sku: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int] = mapped_column(BigInteger)


class StockSignal(Base):
    """What was last told about a sku: whether it is sold out, and what is left where that is little."""

    __tablename__ = "stock_signals"

    sku: Mapped[str] = mapped_column(primary_key=True)
    sold_out: Mapped[bool]
    few: Mapped[int | None] = mapped_column(BigInteger)
    version: Mapped[int] = mapped_column(BigInteger)
    since: Mapped[datetime] = mapped_column(server_default=NOW)


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
    "stock_movements": Rights(),
    "reservations": Rights(
        changed=("state", "expires_at", "updated_at"),
        read=("order_id", "reservation_id", "state", "kind", "made_by", "expires_at", "created_at", "updated_at"),
    ),
    "reservation_items": Rights(read=("order_id", "sku", "quantity")),
    "stock_signals": Rights(
        changed=("sold_out", "few", "version", "since"), read=("sku", "sold_out", "few", "version", "since")
    ),
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
