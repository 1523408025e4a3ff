"""Messages that could not be handled: as they were delivered, and as they go to a retry level or to the DLQ.

`shared.outcomes` decides which of the two. Here is what the next queue must know of the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from shared.envelope import CONTRACT_VERSION, Envelope
from shared.errors import DeadMessage, EcomError
from shared.ids import uuid7
from shared.outcomes import Outcome, outcome_of
from shared.times import timestamp
from shared.tracing import traceparent
from topology.table import dead_letter_queue, failed_exchange, retry_queues

MAX_ERROR_BYTES = 1024
EXHAUSTED = "exhausted"

# Any publisher can send any headers: what is taken from them must fit the columns of `dead_messages`.
MAX_COUNT = 1_000_000

Headers = Mapping[str, Any]


@dataclass(frozen=True)
class Delivery:
    """A message as the broker delivered it."""

    tag: int
    body: bytes
    routing_key: str
    message_id: str | None
    headers: Headers

    @property
    def deliveries_before(self) -> int:
        """How often it went back to the queue unsettled, by the broker's count."""
        return _positive_integer(self.headers.get("x-delivery-count"))

    @property
    def failures_before(self) -> int:
        """How many tries have failed, by our own count."""
        return _positive_integer(self.headers.get("x-attempt"))

    @property
    def original_routing_key(self) -> str:
        """The routing key of its first publication. A retried message returns with the queue's name as its key."""
        return str(self.headers.get("x-original-routing-key") or self.routing_key)


@dataclass(frozen=True)
class FailedDelivery:
    """A delivery that was not handled, the event in it if it could be read, and why."""

    delivery: Delivery
    event: Envelope | None
    error: BaseException


@dataclass(frozen=True)
class Failure:
    """A message on its way to a retry level or to the DLQ, with all that its next queue must know."""

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


def classify_failure(failed: FailedDelivery, service: str, queue: str, now: datetime | None = None) -> Failure:
    """Prepare a failed message for its retry level or, if its outcome is DEAD, for the DLQ with the reason."""
    delivery, event, error = failed.delivery, failed.event, failed.error
    moment = timestamp(now or datetime.now(UTC))
    failures = delivery.failures_before + 1
    reason: str | None = None
    if outcome_of(error, delivery.failures_before) is Outcome.DEAD:
        reason = error.code if isinstance(error, DeadMessage) else EXHAUSTED
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
        "x-replays": _positive_integer(delivery.headers.get("x-replays")),
    }
    if reason is not None:
        headers["x-reason"] = reason
    if event is not None:
        headers |= {"event-contract-version": CONTRACT_VERSION, "traceparent": traceparent(event.trace_id)}
    is_complete = event is None or delivery.message_id == str(event.message_id)
    return Failure(
        queue=queue,
        target=dead_letter_queue(queue) if reason else retry_queues(queue)[failures - 1],
        message_id=message_id,
        # A bare payload is sent on as the event it was completed to: otherwise each try would make another message.
        body=delivery.body if is_complete or event is None else event.to_json(),
        type=event.type if event else "",
        reason=reason,
        headers=headers,
        order_id=getattr(event.payload, "order_id", None) if event else None,
        trace_id=event.trace_id if event else None,
    )


def exchange_of(failure: Failure) -> str:
    """The exchange through which the failing service may send it on."""
    return failed_exchange(str(failure.headers["x-service"]))


def _short(error: BaseException) -> str:
    text = str(error) if isinstance(error, EcomError) else f"{type(error).__name__}: {error}"
    # NUL cannot be stored in PostgreSQL text.
    return text.encode("utf-8", "replace")[:MAX_ERROR_BYTES].decode("utf-8", "ignore").replace("\0", "?")


def _positive_integer(value: object) -> int:
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
