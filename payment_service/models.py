"""The payment service's tables and queries."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Row, Text, bindparam, func, select, text, update
from sqlalchemy import Identity as IdentityColumn
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, Session, mapped_column
from sqlalchemy.sql.dml import ReturningInsert

from payment_service.domain import Payment, Refund, RefundStatus, Status, may_see, payment_id_of
from shared.bulk import columns_of, insert_of, is_given, table_of, update_many
from shared.envelope import Envelope
from shared.errors import NotFound
from shared.events import Identity
from shared.rights import Rights
from shared.tables import MESSAGING_RIGHTS, NOW, Base
from shared.times import timestamp


class PaymentRow(Base):
    """One order's payment, with the trace and the customer of the request."""

    __tablename__ = "payments"

    order_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    payment_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    status: Mapped[str]
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]
    method: Mapped[str]
    reference: Mapped[str] = mapped_column(server_default="")
    reason: Mapped[str] = mapped_column(server_default="")
    cancelled: Mapped[bool] = mapped_column(server_default=text("false"))
    user_id: Mapped[str]
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    trace_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (Index("ix_payments_unknown", "updated_at", postgresql_where=text("status = 'PENDING'")),)


class RefundRow(Base):
    """One attempt to refund a payment; refund_id is the provider's idempotency key."""

    __tablename__ = "refunds"

    refund_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    order_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(PaymentRow.order_id))
    status: Mapped[str]
    user_id: Mapped[str]
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    trace_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (
        Index(None, "order_id"),
        Index("ix_refunds_unknown", "updated_at", postgresql_where=text("status = 'PENDING'")),
    )


class PaymentLogRow(Base):
    """One step of a payment or a refund. Triggers on both tables write it; this service can neither add nor change one.

    `user_id` and `trace_id` are those of the request: of the customer who pays, of the user who refunds.
    """

    __tablename__ = "payment_log"

    order_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, IdentityColumn(), primary_key=True)
    refund_id: Mapped[uuid.UUID | None]  # NULL for a step of the payment itself
    from_status: Mapped[str | None]
    to_status: Mapped[str]
    reference: Mapped[str]
    reason: Mapped[str]
    user_id: Mapped[str]
    trace_id: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))


class LedgerRow(Base):
    """The mock provider's own ledger. Only the mock provider reads or writes it."""

    __tablename__ = "provider_ledger"

    key: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    order_id: Mapped[uuid.UUID]
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]
    done: Mapped[bool]
    reference: Mapped[str]
    reason: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (Index(None, "order_id"),)


RIGHTS = MESSAGING_RIGHTS | {
    "payments": Rights(
        changed=("status", "reference", "reason", "cancelled", "updated_at"),
        read=(
            "order_id",
            "payment_id",
            "status",
            "amount",
            "currency",
            "method",
            "reference",
            "reason",
            "cancelled",
            "user_id",
            "roles",
            "trace_id",
            "created_at",
            "updated_at",
        ),
    ),
    "refunds": Rights(
        changed=("status", "updated_at"),
        read=("refund_id", "order_id", "status", "user_id", "roles", "trace_id", "created_at", "updated_at"),
    ),
    "payment_log": Rights(added=False),
    "provider_ledger": Rights(),
}
TABLES = frozenset(RIGHTS)


_PAYMENTS, _REFUNDS = table_of(PaymentRow), table_of(RefundRow)
_NEW_PAYMENT = ("order_id", "payment_id", "status", "amount", "currency", "method", "user_id", "roles", "trace_id")
_NEW_REFUND = ("refund_id", "order_id", "status", "user_id", "roles", "trace_id")
_CHANGED_NOW = {"updated_at": func.now()}

_CLAIM_CHARGES = (
    insert_of(PaymentRow, *_NEW_PAYMENT)
    .on_conflict_do_update(index_elements=["order_id"], set_=_CHANGED_NOW, where=_PAYMENTS.c.status == Status.PENDING)
    .returning(_PAYMENTS)
)
_CLAIM_VOIDS = insert_of(PaymentRow, *_NEW_PAYMENT).on_conflict_do_nothing().returning(_PAYMENTS.c.order_id)
_REOPEN = (
    update(_PAYMENTS)
    .where(_PAYMENTS.c.order_id == bindparam("given"), _PAYMENTS.c.status == Status.VOID, _PAYMENTS.c.cancelled)
    .values(status=Status.PENDING)
)
_READ_PAYMENTS = select(_PAYMENTS).where(is_given(_PAYMENTS.c.order_id)).execution_options(prepared=True)
# In one order for everybody, so that transactions cannot deadlock.
_LOCK_PAYMENTS = _READ_PAYMENTS.order_by(_PAYMENTS.c.order_id).with_for_update()
_CLAIM_REFUNDS = insert_of(RefundRow, *_NEW_REFUND).on_conflict_do_nothing().returning(_REFUNDS.c.refund_id)
_READ_REFUNDS = select(_REFUNDS.c.refund_id, _REFUNDS.c.order_id, _REFUNDS.c.status).where(
    is_given(_REFUNDS.c.refund_id)
)


def claim_charges(session: Session, events: Iterable[Envelope]) -> dict[uuid.UUID, Row[Any]]:
    """Record a PENDING payment for each order, before the provider is asked. One statement that commits itself.

    Returns by order the payments that are PENDING: no other may be charged. If the answer gets lost, `recover_unknown`
    asks for it later. If a payment was PENDING already, its waiting time starts again, because an outage may have
    separated the two requests.
    """
    found = _claim(
        session,
        _CLAIM_CHARGES,
        [
            {
                "order_id": event.payload.order_id,
                "payment_id": payment_id_of(event.payload.order_id),
                "status": Status.PENDING,
                "amount": event.payload.total,
                "currency": event.payload.currency,
                "method": event.payload.payment_method,
                **_caused(event),
            }
            for event in events
        ],
    )
    return {row.order_id: row for row in found}


def reopen(session: Session, order_id: uuid.UUID) -> None:
    """Set a payment back to PENDING that became VOID while the provider was being asked.

    It may be charged now; `recover_unknown` finds out. One statement that commits itself, after the provider call.
    """
    session.execute(_REOPEN, {"given": order_id})


def claim_voids(session: Session, events: Iterable[Envelope]) -> set[uuid.UUID]:
    """Insert a VOID payment for each cancelled order without payment, so that it is never charged. One statement.

    Returns the orders that had no payment.
    """
    found = _claim(
        session,
        _CLAIM_VOIDS,
        [
            {
                "order_id": event.payload.order_id,
                "payment_id": payment_id_of(event.payload.order_id),
                "status": Status.VOID,
                "amount": 0,
                "currency": "",
                "method": "",
                **_caused(event),
            }
            for event in events
        ],
    )
    return {row.order_id for row in found}


def _claim(session: Session, statement: ReturningInsert[Any], rows: list[dict[str, Any]]) -> Sequence[Row[Any]]:
    unique: dict[uuid.UUID, dict[str, Any]] = {}
    for row in rows:
        unique.setdefault(row["order_id"], row)  # a later one that differs contradicts the first
    ordered = [unique[order_id] for order_id in sorted(unique)]
    return session.execute(statement, columns_of(ordered, _NEW_PAYMENT)).all() if ordered else ()


def _caused(event: Envelope) -> dict[str, Any]:
    return {
        "user_id": event.identity.user_id,
        "roles": list(event.identity.roles),
        "trace_id": event.trace_id,
    }


def payments_of(session: Session, order_ids: Iterable[uuid.UUID], lock: bool = False) -> dict[uuid.UUID, Row[Any]]:
    """Load the payments of these orders. One statement, or none without orders.

    `lock=True` locks rows by order_id, so that transactions cannot deadlock.
    """
    given = {"given_order_id": list(set(order_ids))}
    if not given["given_order_id"]:
        return {}
    return {row.order_id: row for row in session.execute(_LOCK_PAYMENTS if lock else _READ_PAYMENTS, given)}


def payment(row: Row[Any]) -> Payment:
    """Convert a row to the payment that the rules use."""
    return Payment(
        row.order_id,
        row.payment_id,
        Status(row.status),
        row.amount,
        row.currency,
        row.reference,
        row.reason,
        row.cancelled,
        row.method,
    )


def save_payments(session: Session, payments: Iterable[Payment]) -> None:
    """Save payments. One statement."""
    rows = [
        {
            "order_id": item.order_id,
            "status": item.status.value,
            "reference": item.reference,
            "reason": item.reason,
            "cancelled": item.cancelled,
        }
        for item in payments
    ]
    update_many(session, PaymentRow, "order_id", rows, also=_CHANGED_NOW)


def claim_refunds(session: Session, events: Iterable[Envelope]) -> dict[uuid.UUID, Refund]:
    """Record a PENDING refund for each request, before the provider is asked; return these refunds as they are now.

    The payments must exist. One statement, and a second one for refunds that were recorded before.
    """
    rows = {
        event.payload.refund_id: {
            "refund_id": event.payload.refund_id,
            "order_id": event.payload.order_id,
            "status": RefundStatus.PENDING,
            **_caused(event),
        }
        for event in events
    }
    if not rows:
        return {}
    given = columns_of([rows[key] for key in sorted(rows)], _NEW_REFUND)
    new = set(session.scalars(_CLAIM_REFUNDS, given))
    claimed = {key: Refund(key, rows[key]["order_id"], RefundStatus.PENDING) for key in new}
    return claimed | refunds(session, rows.keys() - new)


def refunds(session: Session, refund_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Refund]:
    """Load these refunds. One statement, or none without ids."""
    given = {"given_refund_id": list(set(refund_ids))}
    if not given["given_refund_id"]:
        return {}
    return {
        row.refund_id: Refund(row.refund_id, row.order_id, RefundStatus(row.status))
        for row in session.execute(_READ_REFUNDS, given)
    }


def save_refunds(session: Session, refunds: Iterable[Refund]) -> None:
    """Save refunds. One statement."""
    rows = [{"refund_id": item.refund_id, "status": item.status.value} for item in refunds]
    update_many(session, RefundRow, "refund_id", rows, also=_CHANGED_NOW)


def unknown(session: Session, model: type[PaymentRow] | type[RefundRow], age_s: float, limit: int) -> Sequence[Any]:
    """Load payments or refunds that have been PENDING for at least `age_s`.

    The oldest of each customer comes first, then the second oldest of each, and so on: those of one customer whom the
    provider never answers do not keep those of the others from their turn.
    """
    old = model.updated_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, age_s)
    turn = func.row_number().over(partition_by=model.user_id, order_by=model.updated_at)
    query = select(table_of(model)).where(model.status == "PENDING", old).order_by(turn, model.updated_at)
    return session.execute(query.limit(limit)).all()


def visible(session: Session, viewer: Identity, **by: str) -> dict[str, Any]:
    """Return one payment for a viewer. Raises NotFound, also if a customer asks for another customer's payment."""
    try:
        row = session.scalars(select(PaymentRow).filter_by(**{k: uuid.UUID(v) for k, v in by.items()})).first()
    except ValueError:
        row = None
    if row is None or not may_see(viewer, row.user_id):
        raise NotFound("There is no such payment.")
    return {
        "payment_id": str(row.payment_id),
        "order_id": str(row.order_id),
        "status": row.status,
        "amount": row.amount,
        "currency": row.currency,
        "payment_method": row.method,
        "provider_reference": row.reference or None,
        "reason": row.reason or None,
        "created_at": timestamp(row.created_at),
        "updated_at": timestamp(row.updated_at),
    }
