"""Notes on orders: append only, in no log, metric or error."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from order_service.domain import may_see_all
from order_service.models import OrderNoteRow
from shared import idempotency
from shared.events import Identity
from shared.idempotency import KeyedAnswer, KeyedRequest
from shared.times import timestamp

ROUTE = "POST /api/orders/{order_id}/notes"
MOST = 200


def notes_of(session: Session, order_id: UUID, reader: Identity) -> list[dict[str, Any]]:
    """The notes on an order that somebody may read, oldest first. One statement."""
    query = select(OrderNoteRow).where(OrderNoteRow.order_id == order_id).order_by(OrderNoteRow.id).limit(MOST)
    if not may_see_all(reader):
        query = query.where(OrderNoteRow.shown)
    return [_body(row, reader) for row in session.scalars(query)]


def add(session: Session, order_id: UUID, text: str, shown: bool, author: Identity, key: str) -> KeyedAnswer:
    """Write a note. An answer that is `replayed` belongs to an earlier request: roll this one back.

    Raises IdempotencyKeyReused, IdempotencyInProgress.
    """
    values = {"order_id": order_id, "author": author.user_id, "text": text, "shown": shown}
    row = session.scalars(insert(OrderNoteRow).values(values).returning(OrderNoteRow)).one()
    content = {"order_id": str(order_id), "text": text, "shown": shown}
    answer = KeyedAnswer(201, _body(row, author), f"/api/orders/{order_id}/notes")
    stored = idempotency.claim_key(session, KeyedRequest(author.user_id, ROUTE, key, content), answer)
    return stored or answer


def _body(row: OrderNoteRow, reader: Identity) -> dict[str, Any]:
    return {
        "id": row.id,
        "text": row.text,
        "shown": row.shown,
        "author": row.author if may_see_all(reader) else None,
        "at": timestamp(row.at),
    }
