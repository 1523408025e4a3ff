"""Messages that were not handled: as they were delivered, and as they go to a retry level or to the DLQ.

`shared.outcomes` decides which of the two. Here is what the next queue must know of the message.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from shared.envelope import CONTRACT_VERSION, Envelope
from shared.errors import DeadMessage, EcomError, InvalidSchema, OverShare
from shared.ids import uuid7
from shared.outcomes import Outcome, outcome_of
from shared.senders import PUBLISHER, UNSIGNED, sender_of
from shared.times import timestamp
from shared.tracing import traceparent
from topology.table import dead_letter_queue, failed_exchange, retry_queues

MAX_ERROR_BYTES = 1024
EXHAUSTED = "exhausted"

# Any publisher can send any headers: what is taken from them must fit the columns of `dead_messages`.
MAX_COUNT = 1_000_000

# RabbitMQ allows a routing key of 255 bytes. In a header, any publisher can claim a longer one.
MAX_ROUTING_KEY = 255

Headers = Mapping[str, Any]

# The headers that a consumer writes. A message of a stranger that has one of them loses it.
OURS = frozenset(
    {
        "x-attempt",
        "x-error-class",
        "x-error-message",
        "x-service",
        "x-source-queue",
        "x-first-failed-at",
        "x-last-failed-at",
        "x-original-routing-key",
        "x-replays",
        "x-reason",
        "x-held-up",
        "x-held-up-since",
        PUBLISHER,
        "event-contract-version",
        "traceparent",
    }
)

# Headers that mean something to the broker. RabbitMQ 3.10 drops a message with copied death headers as a cycle, takes a
# copied delivery count for its own, and sends a copy to each queue that CC or BCC names.
BROKERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "CC", "BCC")

# Properties that no message is sent on with. A time to live would end it early, the broker refuses the user_id of
# another user (x-publisher names it), and the others are written anew.
NOT_KEPT = ("message_id", "type", "expiration", "user_id", "cluster_id", "delivery_mode")


def is_brokers(name: object) -> bool:
    """Whether a header means something to the broker. A name that is no UTF-8 comes as bytes."""
    return isinstance(name, str) and name.startswith(BROKERS)


def publishers_headers(headers: Headers) -> dict[str, Any]:
    """The headers that the publisher wrote: neither ours nor the broker's."""
    return {name: value for name, value in headers.items() if name not in OURS and not is_brokers(name)}


def publishers_properties(properties: Headers) -> dict[str, Any]:
    """The properties that a message is sent on with as its publisher wrote them, such as content_encoding."""
    return {name: value for name, value in properties.items() if name not in NOT_KEPT}


@dataclass(frozen=True)
class Delivery:
    """A message as the broker delivered it."""

    tag: int
    body: bytes
    routing_key: str
    message_id: str | None
    headers: Headers
    properties: Headers = field(default_factory=dict)  # without the headers
    received_at: float = field(default_factory=time.time, compare=False)  # Unix seconds

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
        return str(self.headers.get("x-original-routing-key") or self.routing_key)[:MAX_ROUTING_KEY]

    @property
    def held_up_before(self) -> int:
        """How often it was set aside because something held it up."""
        return _positive_integer(self.headers.get("x-held-up"))

    @property
    def locked_out_before(self) -> bool:
        """Whether a lock or a slow statement held it up last, and not the calls of its customer."""
        return self.held_up_before > 0 and self.headers.get("x-error-class") != OverShare.__name__

    @property
    def unsettled_since(self) -> float:
        """Since when it waits here, in Unix seconds: since it came, or since it was first held up."""
        since = _moment(self.headers.get("x-held-up-since")) if self.held_up_before else None
        return min(self.received_at, datetime.fromisoformat(since).timestamp()) if since else self.received_at

    def sender(self, consumer: str) -> str | None:
        """The user who published it, as `sender_of` says; `consumer` is the service to which it was delivered."""
        return sender_of(self.properties.get("user_id"), self.headers, consumer)

    def stripped(self, message_id: str | None) -> Delivery:
        """The same body under an id, with nothing else of what came with it but who sent it."""
        headers = {name: value for name, value in self.headers.items() if name == PUBLISHER}
        properties = {name: value for name, value in self.properties.items() if name == "user_id"}
        return replace(self, message_id=message_id, headers=headers, properties=properties)


@dataclass(frozen=True)
class FailedDelivery:
    """A delivery that was not handled, the event in it if it could be read, and why."""

    delivery: Delivery
    event: Envelope | None
    error: BaseException


@dataclass(frozen=True)
class Kept:
    """What a publisher wrote beside the body, and stays with the message on its way to a retry level or to the DLQ."""

    headers: dict[str, Any]
    properties: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A message on its way to a retry level or to the DLQ, with all that its next queue must know."""

    queue: str
    target: str
    outcome: Outcome  # RETRY, LATER or DEAD
    message_id: UUID
    body: str | bytes
    type: str
    reason: str | None  # why it is dead; None: it will be tried again
    headers: dict[str, Any]
    said: str  # the error for the log, without a value of the body
    order_id: UUID | None
    trace_id: str | None
    publishers: Kept  # what its publisher wrote beside the body

    @property
    def dead(self) -> bool:
        """Whether it goes to the DLQ."""
        return self.outcome is Outcome.DEAD


def classify_failure(failed: FailedDelivery, service: str, queue: str, now: datetime | None = None) -> Failure:
    """Prepare a message that was not handled for a retry level or, if its outcome is DEAD, for the DLQ with the reason.

    A message that was held up keeps its count of attempts: nothing is wrong with it.
    """
    delivery, event, error = failed.delivery, failed.event, failed.error
    moment = timestamp(now or datetime.now(UTC))
    outcome = outcome_of(error, delivery.failures_before)
    if outcome in (Outcome.PAUSE, Outcome.REPEAT):
        outcome = Outcome.RETRY
    failures = delivery.failures_before + (outcome is not Outcome.LATER)
    headers: dict[str, Any] = {
        "x-attempt": failures,
        "x-error-class": type(error).__name__,
        "x-error-message": _short(error),
        "x-service": service,
        "x-source-queue": queue,
        "x-first-failed-at": _moment(delivery.headers.get("x-first-failed-at")) or moment,
        "x-last-failed-at": moment,
        "x-original-routing-key": delivery.original_routing_key,
        "x-replays": _positive_integer(delivery.headers.get("x-replays")),
        PUBLISHER: delivery.sender(service) or UNSIGNED,
    }
    reason: str | None = None
    match outcome:
        case Outcome.DEAD:
            target = dead_letter_queue(queue)
            reason = error.code if isinstance(error, DeadMessage) else EXHAUSTED
            headers["x-reason"] = reason
        case Outcome.LATER:
            levels = retry_queues(queue)
            target = levels[-1] if delivery.held_up_before else levels[0]
            headers["x-held-up"] = min(delivery.held_up_before + 1, MAX_COUNT)
            headers["x-held-up-since"] = timestamp(datetime.fromtimestamp(delivery.unsettled_since, UTC))
        case _:
            target = retry_queues(queue)[failures - 1]
    if event is not None:
        headers |= {"event-contract-version": CONTRACT_VERSION, "traceparent": traceparent(event.trace_id)}
    publishers = Kept(publishers_headers(delivery.headers), publishers_properties(delivery.properties))
    body: str | bytes = delivery.body
    if event is not None and delivery.message_id != str(event.message_id):
        # A bare payload is sent on as the event it was completed to: otherwise each try would make another message.
        body = event.to_json()
        publishers = Kept(publishers.headers, {})
    return Failure(
        queue=queue,
        target=target,
        outcome=outcome,
        message_id=event.message_id if event else _uuid_or_new(delivery.message_id),
        body=body,
        type=event.type if event else "",
        reason=reason,
        headers=headers,
        said=_without_value(error),
        order_id=getattr(event.payload, "order_id", None) if event else None,
        trace_id=event.trace_id if event else None,
        publishers=publishers,
    )


def exchange_of(failure: Failure) -> str:
    """The exchange through which the failing service may send it on."""
    return failed_exchange(str(failure.headers["x-service"]))


def _without_value(error: BaseException) -> str:
    return str(error.details.get("rule", error)) if isinstance(error, InvalidSchema) else _short(error)


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
