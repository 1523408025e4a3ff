"""What a replay of a dead message would do now: the answers of each service's predict.py to `ecom dlq diagnose`.

A predictor reads its service's tables and runs its rules. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from uuid import UUID

from sqlalchemy.orm import Session

from shared.envelope import Envelope
from shared.errors import DeadMessage


class Prediction(StrEnum):
    """What a replay of a message would do now."""

    APPLY = "will apply"
    APPLIED = "already applied"
    STALE = "stale"
    POISON = "still poison"


# The prediction and, in words, why.
Verdict = tuple[Prediction, str]
APPLIES: Verdict = (Prediction.APPLY, "")

# Predicts some events of one queue, by message id. It takes a few statements, whatever their number.
Predictor = Callable[[Session, Sequence[Envelope]], dict[UUID, Verdict]]


def predict_each(events: Sequence[Envelope], decide: Callable[[Envelope], Verdict]) -> dict[UUID, Verdict]:
    """Decide about each event. An event whose rule raises DeadMessage is POISON, with the error as the reason."""
    verdicts = {}
    for event in events:
        try:
            verdicts[event.message_id] = decide(event)
        except DeadMessage as error:
            verdicts[event.message_id] = (Prediction.POISON, f"{error.code}: {_without_ids(str(error))}")
    return verdicts


def _without_ids(text: str) -> str:
    # Messages with the same reason are counted together, so their reasons must be equal.
    return " ".join("..." if len(word) == 36 and word.count("-") == 4 else word for word in text.split())
