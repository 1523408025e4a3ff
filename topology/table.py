"""What the broker looks like: one row for each queue, and every other name derived from it.

Pure data: standard library only. `topology.declare` makes the broker look like this.
"""

from __future__ import annotations

from dataclasses import dataclass

EVENTS_EXCHANGE = "ecom.events"

# Which orders have just changed, for whoever waits for one. Its messages are transient and nobody need hear them.
HINTS_EXCHANGE = "ecom.hints"

# A failing message has its first try and then one more after each of these waits, in seconds.
RETRY_WAITS_S = (1, 2, 4)

# A message that kills its process this often goes to the DLQ by the broker's own hand.
DELIVERY_LIMIT = 20

# "No limit" for a DLQ. Never -1: RabbitMQ 3.10 accepts it and drops the message at its first requeue.
UNLIMITED_DELIVERIES = 2_147_483_647

Argument = str | int


@dataclass(frozen=True)
class Queue:
    """A main queue: the service that consumes it, the routing keys it is bound to, how often it may be delivered."""

    name: str
    service: str
    bindings: tuple[str, ...]
    delivery_limit: int = DELIVERY_LIMIT


QUEUES = (
    Queue("q.inventory.order-created", "inventory", ("order.created",)),
    Queue("q.inventory.release-requested", "inventory", ("inventory.release.requested",)),
    Queue("q.inventory.commit-requested", "inventory", ("inventory.commit.requested",)),
    Queue("q.payment.inventory-reserved", "payment", ("inventory.reserved",)),
    Queue("q.payment.refund-requested", "payment", ("payment.refund.requested",)),
    Queue("q.payment.order-cancelled", "payment", ("order.cancelled",)),
    Queue("q.order.inventory-result", "order", ("inventory.*",)),
    Queue("q.order.payment-result", "order", ("payment.*",)),
)

BY_NAME = {queue.name: queue for queue in QUEUES}


def retry_queues(queue: str) -> tuple[str, ...]:
    """The retry levels of a queue, shortest wait first: q.x.retry (1 s), q.x.retry.2s, q.x.retry.4s."""
    _, *others = RETRY_WAITS_S
    return (f"{queue}.retry", *(f"{queue}.retry.{wait}s" for wait in others))


def dead_letter_queue(queue: str) -> str:
    """The DLQ of a main queue; the name of a DLQ is returned as it is."""
    return queue if queue.endswith(".dlq") else f"{queue}.dlq"


def main_queue(queue: str) -> str:
    """The main queue of a main queue's or DLQ's name."""
    return queue.removesuffix(".dlq")


def failed_exchange(service: str) -> str:
    """The direct exchange through which one service sends its own messages to retry, to dead or back."""
    return f"ecom.failed.{service}"


def hears(queue: Queue, routing_key: str) -> bool:
    """Whether one of the queue's bindings matches a routing key, by the rules of a topic exchange without `#`."""
    return any(_matches(binding.split("."), routing_key.split(".")) for binding in queue.bindings)


def _matches(pattern: list[str], words: list[str]) -> bool:
    return len(pattern) == len(words) and all(p in ("*", w) for p, w in zip(pattern, words, strict=True))


def queue_arguments() -> dict[str, dict[str, Argument]]:
    """Every queue of the table with its arguments: main queues, retry levels and DLQs."""
    # at-least-once loses nothing when the broker is killed while it dead-letters; it needs reject-publish,
    # and falls back silently with any other overflow.
    lasting: dict[str, Argument] = {
        "x-queue-type": "quorum",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": "",
    }
    arguments: dict[str, dict[str, Argument]] = {}
    for queue in QUEUES:
        dlq = dead_letter_queue(queue.name)
        arguments[queue.name] = {
            **lasting,
            "x-dead-letter-routing-key": dlq,
            "x-delivery-limit": queue.delivery_limit,
        }
        # One queue for each wait, with the TTL on the queue: a message's own TTL waits behind a longer one in
        # front of it. Through the default exchange a retry reaches its own main queue and no other subscriber.
        for name, wait in zip(retry_queues(queue.name), RETRY_WAITS_S, strict=True):
            arguments[name] = {
                **lasting,
                "x-dead-letter-routing-key": queue.name,
                "x-message-ttl": wait * 1000,
            }
        arguments[dlq] = {"x-queue-type": "quorum", "x-delivery-limit": UNLIMITED_DELIVERIES}
    return arguments


def bindings() -> list[tuple[str, str, str]]:
    """Every binding as (exchange, queue, routing key)."""
    made = [(EVENTS_EXCHANGE, queue.name, binding) for queue in QUEUES for binding in queue.bindings]
    for queue in QUEUES:
        own = (queue.name, *retry_queues(queue.name), dead_letter_queue(queue.name))
        made += [(failed_exchange(queue.service), name, name) for name in own]
    return made


def exchanges() -> dict[str, str]:
    """Every exchange with its type; all are durable and carry no arguments."""
    services = dict.fromkeys(queue.service for queue in QUEUES)
    return {
        EVENTS_EXCHANGE: "topic",
        HINTS_EXCHANGE: "fanout",
        **{failed_exchange(service): "direct" for service in services},
    }
