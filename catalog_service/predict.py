"""Predict what a replay of a dead message of the catalog service would do, for `ecom dlq diagnose`. Read only."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from catalog_service import availability
from shared.envelope import Envelope
from shared.predictions import APPLIES, Prediction, Predictor, Verdict, predict_each


def learn_availability(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    """Predict replays of stock.availability_changed: what is older than what is known changes nothing."""
    known = availability.versions(session, {event.payload.sku for event in events})

    def decide(event: Envelope) -> Verdict:
        version = known.get(event.payload.sku, 0)
        if version < event.payload.version:
            return APPLIES
        return Prediction.STALE, "a newer version is known"

    return predict_each(events, decide)


PREDICTORS: dict[str, Predictor] = {"q.catalog.stock-availability": learn_availability}
