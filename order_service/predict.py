"""What a replay of each dead message of the order service would do now, for `ecom dlq diagnose`. Read only."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from order_service import domain, models, offers
from shared.envelope import Envelope
from shared.errors import UnknownOrder
from shared.ids import uuid7
from shared.predictions import APPLIES, Prediction, Predictor, Verdict, predict_each


def result(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    """Predict results of inventory and payment."""
    orders = models.orders_of(session, [event.payload.order_id for event in events])

    def decide(event: Envelope) -> Verdict:
        known = orders.get(event.payload.order_id)
        if known is None:
            raise UnknownOrder("there is no such order")
        step = domain.follow(known, event.payload, uuid7())
        if step.repeated:
            return Prediction.STALE, f"the order is {known.status} and has followed it"
        if step.order.status == known.status:
            return Prediction.APPLY, f"the order is {known.status} and stays so: it is a step of its timeline"
        return Prediction.APPLY, f"the order is {known.status} and becomes {step.order.status}"

    return predict_each(events, decide)


def learn_offers(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    """Predict replays of catalog.offer_changed: what is older than what is known changes nothing."""
    known = offers.versions_of(session, {event.payload.sku for event in events})

    def decide(event: Envelope) -> Verdict:
        if known.get(event.payload.sku, 0) < event.payload.version:
            return APPLIES
        return Prediction.STALE, "a newer version is known"

    return predict_each(events, decide)


PREDICTORS: dict[str, Predictor] = {
    "q.order.inventory-result": result,
    "q.order.payment-result": result,
    "q.order.catalog-offers": learn_offers,
}
