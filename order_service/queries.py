"""Reading orders: one, pages of them, their steps and timelines. Nothing here changes them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from order_service.domain import AWAITED, Status, may_see
from order_service.models import OrderEventRow, OrderItemRow, OrderRow
from shared.errors import BadRequest, IdempotencyKeyReused, InvalidCursor, NotFound
from shared.events import Identity
from shared.idempotency import KeyedRequest
from shared.paging import decode_cursor, encode_cursor, page_of
from shared.times import timestamp


def order_of_key(session: Session, request: KeyedRequest) -> OrderRow:
    """The order that a user's key made. Raises IdempotencyKeyReused when it was made for another request."""
    row = session.scalars(select(OrderRow).filter_by(user_id=request.user_id, idempotency_key=request.key)).one()
    if row.fingerprint != request.fingerprint:
        raise IdempotencyKeyReused()
    return row


def visible_order(session: Session, order_id: str, viewer: Identity) -> OrderRow:
    """One order. Raises NotFound when there is none, when the id is no UUID, or when the viewer may not see it."""
    try:
        row = session.get(OrderRow, uuid.UUID(order_id))
    except ValueError:
        row = None
    if row is None or not may_see(row.user_id, viewer.user_id, viewer.roles):
        raise NotFound(f"There is no order {order_id}.")
    return row


def orders_page(
    session: Session, viewer: Identity, limit: int, cursor: str | None, filters: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of orders, newest first, and the next cursor: the viewer's own, or all for viewers who may see them.

    `filters` may hold status, user, from and to (RFC 3339; from <= created_at < to), and idempotency_key (of the
    viewer's own orders, or of the user's).
    """
    query = select(OrderRow).order_by(OrderRow.created_at.desc(), OrderRow.order_id.desc()).limit(limit + 1)
    status, user, key = filters.get("status"), filters.get("user"), filters.get("idempotency_key")
    if not may_see("", viewer.user_id, viewer.roles) or (key and not user):
        query = query.where(OrderRow.user_id == viewer.user_id)
    if status and status not in set(Status):
        raise BadRequest("There is no such status.", {"status": [f"Must be one of: {', '.join(Status)}."]})
    for column, value in ((OrderRow.status, status), (OrderRow.user_id, user), (OrderRow.idempotency_key, key)):
        if value:
            query = query.where(column == value)
    if filters.get("from"):
        query = query.where(OrderRow.created_at >= datetime.fromisoformat(filters["from"]))
    if filters.get("to"):
        query = query.where(OrderRow.created_at < datetime.fromisoformat(filters["to"]))
    if cursor:
        created_at, last = decode_cursor(cursor, filters, [str, str])
        try:
            position = (datetime.fromisoformat(created_at), uuid.UUID(last))
        except ValueError as error:
            raise InvalidCursor() from error
        query = query.where(tuple_(OrderRow.created_at, OrderRow.order_id) < position)
    rows, more = page_of(session.scalars(query).all(), limit)
    last_seen = [rows[-1].created_at.isoformat(), rows[-1].order_id] if more else []
    return order_bodies(session, rows), encode_cursor(last_seen, filters) if more else None


def order_bodies(session: Session, rows: Sequence[OrderRow]) -> list[dict[str, Any]]:
    """Orders as clients see them. One statement for the items of all."""
    items: dict[uuid.UUID, list[dict[str, Any]]] = {row.order_id: [] for row in rows}
    lines = select(OrderItemRow).where(OrderItemRow.order_id.in_(list(items))).order_by(OrderItemRow.line)
    for line in session.scalars(lines):
        items[line.order_id].append({"sku": line.sku, "quantity": line.quantity, "unit_price": line.unit_price})
    return [
        {
            "order_id": str(row.order_id),
            "status": row.status,
            "items": items[row.order_id],
            "total": row.total,
            "currency": row.currency,
            "payment_method": row.payment_method,
            "reason": row.reason,
            "payment_id": str(row.payment_id) if row.payment_id else None,
            "created_at": timestamp(row.created_at),
            "updated_at": timestamp(row.updated_at),
            "version": row.version,
        }
        for row in rows
    ]


def orders_newer_than(session: Session, known: Mapping[str, int]) -> list[dict[str, Any]]:
    """Those of the orders whose version is above the known one, as clients see them."""
    ids = [uuid.UUID(order_id) for order_id in known]
    versions = session.execute(select(OrderRow.order_id, OrderRow.version).where(OrderRow.order_id.in_(ids)))
    moved = [order_id for order_id, version in versions if version > known[str(order_id)]]
    return order_bodies(session, session.scalars(select(OrderRow).where(OrderRow.order_id.in_(moved))).all())


def steps_after(session: Session, order_id: uuid.UUID, last: int) -> list[dict[str, Any]]:
    """The steps of an order after one of them."""
    query = select(OrderEventRow).where(OrderEventRow.order_id == order_id, OrderEventRow.id > last)
    return [step_body(step) for step in session.scalars(query.order_by(OrderEventRow.id))]


def timeline(session: Session, row: OrderRow) -> dict[str, Any]:
    """Every step of an order so far, and what it waits for now, from whom, since when and for how many seconds."""
    steps = session.scalars(select(OrderEventRow).filter_by(order_id=row.order_id).order_by(OrderEventRow.id)).all()
    return {
        "order_id": str(row.order_id),
        "status": row.status,
        "reason": row.reason,
        "trace_id": row.trace_id,
        "steps": [step_body(step) for step in steps],
        "awaits": _awaits(Status(row.status), steps, session.execute(select(func.now())).scalar_one()),
    }


def step_body(step: OrderEventRow) -> dict[str, Any]:
    """One step as clients see it; `id` grows from step to step."""
    return {
        "id": step.id,
        "at": timestamp(step.at),
        "event": step.type,
        "from": step.from_status,
        "to": step.to_status,
        "source": step.source,
        "by": step.user_id,
        "details": step.details,
    }


def _awaits(status: Status, steps: Sequence[OrderEventRow], now: datetime) -> dict[str, Any] | None:
    if status not in AWAITED:
        return None
    source, events = AWAITED[status]
    since = next(step.at for step in reversed(steps) if step.from_status != step.to_status)
    return {
        "from": source,
        "events": list(events),
        "since": timestamp(since),
        "for_s": max(0, int((now - since).total_seconds())),
    }
