"""What becomes of a message that could not be handled: one decision, in one place.

The broker hears a closed set of words: done (ack), retry later (published to a retry level, then acked) and dead
(published to the DLQ, then acked). Attempts count only what is wrong with one message; a service that cannot work
pauses instead and counts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.envelope import CONTRACT_VERSION, Envelope
from shared.errors import DeadMessage, EcomError
from shared.ids import uuid7
from shared.tables import DeadMessageRow
from shared.times import timestamp
from shared.tracing import traceparent
from topology.table import RETRY_WAITS_S, dead_letter_queue, failed_exchange, retry_queues

MAX_ERROR_BYTES = 1024
EXHAUSTED = "exhausted"

# Headers come from whoever publishes: what is kept of them fits the columns of `dead_messages`.
MAX_COUNT = 1_000_000

Headers = Mapping[str, Any]


@dataclass(frozen=True)
class Delivery:
    """A message as the broker handed it over."""

    tag: int
    body: bytes
    routing_key: str
    message_id: str | None
    headers: Headers

    @property
    def deliveries_before(self) -> int:
        """How often it went back to the queue unsettled, by the broker's count."""
        return _whole(self.headers.get("x-delivery-count"))

    @property
    def failures_before(self) -> int:
        """How many tries have failed, by our own count."""
        return _whole(self.headers.get("x-attempt"))

    @property
    def original_routing_key(self) -> str:
        """The key it was first published with; a retry comes back with the queue's name as its key."""
        return str(self.headers.get("x-original-routing-key") or self.routing_key)


@dataclass(frozen=True)
class FailedDelivery:
    """A delivery that was not handled, the event in it if it could be read, and why."""

    delivery: Delivery
    event: Envelope | None
    error: BaseException


@dataclass(frozen=True)
class Failure:
    """The verdict on a message set apart, with all that its next queue must know."""

    queue: str
    target: str
    message_id: UUID
    body: str | bytes
    type: str
    reason: str | None  # None: it will be tried again
    headers: dict[str, Any]
    order_id: UUID | None
    trace_id: str | None

    @property
    def dead(self) -> bool:
        """Whether it goes to the DLQ."""
        return self.reason is not None


def classify_failure(apart: FailedDelivery, service: str, queue: str, now: datetime | None = None) -> Failure:
    """Retry later or dead. What can never succeed dies at once; anything else has its first try and three more."""
    delivery, event, error = apart.delivery, apart.event, apart.error
    moment = timestamp(now or datetime.now(UTC))
    failures = delivery.failures_before + 1
    if isinstance(error, DeadMessage):
        reason: str | None = error.code
    elif failures > len(RETRY_WAITS_S):
        reason = EXHAUSTED
    else:
        reason = None
    message_id = event.message_id if event else _uuid_or_new(delivery.message_id)
    headers: dict[str, Any] = {
        # Our own list and no others: RabbitMQ 3.10 drops a message with copied death headers as a cycle.
        "x-attempt": failures,
        "x-error-class": type(error).__name__,
        "x-error-message": _short(error),
        "x-service": service,
        "x-source-queue": queue,
        "x-first-failed-at": _moment(delivery.headers.get("x-first-failed-at")) or moment,
        "x-last-failed-at": moment,
        "x-original-routing-key": delivery.original_routing_key,
        "x-replays": _whole(delivery.headers.get("x-replays")),
    }
    if reason is not None:
        headers["x-reason"] = reason
    if event is not None:
        headers |= {"event-contract-version": CONTRACT_VERSION, "traceparent": traceparent(event.trace_id)}
    whole = event is None or delivery.message_id == str(event.message_id)
    return Failure(
        queue=queue,
        target=dead_letter_queue(queue) if reason else retry_queues(queue)[failures - 1],
        message_id=message_id,
        # A bare payload goes on as the event it was completed to, or each try would make another message of it.
        body=delivery.body if whole or event is None else event.to_json(),
        type=event.type if event else "",
        reason=reason,
        headers=headers,
        order_id=getattr(event.payload, "order_id", None) if event else None,
        trace_id=event.trace_id if event else None,
    )


def exchange_of(failure: Failure) -> str:
    """The exchange through which the failing service may send it on."""
    return failed_exchange(str(failure.headers["x-service"]))


def record_deaths(session: Session, failures: list[Failure]) -> None:
    """Write dead messages to `dead_messages`: one statement. A message that dies again updates its row."""
    rows = [
        {
            "message_id": failure.message_id,
            "queue": failure.queue,
            "service": failure.headers["x-service"],
            "event_type": failure.type or None,
            "order_id": failure.order_id,
            "trace_id": failure.trace_id,
            "reason": failure.reason,
            "error_class": failure.headers["x-error-class"],
            "error_message": failure.headers["x-error-message"],
            "attempts": failure.headers["x-attempt"],
            "replays": failure.headers["x-replays"],
            "first_failed_at": datetime.fromisoformat(failure.headers["x-first-failed-at"]),
        }
        for failure in {failure.message_id: failure for failure in failures}.values()
    ]
    statement = insert(DeadMessageRow).values(rows)
    again = {
        name: statement.excluded[name]
        for name in ("reason", "error_class", "error_message", "attempts", "replays", "first_failed_at")
    }
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["queue", "message_id"],
            set_={**again, "died_at": func.now(), "left_at": None, "left_how": None},
        )
    )


def _short(error: BaseException) -> str:
    text = str(error) if isinstance(error, EcomError) else f"{type(error).__name__}: {error}"
    # NUL cannot be stored in PostgreSQL text.
    return text.encode("utf-8", "replace")[:MAX_ERROR_BYTES].decode("utf-8", "ignore").replace("\0", "?")


def _whole(value: object) -> int:
    return min(value, MAX_COUNT) if type(value) is int and value > 0 else 0


def _moment(value: object) -> str | None:
    try:
        return timestamp(datetime.fromisoformat(str(value)))
    except (ValueError, OverflowError):
        return None


def _uuid_or_new(text: str | None) -> UUID:
    try:
        return UUID(text or "")
    except ValueError:
        return uuid7()
