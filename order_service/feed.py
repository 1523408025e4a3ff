"""The feed: the steps of all orders, in the order (xid, id) of `shared.horizon`, so that a reader misses none.

A position is written as `xid-id`. It names the last step that was read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from order_service.models import OrderEventRow
from order_service.queries import step_body
from shared.errors import BadRequest, CannotWork
from shared.feed import BEGINNING, NOW, STREAM_PAGE
from shared.horizon import HORIZON, NEXT_XID
from shared.logs import Reminder
from shared.paging import page_of

log = logging.getLogger(__name__)
_reminder = Reminder()

# Steps in one answer to all waiting streams of a gateway: about 500 kB.
MOST_STEPS = 1000

_PLACE = tuple_(OrderEventRow.xid, OrderEventRow.id)

# As for the release audit: ids only grow within one cluster.
IDS_FELL_BACK = (
    "this cluster's transaction ids are behind those of the steps of orders, as after a restore into a new one: the"
    " feed would miss steps until they are set (docs/streams.md says how)"
)


def steps_page(session: Session, after: str, limit: int) -> dict[str, Any]:
    """The steps after a position, oldest first: {items, after, more}.

    `after` in the answer is the position to go on from, and `more` says whether steps are waiting there already. Raises
    BadRequest for a position that the feed never gave, CannotWork if transaction ids fell back.
    """
    horizon, next_xid = _horizon(session)
    if after == NOW:
        # The same for all who ask until the next step: streams at one position share an answer.
        last = select(OrderEventRow.xid, OrderEventRow.id).where(OrderEventRow.xid < horizon)
        newest = session.execute(last.order_by(OrderEventRow.xid.desc(), OrderEventRow.id.desc()).limit(1)).first()
        return {"items": [], "after": _text((newest.xid, newest.id)) if newest else BEGINNING, "more": False}
    position = _position(after)
    if position[0] > next_xid:  # given before a restore: to wait for it would miss every step until then
        raise BadRequest("The feed has not come to this position.", {"after": ["Begin again: see docs/streams.md."]})
    return _page(session, position, limit, horizon)


def pages_after(session: Session, known: Mapping[str, int]) -> list[dict[str, Any]]:
    """The page after each position that has one, as {position, version, page}; `version` is one above the known one.

    At most MOST_STEPS steps in all: the other positions get theirs when they ask again.
    """
    horizon, _ = _horizon(session)
    found, left = [], MOST_STEPS
    for after, version in known.items():
        page = _page(session, _position(after), min(left, STREAM_PAGE), horizon)
        if page["items"]:
            found.append({"position": after, "version": version + 1, "page": page})
            left -= len(page["items"])
        if left == 0:
            break
    return found


def _horizon(session: Session) -> tuple[int, int]:
    newest = select(func.max(OrderEventRow.xid)).scalar_subquery()
    horizon, next_xid, last = session.execute(select(HORIZON, NEXT_XID, newest)).one()
    if last is not None and last >= next_xid:
        if _reminder.due(IDS_FELL_BACK):
            log.error(IDS_FELL_BACK)
        raise CannotWork(IDS_FELL_BACK)
    return horizon, next_xid


def _position(text: str) -> tuple[int, int]:
    if text == BEGINNING:
        return 0, 0
    xid, _, id_ = text.partition("-")
    try:
        return int(xid), int(id_)
    except ValueError:
        raise BadRequest("This is no position of the feed.", {"after": [f"Must be a position, or {NOW}."]}) from None


def _page(session: Session, position: tuple[int, int], limit: int, horizon: int) -> dict[str, Any]:
    query = select(OrderEventRow).where(tuple_(*position) < _PLACE, OrderEventRow.xid < horizon)
    query = query.order_by(OrderEventRow.xid, OrderEventRow.id).limit(limit + 1)
    rows, more = page_of(session.scalars(query).all(), limit)
    items = [{**step_body(row), "order_id": str(row.order_id), "position": _text((row.xid, row.id))} for row in rows]
    return {"items": items, "after": items[-1]["position"] if items else _text(position), "more": more}


def _text(position: tuple[int, int]) -> str:
    return f"{position[0]}-{position[1]}" if position != (0, 0) else BEGINNING
