"""The statements on purchase orders.

Lock order: purchase orders by id, then rules by sku, then stock by sku. A new line locks the stock of its sku, too: by
its foreign key.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select, text
from sqlalchemy.orm import Session

from inventory_service.models import PurchaseOrderLine, PurchaseOrderRow, StockItem
from inventory_service.purchasing import domain
from inventory_service.purchasing.domain import Line, PurchaseOrder
from shared.bulk import is_given, table_of
from shared.enumerations import PurchaseStatus as Status
from shared.errors import Conflict, NotFound
from shared.paging import decode_cursor, encode_cursor, id_position, page_of
from shared.times import timestamp

_STOCK, _ORDERS, _LINES = table_of(StockItem), table_of(PurchaseOrderRow), table_of(PurchaseOrderLine)

_HEAD = (
    _ORDERS.c.po_id,
    _ORDERS.c.supplier_id,
    _ORDERS.c.status,
    _ORDERS.c.version,
    _ORDERS.c.note,
    _ORDERS.c.made_by,
    _ORDERS.c.made_at,
    _ORDERS.c.ordered_at,
    _ORDERS.c.expected_at,
    _ORDERS.c.closed_at,
)
_LINE = (_LINES.c.sku, _LINES.c.quantity, _LINES.c.received, _LINES.c.unit_cost, _LINES.c.currency)
_BEFORE_ORDER = text(
    """
    SELECT now() AS at, (SELECT active FROM suppliers WHERE supplier_id = CAST(:supplier_id AS uuid)) AS is_active,
           ARRAY(SELECT sku FROM stock_items WHERE sku = ANY(CAST(:skus AS text[]))) AS stocked
    """
)
_ADD_ORDER = text(
    """
    INSERT INTO purchase_orders (po_id, supplier_id, status, note, made_by)
    VALUES (:po_id, CAST(:supplier_id AS uuid), 'PROPOSED', :note, :made_by)
    ON CONFLICT (supplier_id) WHERE status = 'PROPOSED' DO NOTHING
    RETURNING po_id
    """
)
_STOCKED = select(_STOCK.c.sku).where(is_given(_STOCK.c.sku))
_DROP_LINES = text("DELETE FROM purchase_order_lines WHERE po_id = :po_id")
_ADD_LINES = text(
    """
    INSERT INTO purchase_order_lines (po_id, sku, quantity, unit_cost, currency)
    SELECT :po_id, given.* FROM unnest(
        CAST(:skus AS text[]), CAST(:quantities AS bigint[]), CAST(:unit_costs AS bigint[]), CAST(:currencies AS text[])
    ) AS given (sku, quantity, unit_cost, currency) ORDER BY sku
    """
)
_RECEIVED = text(
    """
    UPDATE purchase_order_lines AS lines SET received = given.received, unit_cost = given.unit_cost
    FROM unnest(CAST(:skus AS text[]), CAST(:received AS bigint[]), CAST(:unit_costs AS bigint[]))
        AS given (sku, received, unit_cost)
    WHERE lines.po_id = :po_id AND lines.sku = given.sku
    """
)
_STEP = text(
    """
    UPDATE purchase_orders
    SET status = :status, version = version + 1,
        ordered_at = CASE WHEN :dates THEN now() ELSE ordered_at END,
        expected_at = CASE WHEN :dates THEN now() + make_interval(
            days => (SELECT lead_days FROM suppliers WHERE suppliers.supplier_id = purchase_orders.supplier_id)
        ) ELSE expected_at END,
        closed_at = CASE WHEN :closes THEN now() ELSE closed_at END
    WHERE po_id = :po_id
    RETURNING po_id, supplier_id, status, version, note, made_by, made_at, ordered_at, expected_at, closed_at
    """
)
_REWRITE = text(
    """
    UPDATE purchase_orders SET note = :note, version = version + 1 WHERE po_id = :po_id
    RETURNING po_id, supplier_id, status, version, note, made_by, made_at, ordered_at, expected_at, closed_at
    """
)
# In one order, as `reorder` locks them.
_SNOOZE = text(
    f"""
    UPDATE stock_rules SET snoozed_until = now() + interval '{domain.SNOOZE_HOURS} hours'
    FROM (SELECT sku FROM stock_rules WHERE sku = ANY(CAST(:skus AS text[])) ORDER BY sku FOR UPDATE) AS locked
    WHERE stock_rules.sku = locked.sku
    """
)


def before_order(session: Session, supplier_id: str, skus: Sequence[str]) -> tuple[datetime, bool | None, list[str]]:
    """The time now, whether a supplier is active, and which skus have stock. One statement."""
    return tuple(session.execute(_BEFORE_ORDER, {"supplier_id": supplier_id, "skus": list(skus)}).one())


def stocked(session: Session, skus: Sequence[str]) -> set[str]:
    """Those of the skus that have stock. One statement."""
    return set(session.scalars(_STOCKED, {"given_sku": list(skus)}))


def add_order(session: Session, order: PurchaseOrder, note: str | None, made_by: str) -> None:
    """Save a new proposal. Raises Conflict, naming the one that its supplier has already. Two statements."""
    values = {"po_id": order.po_id, "supplier_id": order.supplier_id, "note": note, "made_by": made_by}
    if session.scalar(_ADD_ORDER, values) is None:
        there = session.scalar(
            select(_ORDERS.c.po_id).where(
                _ORDERS.c.supplier_id == order.supplier_id, _ORDERS.c.status == Status.PROPOSED.value
            )
        )
        details = {"purchase_order_id": str(there)} if there else {}
        raise Conflict("This supplier has a proposal already: change that one.", details)
    _add_lines(session, order.po_id, order.lines.values())


def rewrite(session: Session, order: PurchaseOrder, lines: Mapping[str, Line], note: str | None) -> Row[Any]:
    """Give a locked proposal these lines and no others, and its note; its head as it is then. Three statements."""
    session.execute(_DROP_LINES, {"po_id": order.po_id})
    _add_lines(session, order.po_id, lines.values())
    return session.execute(_REWRITE, {"po_id": order.po_id, "note": note}).one()


def _add_lines(session: Session, po_id: uuid.UUID, lines: Iterable[Line]) -> None:
    given = list(lines)
    values = {
        "po_id": po_id,
        "skus": [line.sku for line in given],
        "quantities": [line.quantity for line in given],
        "unit_costs": [line.unit_cost for line in given],
        "currencies": [line.currency for line in given],
    }
    session.execute(_ADD_LINES, values)


def lock_order(session: Session, po_id: str) -> PurchaseOrder:
    """Lock a purchase order and load it with its lines. Raises NotFound. Two statements."""
    query = select(_ORDERS.c.po_id, _ORDERS.c.supplier_id, _ORDERS.c.status, _ORDERS.c.version)
    row = session.execute(query.where(_ORDERS.c.po_id == uuid.UUID(po_id)).with_for_update()).one_or_none()
    if row is None:
        raise NotFound
    # A statement of their own: a join would show the lines as they were before the wait for the lock.
    lines = session.execute(select(*_LINE).where(_LINES.c.po_id == row.po_id).order_by(_LINES.c.sku))
    return PurchaseOrder(
        row.po_id, row.supplier_id, Status(row.status), row.version, {line.sku: Line(*line) for line in lines}
    )


def save_step(session: Session, order: PurchaseOrder, row: domain.Row) -> Row[Any]:
    """Save the status of a locked purchase order after a step; its head as it is then. At most two statements."""
    status = domain.after(order, row)
    values = {"po_id": order.po_id, "status": status.value, "dates": row.dates, "closes": status in domain.FINAL}
    if row.snoozes:
        session.execute(_SNOOZE, {"skus": list(order.lines)})
    return session.execute(_STEP, values).one()


def save_received(session: Session, po_id: uuid.UUID, lines: Sequence[Line]) -> None:
    """Save how much of these lines has come. One statement."""
    values = {
        "po_id": po_id,
        "skus": [line.sku for line in lines],
        "received": [line.received for line in lines],
        "unit_costs": [line.unit_cost for line in lines],
    }
    session.execute(_RECEIVED, values)


def find_order(session: Session, po_id: str) -> dict[str, Any]:
    """One purchase order with its lines, both of one moment. Raises NotFound. One statement."""
    query = (
        select(*_HEAD, *_LINE)
        .select_from(_ORDERS.outerjoin(_LINES, _LINES.c.po_id == _ORDERS.c.po_id))
        .where(_ORDERS.c.po_id == uuid.UUID(po_id))
        .order_by(_LINES.c.sku)
    )
    rows = session.execute(query).all()
    if not rows:
        raise NotFound
    lines = [Line(row.sku, row.quantity, row.received, row.unit_cost, row.currency) for row in rows if row.sku]
    return order_body(rows[0], lines)


def orders_page(session: Session, limit: int, cursor: str | None, filters: Mapping[str, Any]) -> dict[str, Any]:
    """A page of purchase orders without their lines, newest first: {items, next_cursor}. One statement.

    `filters`: status, supplier. Raises InvalidCursor.
    """
    query = select(*_HEAD).order_by(_ORDERS.c.po_id.desc()).limit(limit + 1)
    if status := filters.get("status"):
        query = query.where(_ORDERS.c.status == status)
    if supplier := filters.get("supplier"):
        query = query.where(_ORDERS.c.supplier_id == uuid.UUID(supplier))
    if cursor is not None:
        (last,) = decode_cursor(cursor, filters, [id_position])
        query = query.where(_ORDERS.c.po_id < last)
    rows, more = page_of(session.execute(query).all(), limit)
    return {
        "items": [head_body(row) for row in rows],
        "next_cursor": encode_cursor([str(rows[-1].po_id)], filters) if more else None,
    }


def head_body(row: Any) -> dict[str, Any]:
    """A purchase order without its lines in the form that clients see."""
    return {
        "purchase_order_id": str(row.po_id),
        "supplier_id": str(row.supplier_id),
        "status": row.status,
        "version": row.version,
        "note": row.note,
        "made_by": row.made_by,
        "made_at": timestamp(row.made_at),
        "ordered_at": row.ordered_at and timestamp(row.ordered_at),
        "expected_at": row.expected_at and timestamp(row.expected_at),
        "closed_at": row.closed_at and timestamp(row.closed_at),
    }


def order_body(row: Any, lines: Iterable[Line]) -> dict[str, Any]:
    """A purchase order in the form that clients see."""
    waits = row.status in domain.OPEN
    return {
        **head_body(row),
        "lines": [
            {
                "sku": line.sku,
                "quantity": line.quantity,
                "received": line.received,
                "open": line.open if waits else 0,
                "unit_cost": line.unit_cost,
                "currency": line.currency,
            }
            for line in lines
        ],
    }
