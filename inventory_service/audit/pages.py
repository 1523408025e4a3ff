"""Pages, counts and totals of the release audit."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Date, RowMapping, Select, cast, func, select, tuple_
from sqlalchemy.orm import Session

from inventory_service.models import ReleaseEvent, SealRow
from shared.errors import NotFound
from shared.paging import decode_cursor, encode_cursor, page_of, row_position, time_position
from shared.times import timestamp

FILTERS = {"order_id": "order_id", "sku": "sku", "reason": "reason", "user_id": "requested_by", "trace_id": "trace_id"}

ROW = ReleaseEvent.__table__.c
_NEWEST_FIRST = (ROW.released_at, ROW.id)


def page(
    session: Session, filters: Mapping[str, Any], limit: int, cursor: str | None = None, offset: int = 0
) -> tuple[list[dict[str, Any]], str | None]:
    """Return one page of the audit, newest first, and the next cursor. Every filter has an index."""
    return read_page(session, filtered(select(*ROW), filters).offset(offset or None), filters, limit, cursor)


def page_before(
    session: Session, filters: Mapping[str, Any], limit: int, event_id: int
) -> tuple[list[dict[str, Any]], str | None, bool]:
    """Return the page that ends just before a release, newest first, its next cursor, and whether it is the first page.

    If fewer releases than a page are newer, this is the first page, which then contains older ones as well.
    """
    here = select(*_NEWEST_FIRST).where(ROW.id == event_id).scalar_subquery()
    query = filtered(select(*ROW), filters).where(tuple_(*_NEWEST_FIRST) > here).order_by(*_NEWEST_FIRST)
    rows, more = page_of(session.execute(query.limit(limit + 1)).mappings().all(), limit)
    if not more:
        return *page(session, filters, limit), True
    return [_as_dict(row) for row in reversed(rows)], _cursor(rows[0], filters), False


def count(session: Session, filters: Mapping[str, Any]) -> int:
    """Count the rows that match the filters. Reads all of them in an index."""
    return session.scalar(filtered(select(func.count()).select_from(ReleaseEvent), filters)) or 0


def totals(session: Session, filters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sum releases and units by day (UTC) and reason, in this order. Reads every row that matches the filters."""
    day = cast(func.timezone("UTC", ROW.released_at), Date).label("day")
    query = filtered(select(day, ROW.reason, func.count().label("releases"), func.sum(ROW.quantity)), filters)
    rows = session.execute(query.group_by(day, ROW.reason).order_by(day, ROW.reason))
    return [
        {"day": date.isoformat(), "reason": reason, "releases": releases, "quantity": int(quantity)}
        for date, reason, releases, quantity in rows
    ]


def find(session: Session, event_id: int) -> dict[str, Any]:
    """Return one release with the seal that covers it, or None if it is not sealed yet. Raises NotFound."""
    row = session.execute(select(*ROW).where(ROW.id == event_id)).mappings().first()
    if row is None:
        raise NotFound(f"There is no release event {event_id}.")
    seal = SealRow.__table__.c
    covers = tuple_(seal.until_xid, seal.until_id) >= tuple_(row["xid"], row["id"])
    query = select(seal.seq, seal.sealed_at).where(covers).order_by(seal.until_xid, seal.until_id).limit(1)
    found = session.execute(query).first()
    return _as_dict(row) | {"seal": {"seq": found.seq, "sealed_at": timestamp(found.sealed_at)} if found else None}


def filtered(query: Select[Any], filters: Mapping[str, Any]) -> Select[Any]:
    """Add the filters to a query. `from` is inclusive, `to` is exclusive."""
    for name, column in FILTERS.items():
        if filters.get(name) is not None:
            query = query.where(ROW[column] == filters[name])
    if filters.get("from"):
        query = query.where(ROW.released_at >= datetime.fromisoformat(filters["from"]))
    if filters.get("to"):
        query = query.where(ROW.released_at < datetime.fromisoformat(filters["to"]))
    return query


def read_page(
    session: Session, query: Select[Any], filters: Mapping[str, Any], limit: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """Read the page of a filtered query that starts at the cursor. The cursor is only valid with the same filters."""
    if cursor:
        at, last = decode_cursor(cursor, filters, [time_position, row_position])
        query = query.where(tuple_(*_NEWEST_FIRST) < tuple_(at, last))
    query = query.order_by(*(column.desc() for column in _NEWEST_FIRST)).limit(limit + 1)
    rows, more = page_of(session.execute(query).mappings().all(), limit)
    return [_as_dict(row) for row in rows], _cursor(rows[-1], filters) if more else None


def _cursor(row: RowMapping, filters: Mapping[str, Any]) -> str:
    """The cursor of the page after a row."""
    return encode_cursor([row["released_at"].isoformat(), row["id"]], filters)


def _as_dict(row: RowMapping) -> dict[str, Any]:
    return {
        "id": row["id"],
        "order_id": str(row["order_id"]),
        "reservation_id": str(row["reservation_id"]),
        "sku": row["sku"],
        "quantity": row["quantity"],
        "reason": row["reason"],
        "requested_by": row["requested_by"],
        "roles": row["roles"],
        "trace_id": row["trace_id"],
        "released_at": timestamp(row["released_at"]),
    }
