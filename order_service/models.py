"""The order service's tables and the few queries on them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, UniqueConstraint, func, literal_column, select, text
from sqlalchemy import Identity as IdentityColumn
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, Session, mapped_column

from order_service.domain import Order, Status, Step, subject_of
from shared.bulk import insert_many, is_given, table_of, update_many
from shared.changes import changed
from shared.envelope import Envelope
from shared.horizon import CURRENT_XID
from shared.order_states import UNPAID
from shared.rights import Rights
from shared.schema import encode
from shared.tables import MESSAGING_RIGHTS, NOW, Base

# As SQL, for the indexes of the deadline and of the limits.
UNPAID_SQL = f"status IN ({', '.join(repr(status.value) for status in sorted(UNPAID))})"


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
    order_no: Mapped[str | None]  # what people call it; NULL for orders from before there were numbers
    note: Mapped[str | None]
    version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)
    # The largest xid of its steps.
    feed_xid: Mapped[int] = mapped_column(BigInteger, server_default=text(CURRENT_XID))

    __table_args__ = (
        # A late repeat of a key never makes a second order.
        UniqueConstraint("user_id", "idempotency_key"),
        # Pages of orders by each filter: newest first, or by their last change.
        *(
            Index(None, *filtered, sorted_by, "order_id")
            for sorted_by in ("created_at", "updated_at")
            for filtered in ((), ("user_id",), ("status",))
        ),
        Index("uq_orders_order_no", "order_no", unique=True),
        Index("ix_orders_unsettled", "created_at", postgresql_where=text(UNPAID_SQL)),
        Index("ix_orders_open_of_user", "user_id", postgresql_where=text(UNPAID_SQL)),
    )


class OrderItemRow(Base):
    """One line of an order, as it was posted."""

    __tablename__ = "order_items"

    order_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(OrderRow.order_id), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str]
    quantity: Mapped[int]
    unit_price: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str | None]
    note: Mapped[str | None]
    # The version of the offer by which the price was found; NULL for lines from before the catalog.
    offer_version: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_order_items_sku_order_id", "sku", "order_id"),)


class OfferRow(Base):
    """The copy of what the catalog sells under a sku, as it said in this version."""

    __tablename__ = "offers"

    sku: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
    item_id: Mapped[uuid.UUID]
    name: Mapped[str]
    sellable: Mapped[bool]
    prices: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)  # in force and to come
    heard_at: Mapped[datetime] = mapped_column(server_default=NOW)


class OrderNoteRow(Base):
    """What somebody wrote about an order. Append only."""

    __tablename__ = "order_notes"

    id: Mapped[int] = mapped_column(BigInteger, IdentityColumn(), primary_key=True)
    order_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(OrderRow.order_id))
    author: Mapped[str]
    text: Mapped[str]
    shown: Mapped[bool]  # whether the owner of the order sees it
    at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (Index(None, "order_id", "id"),)


class OrderEventRow(Base):
    """The timeline: every step of an order, and what it has followed."""

    __tablename__ = "order_events"

    # Steps are read by order, so this is the one index for both.
    order_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(OrderRow.order_id), primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, IdentityColumn(), primary_key=True)
    type: Mapped[str]
    subject_id: Mapped[uuid.UUID | None]
    from_status: Mapped[str | None]
    to_status: Mapped[str]
    source: Mapped[str]
    user_id: Mapped[str]
    message_id: Mapped[uuid.UUID | None]
    details: Mapped[dict[str, Any]] = mapped_column(JSONB)
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    xid: Mapped[int] = mapped_column(BigInteger, server_default=text(CURRENT_XID))

    __table_args__ = (Index(None, "xid", "id"),)  # the feed


# An order's progress: all that changes of it.
_PROGRESS = (
    "status",
    "reason",
    "reservation_id",
    "payment_id",
    "refund_id",
    "cancelled_told",
    "version",
    "updated_at",
    "feed_xid",
)

RIGHTS = MESSAGING_RIGHTS | {
    "orders": Rights(
        changed=_PROGRESS,
        read=(
            "order_id",
            "user_id",
            "currency",
            "total",
            "payment_method",
            "trace_id",
            "idempotency_key",
            "fingerprint",
            "order_no",
            "created_at",
            *_PROGRESS,
        ),
    ),
    "order_items": Rights(read=("order_id", "line", "sku", "quantity", "unit_price", "name", "offer_version")),
    "offers": Rights(
        changed=("version", "item_id", "name", "sellable", "prices", "heard_at"),
        read=("sku", "version", "item_id", "name", "sellable", "prices", "heard_at"),
    ),
    "order_notes": Rights(),
    "order_events": Rights(
        read=(
            "id",
            "order_id",
            "type",
            "subject_id",
            "from_status",
            "to_status",
            "source",
            "user_id",
            "message_id",
            "details",
            "at",
            "xid",
        )
    ),
    "idempotency_keys": Rights(deleted_because="a stored answer is deleted after 48 hours; the order keeps its key"),
}
TABLES = frozenset(RIGHTS)


_ORDERS, _STEPS = table_of(OrderRow).c, table_of(OrderEventRow).c
_ORDERS_OF = (
    select(
        _ORDERS.order_id,
        _ORDERS.user_id,
        _ORDERS.status,
        _ORDERS.currency,
        _ORDERS.total,
        _ORDERS.reason,
        _ORDERS.reservation_id,
        _ORDERS.payment_id,
        _ORDERS.refund_id,
        _ORDERS.cancelled_told,
        _ORDERS.payment_method,
        _ORDERS.trace_id,
    )
    .where(is_given(_ORDERS.order_id))
    .order_by(_ORDERS.order_id)
    .execution_options(prepared=True)
)
_LOCKED_ORDERS_OF = _ORDERS_OF.with_for_update()
# A statement of its own: what waits for a lock sees of other tables what was committed before it waited.
_FOLLOWED = (
    select(_STEPS.order_id, _STEPS.type, _STEPS.subject_id)
    .where(is_given(_STEPS.order_id), _STEPS.message_id.is_not(None))
    .execution_options(prepared=True)
)


def orders_of(session: Session, order_ids: Iterable[uuid.UUID], lock: bool = False) -> dict[uuid.UUID, Order]:
    """Load orders and the results each has applied. `lock=True` locks rows by order_id, so that transactions cannot
    deadlock. Two statements."""
    wanted = {"given_order_id": list(set(order_ids))}
    rows = session.execute(_LOCKED_ORDERS_OF if lock else _ORDERS_OF, wanted).all()
    followed: dict[uuid.UUID, set[tuple[str, uuid.UUID | None]]] = {row.order_id: set() for row in rows}
    for order_id, type_, subject_id in session.execute(_FOLLOWED, {"given_order_id": list(followed)}):
        followed[order_id].add((type_, subject_id))
    return {
        row.order_id: Order(
            order_id=row.order_id,
            customer_id=row.user_id,
            status=Status(row.status),
            currency=row.currency,
            total=row.total,
            reason=row.reason,
            reservation_id=row.reservation_id,
            payment_id=row.payment_id,
            refund_id=row.refund_id,
            cancelled_told=row.cancelled_told,
            followed=frozenset(followed[row.order_id]),
            payment_method=row.payment_method,
            trace_id=row.trace_id,
        )
        for row in rows
    }


@dataclass(frozen=True)
class Heard:
    """A step of the timeline: an event, or the command of a person or a timer."""

    type: str
    source: str
    user_id: str
    subject_id: uuid.UUID | None = None
    message_id: uuid.UUID | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


# The fields of a result that its step shows.
_DETAILS = ("reason", "shortages", "provider_reference")


def heard_of(event: Envelope) -> Heard:
    """An event as a step of the timeline."""
    payload = vars(event.payload)
    details = {name: encode(payload[name]) for name in _DETAILS if name in payload}
    return Heard(event.type, event.source, event.identity.user_id, subject_of(event.payload), event.message_id, details)


_WITH_EACH_STEP = {
    "version": _ORDERS.version + 1,
    "updated_at": NOW,
    "feed_xid": func.greatest(_ORDERS.feed_xid, literal_column(CURRENT_XID)),
}


def save_steps(session: Session, steps: Sequence[tuple[Heard, Order, Step]]) -> None:
    """Save the orders of a batch: their last state and every step. Two statements.

    A transaction gets its id before it has the lock of an order, so another one with a larger id may have written a
    step meanwhile. The new step then takes that larger xid: in the feed, the steps of one order keep their order. The
    feed shows neither before this transaction has ended.
    """
    after = {step.order.order_id: step.order for _, _, step in steps}
    changed(session, after)
    newest = update_many(
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
        also=_WITH_EACH_STEP,
        returning=OrderRow.feed_xid,
    )
    insert_many(
        session,
        OrderEventRow,
        [
            {
                "order_id": step.order.order_id,
                "from_status": before.status.value,
                "to_status": step.order.status.value,
                "xid": newest[step.order.order_id],
                **vars(what),
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
