"""The order service's tables and the few queries on them."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, UniqueConstraint, func, insert, select, text, tuple_
from sqlalchemy import Identity as IdentityColumn
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, Session, mapped_column

from order_service.domain import AWAITED, Order, Status, Step, may_see, subject_of
from shared.changes import changed
from shared.envelope import Envelope
from shared.errors import BadRequest, IdempotencyInProgress, IdempotencyKeyReused, InvalidCursor, NotFound
from shared.events import Identity, OrderCreated
from shared.paging import decode_cursor, encode_cursor, page_of
from shared.schema import encode
from shared.tables import MESSAGING_TABLES, NOW, Base, update_many
from shared.times import timestamp

CREATE_ROUTE = "POST /api/orders"
CANCEL_ROUTE = "POST /api/orders/{order_id}/cancel"

# 24 hours are promised. After that the order itself, which keeps key and fingerprint, answers for ever.
IDEMPOTENCY_KEEP_HOURS = 48


class OrderRow(Base):
    """An order as it is now."""

    __tablename__ = "orders"

    order_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str | None]
    currency: Mapped[str]
    total: Mapped[int] = mapped_column(BigInteger)
    payment_method: Mapped[str]
    reservation_id: Mapped[uuid.UUID | None]
    payment_id: Mapped[uuid.UUID | None]
    refund_id: Mapped[uuid.UUID | None]
    cancelled_told: Mapped[bool] = mapped_column(server_default=text("false"))
    trace_id: Mapped[str]
    idempotency_key: Mapped[str]
    fingerprint: Mapped[str]
    version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (
        # A late repeat of a key never makes a second order.
        UniqueConstraint("user_id", "idempotency_key"),
        # Pages of orders, newest first, by each filter.
        Index(None, "created_at", "order_id"),
        Index(None, "user_id", "created_at", "order_id"),
        Index(None, "status", "created_at", "order_id"),
        Index("ix_orders_unsettled", "created_at", postgresql_where=text("status IN ('PENDING', 'RESERVED')")),
    )


class OrderItemRow(Base):
    """One line of an order, as it was posted."""

    __tablename__ = "order_items"

    order_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(OrderRow.order_id), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str]
    quantity: Mapped[int]
    unit_price: Mapped[int] = mapped_column(BigInteger)


class OrderEventRow(Base):
    """The timeline: every step of an order, and what it has followed."""

    __tablename__ = "order_events"

    id: Mapped[int] = mapped_column(BigInteger, IdentityColumn(), primary_key=True)
    order_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(OrderRow.order_id))
    type: Mapped[str]
    subject_id: Mapped[uuid.UUID | None]
    from_status: Mapped[str | None]
    to_status: Mapped[str]
    source: Mapped[str]
    user_id: Mapped[str]
    message_id: Mapped[uuid.UUID | None]
    details: Mapped[dict[str, Any]] = mapped_column(JSONB)
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))

    __table_args__ = (Index(None, "order_id", "id"),)


class IdempotencyKeyRow(Base):
    """The stored answer of a POST."""

    __tablename__ = "idempotency_keys"

    user_id: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    status: Mapped[int]
    body: Mapped[dict[str, Any]] = mapped_column(JSON)  # not JSONB: a replay is the same to the byte
    location: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (Index(None, "created_at", postgresql_using="brin"),)


TABLES = MESSAGING_TABLES | {"orders", "order_items", "order_events", "idempotency_keys"}


# --- creating -----------------------------------------------------------------------------------------------------


def fingerprint(body: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a request."""
    text_ = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text_.encode()).hexdigest()


def claim_key(
    session: Session,
    user_id: str,
    route: str,
    key: str,
    request: Mapping[str, Any],
    status: int,
    body: Mapping[str, Any],
    location: str,
) -> dict[str, Any] | None:
    """Take the key for this answer: None when it was free, else the answer that was stored with it.

    Inserting first is the lock: a second post of the key waits here for the first to commit. Raises
    IdempotencyInProgress when that takes over 2 s (lock_timeout), IdempotencyKeyReused for another request.
    """
    given = {
        "user_id": user_id,
        "route": route,
        "key": key,
        "fingerprint": fingerprint(request),
        "status": status,
        "body": body,
        "location": location,
    }
    try:
        statement = upsert(IdempotencyKeyRow).values(given).on_conflict_do_nothing().returning(IdempotencyKeyRow.key)
        if session.scalar(statement):
            return None
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) == "55P03":
            raise IdempotencyInProgress() from error
        raise
    stored = session.get_one(IdempotencyKeyRow, (user_id, route, key))
    if stored.fingerprint != given["fingerprint"]:
        raise IdempotencyKeyReused()
    return {"status": stored.status, "body": stored.body, "location": stored.location, "replayed": True}


def add_order(
    session: Session, payload: OrderCreated, identity: Identity, trace_id: str, key: str, request: Mapping[str, Any]
) -> bool:
    """Write a new order and its first step; False when this user's key made one long ago."""
    inserted = session.scalar(
        upsert(OrderRow)
        .values(
            order_id=payload.order_id,
            user_id=identity.user_id,
            status=Status.PENDING,
            currency=payload.currency,
            total=payload.total,
            payment_method=payload.payment_method,
            trace_id=trace_id,
            idempotency_key=key,
            fingerprint=fingerprint(request),
        )
        .on_conflict_do_nothing(index_elements=["user_id", "idempotency_key"])
        .returning(OrderRow.order_id)
    )
    if inserted is None:
        return False
    session.execute(
        insert(OrderItemRow),
        [
            {"order_id": payload.order_id, "line": line, **encode(item)}
            for line, item in enumerate(payload.items, start=1)
        ],
    )
    session.execute(
        insert(OrderEventRow).values(
            order_id=payload.order_id,
            type="order.created",
            to_status=Status.PENDING,
            source="order_service",
            user_id=identity.user_id,
            details={"total": payload.total, "currency": payload.currency},
        )
    )
    return True


def order_of_key(session: Session, user_id: str, key: str, request: Mapping[str, Any]) -> OrderRow:
    """The order that a user's key made. Raises IdempotencyKeyReused when it was for another request."""
    row = session.scalars(select(OrderRow).filter_by(user_id=user_id, idempotency_key=key)).one()
    if row.fingerprint != fingerprint(request):
        raise IdempotencyKeyReused()
    return row


def purge_keys(session: Session) -> int:
    """Forget stored answers that are older than promised; how many."""
    gone = session.execute(
        text("DELETE FROM idempotency_keys WHERE created_at < now() - make_interval(hours => :hours)"),
        {"hours": IDEMPOTENCY_KEEP_HOURS},
    )
    return int(gone.rowcount)  # type: ignore[attr-defined]


# --- following ----------------------------------------------------------------------------------------------------


def orders_of(session: Session, order_ids: Iterable[uuid.UUID], lock: bool = False) -> dict[uuid.UUID, Order]:
    """The orders with what each has followed, if asked locked in one order for everybody. Two statements."""
    query = select(OrderRow).where(OrderRow.order_id.in_(set(order_ids))).order_by(OrderRow.order_id)
    if lock:
        # What the session read before it had the lock is out of date.
        query = query.with_for_update().execution_options(populate_existing=True)
    rows = session.scalars(query).all()
    followed: dict[uuid.UUID, set[tuple[str, uuid.UUID | None]]] = {row.order_id: set() for row in rows}
    heard = select(OrderEventRow.order_id, OrderEventRow.type, OrderEventRow.subject_id).where(
        OrderEventRow.order_id.in_(list(followed)), OrderEventRow.message_id.is_not(None)
    )
    for order_id, type_, subject_id in session.execute(heard):
        followed[order_id].add((type_, subject_id))
    return {
        row.order_id: Order(
            order_id=row.order_id,
            status=Status(row.status),
            currency=row.currency,
            total=row.total,
            reason=row.reason,
            reservation_id=row.reservation_id,
            payment_id=row.payment_id,
            refund_id=row.refund_id,
            cancelled_told=row.cancelled_told,
            followed=frozenset(followed[row.order_id]),
        )
        for row in rows
    }


@dataclass(frozen=True)
class Heard:
    """What an order heard: an event, or the word of a person or a clock."""

    type: str
    source: str
    user_id: str
    subject_id: uuid.UUID | None = None
    message_id: uuid.UUID | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def heard_of(event: Envelope) -> Heard:
    """An event, as the timeline keeps it."""
    payload = encode(event.payload)
    details = {name: payload[name] for name in ("reason", "shortages", "provider_reference") if name in payload}
    return Heard(event.type, event.source, event.identity.user_id, subject_of(event.payload), event.message_id, details)


def save_steps(session: Session, steps: Sequence[tuple[Heard, Order, Step]]) -> None:
    """Write what became of the orders of a batch: their last state and every step. Two statements."""
    after = {step.order.order_id: step.order for _, _, step in steps}
    changed(session, after)
    update_many(
        session,
        OrderRow,
        "order_id",
        [
            {
                "order_id": order.order_id,
                "status": order.status.value,
                "reason": order.reason,
                "reservation_id": order.reservation_id,
                "payment_id": order.payment_id,
                "refund_id": order.refund_id,
                "cancelled_told": order.cancelled_told,
            }
            for order in after.values()
        ],
        also={"version": OrderRow.version + 1, "updated_at": func.now()},
    )
    if steps:
        session.execute(
            # Without it rows with an empty column make a statement of their own.
            insert(OrderEventRow).execution_options(render_nulls=True),
            [
                {
                    "order_id": step.order.order_id,
                    "from_status": before.status,
                    "to_status": step.order.status,
                    **what.__dict__,
                }
                for what, before, step in steps
            ],
        )


def overdue(session: Session, deadline_s: float, limit: int) -> list[uuid.UUID]:
    """Orders that have not ended in time, oldest first."""
    query = (
        select(OrderRow.order_id)
        .where(
            OrderRow.status.in_([Status.PENDING, Status.RESERVED]),
            OrderRow.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, deadline_s),
        )
        .order_by(OrderRow.created_at)
        .limit(limit)
    )
    return list(session.scalars(query))


def trace_of(session: Session, order_id: uuid.UUID) -> str:
    """The trace of an order that this session has loaded."""
    return session.get_one(OrderRow, order_id).trace_id


# --- reading ------------------------------------------------------------------------------------------------------


def visible_order(session: Session, order_id: str, viewer: Identity) -> OrderRow:
    """One order. Raises NotFound when there is none, when the id is no UUID, or when it is somebody else's."""
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
    """A page of orders, newest first, and the next cursor: the viewer's own, or all for those who may see them.

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


def newer(session: Session, known: Mapping[str, int]) -> list[dict[str, Any]]:
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
