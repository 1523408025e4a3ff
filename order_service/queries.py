"""Reading orders: one, pages of them, their steps and timelines. Nothing here changes them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, tuple_, union_all
from sqlalchemy.orm import Session, aliased, defer

from order_service.domain import AWAITED, Status, may_see, may_see_all, order_no_in
from order_service.models import OrderEventRow, OrderItemRow, OrderRow
from shared.errors import BadRequest, NotFound
from shared.events import Identity
from shared.idempotency import Claim, KeyedAnswer, KeyedRequest, KnownAnswer
from shared.order_states import has_ended
from shared.paging import decode_cursor, encode_cursor, id_position, page_of, time_position
from shared.times import timestamp


def answers_by_orders(session: Session, requests: Sequence[KeyedRequest]) -> dict[Claim, KnownAnswer]:
    """The answers of keys of which no answer is stored any more: the orders that they made, as they are now."""
    if not requests:
        return {}
    claims = [request.claim for request in requests]
    query = select(OrderRow).where(tuple_(OrderRow.user_id, OrderRow.idempotency_key).in_(claims))
    rows = session.scalars(query).all()
    return {
        (row.user_id, row.idempotency_key): KnownAnswer(
            row.fingerprint, KeyedAnswer(200, body, f"/api/orders/{row.order_id}", replayed=True)
        )
        for row, body in zip(rows, order_bodies(session, rows), strict=True)
    }


def visible_order(session: Session, order_id: str, viewer: Identity) -> OrderRow:
    """One order. Raises NotFound when there is none, when the id is no UUID, or when the viewer may not see it."""
    try:
        row = session.get(OrderRow, uuid.UUID(order_id))
    except ValueError:
        row = None
    if row is None or not may_see(viewer, row.user_id):
        raise NotFound(f"There is no order {order_id}.")
    return row


# How a list can be sorted: by which column, whether it begins with the newest, and the filter at which it begins. A
# program that follows changes reads the oldest change first: an order that changes meanwhile moves to the end. A change
# that commits late lies behind the reader, who therefore begins a minute earlier the next time.
SORTS = {"created_at": (OrderRow.created_at, True, "to"), "updated_at": (OrderRow.updated_at, False, "updated_from")}

# The filters by time, as (column, whether the bound is the beginning).
_TIMES = {
    "from": (OrderRow.created_at, True),
    "to": (OrderRow.created_at, False),
    "updated_from": (OrderRow.updated_at, True),
    "updated_to": (OrderRow.updated_at, False),
}


def orders_page(
    session: Session, viewer: Identity, limit: int, cursor: str | None, filters: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of orders and the next cursor: the viewer's own, or all for viewers who may see them.

    `filters` may hold status (states separated by commas), user, from, to, updated_from, updated_to (RFC 3339;
    from <= time < to), order_no, sku, idempotency_key (of the viewer's own orders, or of the user's), and sort:
    created_at (newest first) or updated_at (oldest change first, the default with updated_from or updated_to). Raises
    BadRequest, InvalidCursor.
    """
    column, newest_first, beginning = _sort_of(filters)
    if cursor:
        # A position lies after the beginning. PostgreSQL would take the two for independent, expect few rows and sort.
        conditions = _conditions(viewer, {name: filters[name] for name in filters if name != beginning})
        position, read_to = tuple_(column, OrderRow.order_id), _read_to(cursor, filters)
        conditions.append(position < read_to if newest_first else position > read_to)
    else:
        conditions = _conditions(viewer, filters)
    query = select(OrderRow).where(*conditions)
    states = _states_in(filters)
    # Each state has its own range of an index, which is read no further than a page.
    ranges = [query.where(OrderRow.status == state) for state in states] if states else [query]
    found = union_all(*(_sorted(each, column, OrderRow.order_id, newest_first, limit + 1) for each in ranges))
    row = aliased(OrderRow, found.subquery())
    page = _sorted(select(row), getattr(row, column.key), row.order_id, newest_first, limit + 1)
    rows, more = page_of(session.scalars(page).all(), limit)
    last_seen = [getattr(rows[-1], column.key).isoformat(), rows[-1].order_id] if more else []
    return order_bodies(session, rows), encode_cursor(last_seen, filters) if more else None


def _read_to(cursor: str, filters: Mapping[str, Any]) -> tuple[datetime, uuid.UUID]:
    at, order_id = decode_cursor(cursor, filters, [time_position, id_position])
    return at, order_id


def _sort_of(filters: Mapping[str, Any]) -> tuple[Any, bool, str]:
    by_change = "updated_from" in filters or "updated_to" in filters
    sort = filters.get("sort") or ("updated_at" if by_change else "created_at")
    if sort not in SORTS:
        raise BadRequest("Orders cannot be sorted by this.", {"sort": [f"Must be one of: {', '.join(SORTS)}."]})
    column, *_ = SORTS[sort]
    # The index of the other time would be of no use: a narrow range could cost reading all orders.
    others = [name for name in filters if name in _TIMES and _TIMES[name][0] is not column]
    if others:
        words = f"Does not go with a list that is sorted by {sort}."
        raise BadRequest("A query parameter is not valid.", {name: [words] for name in others})
    return SORTS[sort]


def _states_in(filters: Mapping[str, Any]) -> list[str]:
    states = sorted(set(filters["status"].split(","))) if filters.get("status") else []
    if not set(states) <= set(Status):
        raise BadRequest("There is no such status.", {"status": [f"Must be some of: {', '.join(Status)}."]})
    return states


def _conditions(viewer: Identity, filters: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """The conditions for all filters but the states."""
    user, key = filters.get("user"), filters.get("idempotency_key")
    found: list[ColumnElement[bool]] = []
    if not may_see_all(viewer) or (key and not user):
        found.append(OrderRow.user_id == viewer.user_id)
    if user:
        found.append(OrderRow.user_id == user)
    if key:
        found.append(OrderRow.idempotency_key == key)
    if order_no := filters.get("order_no"):
        found.append(OrderRow.order_no == order_no_in(order_no))
    if sku := filters.get("sku"):
        found.append(OrderRow.order_id.in_(select(OrderItemRow.order_id).where(OrderItemRow.sku == sku)))
    for name, (column, is_beginning) in _TIMES.items():
        if filters.get(name):
            bound = datetime.fromisoformat(filters[name])
            found.append(column >= bound if is_beginning else column < bound)
    return found


def _sorted(query: Select[Any], at: Any, order_id: Any, newest_first: bool, limit: int) -> Select[Any]:
    keys = (at.desc(), order_id.desc()) if newest_first else (at, order_id)
    return query.order_by(*keys).limit(limit)


def order_bodies(session: Session, rows: Sequence[OrderRow], notes: bool = True) -> list[dict[str, Any]]:
    """Orders as clients see them. One statement for the items of all.

    Without `notes` none is read: operators of the databases may not see what customers have written.
    """
    if not rows:
        return []
    items: dict[uuid.UUID, list[dict[str, Any]]] = {row.order_id: [] for row in rows}
    lines = select(OrderItemRow).where(OrderItemRow.order_id.in_(list(items))).order_by(OrderItemRow.line)
    if not notes:
        lines = lines.options(defer(OrderItemRow.note))
    for line in session.scalars(lines):
        items[line.order_id].append(
            {
                "sku": line.sku,
                "quantity": line.quantity,
                "unit_price": line.unit_price,
                "name": line.name,
                **({"note": line.note} if notes else {}),
            }
        )
    return [
        {
            "order_id": str(row.order_id),
            "order_no": row.order_no,
            "status": row.status,
            "items": items[row.order_id],
            "total": row.total,
            "currency": row.currency,
            **({"note": row.note} if notes else {}),
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


def steps_after(session: Session, order_id: uuid.UUID, last: int) -> dict[str, Any]:
    """The steps of an order after one of them: {steps, status, ended}. `ended` says whether no further step is due.

    All comes from one statement, so that the steps and the state agree.
    """
    steps = session.scalars(select(OrderEventRow).filter_by(order_id=order_id).order_by(OrderEventRow.id)).all()
    status = steps[-1].to_status
    return {
        "steps": [step_body(step) for step in steps if step.id > last],
        "status": status,
        "ended": has_ended(status, {step.type for step in steps}),
    }


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
