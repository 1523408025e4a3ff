"""Predict what a replay of a dead message of the inventory service would do, for `ecom dlq diagnose`. Read only."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from inventory_service import domain, queries
from shared.envelope import Envelope
from shared.predictions import APPLIES, Prediction, Predictor, Verdict, predict_each


def reserve(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    """Predict replays of order.created."""
    held = queries.reservations_of(session, [event.payload.order_id for event in events])

    def decide(event: Envelope) -> Verdict:
        existing = held.get(event.payload.order_id)
        if existing is None:
            return APPLIES
        return APPLIES if domain.repeat_reserve(existing, event.payload).emits else _stale(existing)

    return predict_each(events, decide)


def close(verb: str) -> Predictor:
    """Return the predictor for release or commit requests."""

    def predictor(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
        held = queries.reservations_of(session, [event.payload.order_id for event in events])
        skus = {sku for reservation in held.values() for sku in reservation.quantities}
        stock = queries.stock_of(session, skus)

        def decide(event: Envelope) -> Verdict:
            existing = held.get(event.payload.order_id)
            if existing is None and verb == domain.RELEASE:
                return APPLIES  # a replay inserts a tombstone
            reason = getattr(event.payload, "reason", "")
            outcome = domain.close_reservation(stock, existing, verb, event.payload.order_id, reason)
            return APPLIES if outcome.changed else _stale(outcome.reservation)

        return predict_each(events, decide)

    return predictor


def _stale(reservation: domain.Reservation) -> Verdict:
    return Prediction.STALE, f"the reservation is {reservation.state}"


PREDICTORS: dict[str, Predictor] = {
    "q.inventory.order-created": reserve,
    "q.inventory.release-requested": close(domain.RELEASE),
    "q.inventory.commit-requested": close(domain.COMMIT),
}
