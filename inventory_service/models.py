"""The inventory service's tables and queries. The queries of the release audit are in audit/."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Table,
    Text,
    UniqueConstraint,
    func,
    insert,
    literal,
    select,
    text,
)
from sqlalchemy import Identity as IdentityColumn
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Mapped, Session, mapped_column

from inventory_service.domain import Kind, Movement, Outcome, Reservation, State, Stock
from shared.bulk import unnest, update_many
from shared.errors import NotFound
from shared.events import Identity
from shared.horizon import CURRENT_XID
from shared.paging import decode_cursor, encode_cursor, name_position, page_of
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

    id: Mapped[int] = mapped_column(BigInteger, IdentityColumn(), primary_key=True)
    sku: Mapped[str] = mapped_column(ForeignKey(StockItem.sku))
    change: Mapped[int] = mapped_column(BigInteger)
    cause: Mapped[str]
    order_id: Mapped[uuid.UUID | None]
    moved_by: Mapped[str]
    trace_id: Mapped[str]
    moved_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (Index(None, "sku", "id"),)


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


def claim_reservations(
    session: Session,
    ids: Mapping[uuid.UUID, uuid.UUID],
    state: State,
    kind: Kind = Kind.ORDER,
    made_by: str | None = None,
) -> set[uuid.UUID]:
    """Insert a reservation for each order that has none, and return those orders. `ids`: order_id -> reservation_id.

    `made_by` is the user who reserves by hand.

    The insert is also the lock, so two replicas cannot both reserve for one order. One statement, sorted by order_id,
    so that transactions cannot deadlock.
    """
    given = unnest(ReservationRow, "order_id", "reservation_id")
    statement = (
        upsert(cast(Table, ReservationRow.__table__))
        .from_select(
            ["order_id", "reservation_id", "state", "kind", "made_by"],
            select(
                given.c.order_id,
                given.c.reservation_id,
                literal(state.value, Text),
                literal(kind.value, Text),
                literal(made_by, Text),
            ).order_by(given.c.order_id),
        )
        .on_conflict_do_nothing()
        .returning(ReservationRow.order_id)
    )
    arrays = {"given_order_id": list(ids), "given_reservation_id": list(ids.values())}
    return set(session.scalars(statement, arrays))


def reservations_of(
    session: Session, order_ids: Iterable[uuid.UUID], lock: bool = False
) -> dict[uuid.UUID, Reservation]:
    """Load the reservations of these orders with their items. Two statements.

    `lock=True` locks rows by order_id, so that transactions cannot deadlock.
    """
    wanted = list(set(order_ids))
    if not wanted:
        return {}
    query = select(ReservationRow).where(ReservationRow.order_id.in_(wanted)).order_by(ReservationRow.order_id)
    rows = session.scalars(query.with_for_update() if lock else query).all()
    quantities: dict[uuid.UUID, dict[str, int]] = {row.order_id: {} for row in rows}
    items = select(ReservationItem).where(ReservationItem.order_id.in_(list(quantities))).order_by(ReservationItem.sku)
    for item in session.scalars(items):
        quantities[item.order_id][item.sku] = item.quantity
    return {
        row.order_id: Reservation(
            row.order_id, row.reservation_id, State(row.state), quantities[row.order_id], Kind(row.kind)
        )
        for row in rows
    }


def stock_of(session: Session, skus: Iterable[str], lock: bool = False) -> dict[str, Stock]:
    """Load the stock of these skus. One statement.

    `lock=True` locks rows by sku, so that transactions cannot deadlock.
    """
    query = select(StockItem).where(StockItem.sku.in_(set(skus))).order_by(StockItem.sku)
    rows = session.scalars(query.with_for_update() if lock else query)
    return {row.sku: Stock(row.sku, row.on_hand, row.reserved, row.version) for row in rows}


def save_outcomes(
    session: Session, outcomes: Sequence[tuple[Outcome, Identity, str, str]], made_as: State | None = None
) -> None:
    """Save outcomes, each with its identity, trace id and reason. At most five statements.

    `made_as` is the state in which `claim_reservations` has just inserted the reservations: their items are new, and
    only reservations that ended in another state need an update. None means that they existed before.
    """
    changed = [item for item in outcomes if item[0].changed]
    after = {outcome.reservation.order_id: outcome.reservation for outcome, *_ in changed}
    update_many(
        session,
        ReservationRow,
        "order_id",
        [
            {"order_id": reservation.order_id, "state": reservation.state.value}
            for reservation in after.values()
            if reservation.state != made_as
        ],
        also={"updated_at": func.now()},
    )
    items = [
        {"order_id": reservation.order_id, "sku": sku, "quantity": quantity}
        for reservation in after.values()
        for sku, quantity in reservation.quantities.items()
    ]
    if made_as and items:
        session.execute(insert(ReservationItem), items)
    stock = {item.sku: item for outcome, *_ in changed for item in outcome.stock}
    update_many(
        session,
        StockItem,
        "sku",
        [
            {"sku": item.sku, "on_hand": item.on_hand, "reserved": item.reserved, "version": item.version}
            for item in stock.values()
        ],
        also={"updated_at": func.now()},
    )
    movements = [
        movement_row(movement, outcome.reservation.order_id, identity, trace_id)
        for outcome, identity, trace_id, _ in changed
        for movement in outcome.movements
    ]
    if movements:
        session.execute(insert(StockMovement), movements)
    releases = [
        {
            "order_id": outcome.reservation.order_id,
            "reservation_id": outcome.reservation.reservation_id,
            "sku": sku,
            "quantity": quantity,
            "reason": reason,
            "requested_by": identity.user_id,
            "roles": list(identity.roles),
            "trace_id": trace_id,
        }
        for outcome, identity, trace_id, reason in changed
        if outcome.audited
        for sku, quantity in outcome.reservation.quantities.items()
    ]
    if releases:
        session.execute(insert(ReleaseEvent), releases)


def movement_row(movement: Movement, order_id: uuid.UUID | None, identity: Identity, trace_id: str) -> dict[str, Any]:
    """Return a movement as a row of stock_movements."""
    return {
        "sku": movement.sku,
        "change": movement.change,
        "cause": movement.cause,
        "order_id": order_id,
        "moved_by": identity.user_id,
        "trace_id": trace_id,
    }


def order_of_reservation(session: Session, reservation_id: str) -> uuid.UUID:
    """Return the order of a manual reservation. Raises NotFound, also for a reservation made by an order."""
    try:
        query = select(ReservationRow.order_id).filter_by(reservation_id=uuid.UUID(reservation_id), kind=Kind.MANUAL)
        order_id = session.scalar(query)
    except ValueError:
        order_id = None
    if order_id is None:
        raise NotFound(f"There is no reservation {reservation_id}.")
    return order_id


def set_expiry(session: Session, order_id: uuid.UUID, seconds: float) -> datetime:
    """Let a reservation expire after so many seconds, and return the time."""
    row = session.get_one(ReservationRow, order_id)
    session.execute(
        text("UPDATE reservations SET expires_at = now() + make_interval(secs => :seconds) WHERE order_id = :order_id"),
        {"seconds": seconds, "order_id": order_id},
    )
    session.refresh(row)
    assert row.expires_at is not None
    return row.expires_at


def expired(session: Session, limit: int) -> list[uuid.UUID]:
    """Return the orders of expired manual reservations, oldest first."""
    query = (
        select(ReservationRow.order_id)
        .where(ReservationRow.state == State.RESERVED, ReservationRow.expires_at < func.now())
        .order_by(ReservationRow.expires_at)
        .limit(limit)
    )
    return list(session.scalars(query))


def stock_body(item: Stock) -> dict[str, Any]:
    """Return a stock item in the form that clients see."""
    return {
        "sku": item.sku,
        "on_hand": item.on_hand,
        "reserved": item.reserved,
        "available": item.available,
        "version": item.version,
    }


def lock_or_make_stock(session: Session, sku: str) -> Stock | None:
    """Lock and return the stock of a sku. A missing sku gets a row with zero stock, and None is returned."""
    made = session.scalar(
        upsert(StockItem)
        .values(sku=sku, on_hand=0, reserved=0, version=0)
        .on_conflict_do_nothing()
        .returning(StockItem.sku)
    )
    return None if made else stock_of(session, [sku], lock=True)[sku]


def save_stock(session: Session, after: Stock, movement: Movement | None, identity: Identity, trace_id: str) -> None:
    """Save a stock item and the movement that changed it."""
    row = {"sku": after.sku, "on_hand": after.on_hand, "reserved": after.reserved, "version": after.version}
    update_many(session, StockItem, "sku", [row], also={"updated_at": func.now()})
    if movement:
        session.execute(insert(StockMovement), [movement_row(movement, None, identity, trace_id)])


def find_stock(session: Session, sku: str) -> Stock:
    """Return the stock of a sku. Raises NotFound."""
    row = session.get(StockItem, sku)
    if row is None:
        raise NotFound(f"There is no sku {sku}.")
    return Stock(row.sku, row.on_hand, row.reserved, row.version)


def stock_page(session: Session, limit: int, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
    """Return one page of stock, ordered by sku, and the next cursor."""
    query = select(StockItem).order_by(StockItem.sku).limit(limit + 1)
    if cursor:
        (last,) = decode_cursor(cursor, {}, [name_position])
        query = query.where(StockItem.sku > last)
    rows, more = page_of(session.scalars(query).all(), limit)
    bodies = [stock_body(Stock(row.sku, row.on_hand, row.reserved, row.version)) for row in rows]
    return bodies, encode_cursor([rows[-1].sku], {}) if more else None
