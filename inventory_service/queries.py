"""The statements on stock and reservations. Those of the batches are made once, and cost the same for any number."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Text, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from inventory_service.domain import Kind, Movement, Outcome, Reservation, State, Stock
from inventory_service.models import ReleaseEvent, ReservationItem, ReservationRow, StockItem, StockMovement
from shared.bulk import insert_many, is_given, table_of, unnest, update_many
from shared.errors import NotFound
from shared.events import Identity
from shared.paging import decode_cursor, encode_cursor, name_position, page_of
from shared.tables import NOW

_RESERVATIONS, _ITEMS, _STOCK = table_of(ReservationRow), table_of(ReservationItem), table_of(StockItem)
_TOUCHED = {"updated_at": NOW}

_given = unnest(ReservationRow, "order_id", "reservation_id", "asked")
_CLAIM = (
    insert(_RESERVATIONS)
    .execution_options(prepared=True)
    .from_select(
        ["order_id", "reservation_id", "asked", "state", "kind", "made_by"],
        select(
            _given.c.order_id,
            _given.c.reservation_id,
            _given.c.asked,
            bindparam("state", type_=Text),
            bindparam("kind", type_=Text),
            bindparam("made_by", type_=Text),
        ).order_by(_given.c.order_id),
    )
    .on_conflict_do_nothing()
    .returning(_RESERVATIONS.c.order_id)
)


def claim_reservations(
    session: Session,
    ids: Mapping[uuid.UUID, uuid.UUID],
    state: State,
    kind: Kind = Kind.ORDER,
    made_by: str | None = None,
    asked: Mapping[uuid.UUID, uuid.UUID] | None = None,
) -> set[uuid.UUID]:
    """Insert a reservation for each order that has none, and return those orders. `ids`: order_id -> reservation_id.

    `made_by` is the user who reserves by hand. `asked`: order_id -> fingerprint of what the order asks for.

    The insert is also the lock, so two replicas cannot both reserve for one order. One statement, sorted by order_id,
    so that transactions cannot deadlock.
    """
    asked = asked or {}
    arrays = {
        "given_order_id": list(ids),
        "given_reservation_id": list(ids.values()),
        "given_asked": [asked.get(order_id) for order_id in ids],
    }
    return set(session.scalars(_CLAIM, {**arrays, "state": state.value, "kind": kind.value, "made_by": made_by}))


# With its items in the same statement: they are inserted with the reservation and never change.
_RESERVATIONS_OF = (
    select(
        _RESERVATIONS.c.order_id,
        _RESERVATIONS.c.reservation_id,
        _RESERVATIONS.c.state,
        _RESERVATIONS.c.kind,
        _RESERVATIONS.c.asked,
        _ITEMS.c.sku,
        _ITEMS.c.quantity,
    )
    .select_from(_RESERVATIONS.outerjoin(_ITEMS, _ITEMS.c.order_id == _RESERVATIONS.c.order_id))
    .where(is_given(_RESERVATIONS.c.order_id))
    .order_by(_RESERVATIONS.c.order_id, _ITEMS.c.sku)
    .execution_options(prepared=True)
)
_LOCKED_RESERVATIONS_OF = _RESERVATIONS_OF.with_for_update(of=_RESERVATIONS)


def reservations_of(
    session: Session, order_ids: Iterable[uuid.UUID], lock: bool = False
) -> dict[uuid.UUID, Reservation]:
    """Load the reservations of these orders with their items. At most one statement.

    `lock=True` locks rows by order_id, so that transactions cannot deadlock.
    """
    wanted = list(set(order_ids))
    if not wanted:
        return {}
    found: dict[uuid.UUID, Reservation] = {}
    quantities: dict[str, int] = {}
    statement = _LOCKED_RESERVATIONS_OF if lock else _RESERVATIONS_OF
    rows = session.execute(statement, {"given_order_id": wanted})
    for order_id, reservation_id, state, kind, asked, sku, quantity in rows:
        if order_id not in found:
            quantities = {}
            found[order_id] = Reservation(order_id, reservation_id, State(state), quantities, Kind(kind), asked)
        if sku is not None:
            quantities[sku] = quantity
    return found


_STOCK_OF = (
    select(_STOCK.c.sku, _STOCK.c.on_hand, _STOCK.c.reserved, _STOCK.c.version)
    .where(is_given(_STOCK.c.sku))
    .order_by(_STOCK.c.sku)
    .execution_options(prepared=True)
)
_LOCKED_STOCK_OF = _STOCK_OF.with_for_update()


def stock_of(session: Session, skus: Iterable[str], lock: bool = False) -> dict[str, Stock]:
    """Load the stock of these skus. At most one statement.

    `lock=True` locks rows by sku, so that transactions cannot deadlock.
    """
    wanted = list(set(skus))
    if not wanted:
        return {}
    rows = session.execute(_LOCKED_STOCK_OF if lock else _STOCK_OF, {"given_sku": wanted})
    return {row.sku: Stock(*row) for row in rows}


def save_made(session: Session, outcomes: Sequence[Outcome]) -> None:
    """Save the outcomes of reservations that this transaction has claimed as RESERVED. At most three statements."""
    made = [outcome.reservation for outcome in outcomes]
    _save_states(session, [reservation for reservation in made if reservation.state != State.RESERVED])
    insert_many(
        session,
        ReservationItem,
        [
            {"order_id": reservation.order_id, "sku": sku, "quantity": quantity}
            for reservation in made
            for sku, quantity in reservation.quantities.items()
        ],
    )
    save_stock(session, [item for outcome in outcomes for item in outcome.stock])


def save_closed(session: Session, outcomes: Sequence[tuple[Outcome, Identity, str, str]]) -> None:
    """Save how reservations were closed, each with its identity, trace id and reason. At most four statements."""
    changed = [item for item in outcomes if item[0].changed]
    _save_states(session, [outcome.reservation for outcome, *_ in changed])
    save_stock(session, [item for outcome, *_ in changed for item in outcome.stock])
    insert_many(
        session,
        StockMovement,
        [
            movement_row(movement, outcome.reservation.order_id, identity, trace_id)
            for outcome, identity, trace_id, _ in changed
            for movement in outcome.movements
        ],
    )
    insert_many(
        session,
        ReleaseEvent,
        [
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
        ],
    )


def _save_states(session: Session, reservations: Iterable[Reservation]) -> None:
    """Save the states of reservations; of those of one order the last."""
    last = {reservation.order_id: reservation.state.value for reservation in reservations}
    rows = [{"order_id": order_id, "state": state} for order_id, state in last.items()]
    update_many(session, ReservationRow, "order_id", rows, _TOUCHED)


def save_stock(session: Session, stock: Iterable[Stock]) -> None:
    """Save stock whose rows are locked; of the items of one sku the last. One statement."""
    last = {item.sku: item for item in stock}
    rows = [
        {"sku": item.sku, "on_hand": item.on_hand, "reserved": item.reserved, "version": item.version}
        for item in last.values()
    ]
    update_many(session, StockItem, "sku", rows, _TOUCHED)


def movement_row(movement: Movement, order_id: uuid.UUID | None, identity: Identity, trace_id: str) -> dict[str, Any]:
    """Return a movement as a row of stock_movements."""
    return {
        "sku": movement.sku,
        "change": movement.change,
        "cause": movement.cause.value,
        "order_id": order_id,
        "moved_by": identity.user_id,
        "trace_id": trace_id,
        "on_hand_after": movement.on_hand_after,
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
    expires_at: datetime = session.execute(
        text(
            "UPDATE reservations SET expires_at = now() + make_interval(secs => :seconds) WHERE order_id = :order_id"
            " RETURNING expires_at"
        ),
        {"seconds": seconds, "order_id": order_id},
    ).scalar_one()
    return expires_at


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
