"""Predict what a replay of a dead message of the payment service would do, for `ecom dlq diagnose`. Read only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from payment_service import domain, models
from shared.envelope import Envelope
from shared.predictions import APPLIES, Prediction, Predictor, Verdict, predict_each


def charge(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    """Predict replays of inventory.reserved, which charge the order."""
    payments = _payments(session, events)

    def decide(event: Envelope) -> Verdict:
        known = payments.get(event.payload.order_id)
        domain.check_charge(known, event.payload)  # raises the same errors as the handler
        return APPLIES if known is None or domain.is_to_be_charged(known) else _stale(known)

    return predict_each(events, decide)


def refund(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    """Predict replays of refund requests."""
    payments = _payments(session, events)
    refunds = models.refunds(session, [event.payload.refund_id for event in events])

    def decide(event: Envelope) -> Verdict:
        order_id, refund_id = event.payload.order_id, event.payload.refund_id
        asked = refunds.get(refund_id) or domain.Refund(refund_id, order_id, domain.RefundStatus.PENDING)
        known = payments.get(order_id)
        domain.check_refund(known, asked, event.payload)
        domain.refunded(known, order_id, asked, None)  # raises the same errors as the handler
        if known is not None and asked.status != domain.RefundStatus.PENDING:
            return Prediction.STALE, f"the refund is {asked.status}"
        return APPLIES

    return predict_each(events, decide)


def void(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    """Predict replays of order.cancelled."""
    payments = _payments(session, events)

    def decide(event: Envelope) -> Verdict:
        known = payments.get(event.payload.order_id)
        return APPLIES if known is None or domain.cancelled(known) != known else _stale(known)

    return predict_each(events, decide)


def _payments(session: Session, events: Sequence[Envelope]) -> Mapping[UUID, domain.Payment]:
    rows = models.payments_of(session, [event.payload.order_id for event in events])
    return {order_id: models.payment(row) for order_id, row in rows.items()}


def _stale(known: domain.Payment) -> Verdict:
    return Prediction.STALE, f"the payment is {known.status}"


PREDICTORS: dict[str, Predictor] = {
    "q.payment.inventory-reserved": charge,
    "q.payment.refund-requested": refund,
    "q.payment.order-cancelled": void,
}
