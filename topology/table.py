"""The queues of the broker: one row for each, from which every other name is derived.

Pure data: standard library and the table of services only. `topology.declare` declares it on the broker.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from topology.services import SERVICES

EVENTS_EXCHANGE = "ecom.events"

# RPC as Nameko names it: a topic exchange, and for each service a queue that is bound with `<rpc_name>.*`.
RPC_EXCHANGE = "nameko-rpc"

# Carries the ids of orders that have just changed, for clients that wait for one. Its messages are transient and may
# reach no queue.
HINTS_EXCHANGE = "ecom.hints"

# The types that the queues of calls may have: RPC_QUEUE_TYPE chooses.
CLASSIC, QUORUM = RPC_QUEUE_TYPES = ("classic", "quorum")

# A message that fails is tried again after each of these waits, in seconds, and then goes to the DLQ.
RETRY_WAITS_S = (1, 2, 4)

# After so many deliveries the broker itself moves a message to the DLQ: it kills its consumer each time.
DELIVERY_LIMIT = 20

# The highest limit, which means none, for a DLQ. -1 must not be used: RabbitMQ 3.10 accepts it and drops the message at
# its first requeue.
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
    Queue("q.order.catalog-offers", "order", ("catalog.offer_changed",)),
    Queue("q.catalog.stock-availability", "catalog", ("stock.availability_changed",)),
)

# Events that are published although no queue is bound to them yet. The relay publishes every other event `mandatory`,
# so that an event that reaches no queue stays in the outbox.
UNHEARD = frozenset(
    {
        *("order.paid", "stock.moved", "stock.level_crossed"),
        *("user.created", "user.role_changed", "user.disabled", "user.enabled", "user.erased", "user.mail.requested"),
    }
)

BY_NAME = {queue.name: queue for queue in QUEUES}

# The services that consume messages.
CONSUMERS = tuple(dict.fromkeys(queue.service for queue in QUEUES))


def retry_queues(queue: str) -> tuple[str, ...]:
    """The retry levels of a queue, shortest wait first: q.x.retry (1 s), q.x.retry.2s, q.x.retry.4s."""
    _, *others = RETRY_WAITS_S
    return (f"{queue}.retry", *(f"{queue}.retry.{wait}s" for wait in others))


def dead_letter_queue(queue: str) -> str:
    """The DLQ of a main queue; the name of a DLQ is returned as it is."""
    return queue if queue.endswith(".dlq") else f"{queue}.dlq"


def main_queue(queue: str) -> str:
    """The main queue of a DLQ; the name of a main queue is returned as it is."""
    return queue.removesuffix(".dlq")


def failed_exchange(service: str) -> str:
    """The direct exchange through which a service sends its messages to a retry level, to the DLQ or back."""
    return f"ecom.failed.{service}"


def rpc_queue(rpc_name: str) -> str:
    """The queue of the calls to a service, by the name of its Nameko class."""
    return f"rpc-{rpc_name}"


def rpc_queues() -> dict[str, str]:
    """The queue of the calls to each service that others call, with the routing key it is bound to.

    A message in one is a call whose caller waits. It expires when its caller gives up, so that none is left over.
    """
    return {rpc_queue(service.rpc_name): f"{service.rpc_name}.*" for service in SERVICES if service.has_rpc}


def rpc_queue_arguments(type_: str) -> dict[str, Argument]:
    """The arguments of the queues of calls. A classic one has none, as stock Nameko and older versions declare it.

    A classic queue lives on one node of a cluster, and with that node its service cannot be called. A quorum queue
    costs each call a write to the disks of several nodes.
    """
    return {} if type_ == CLASSIC else {"x-queue-type": type_}


@lru_cache
def hears(queue: Queue, routing_key: str) -> bool:
    """Whether one of the queue's bindings matches a routing key, by the rules of a topic exchange without `#`."""
    return any(_matches(binding.split("."), routing_key.split(".")) for binding in queue.bindings)


def _matches(pattern: list[str], words: list[str]) -> bool:
    return len(pattern) == len(words) and all(p in ("*", w) for p, w in zip(pattern, words, strict=True))


def queue_arguments() -> dict[str, dict[str, Argument]]:
    """Every queue that holds events, with its arguments: main queues, retry levels and DLQs."""
    # With at-least-once no message is lost when the broker is killed while it dead-letters. The strategy needs
    # reject-publish: with any other overflow the broker silently falls back to at-most-once.
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
        # Each wait has a queue of its own, with the TTL on the queue: with a TTL on the message, a message would wait
        # behind one with a longer TTL. The default exchange returns a retry to its own main queue only.
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
    return made + [(RPC_EXCHANGE, queue, key) for queue, key in rpc_queues().items()]


def exchanges() -> dict[str, str]:
    """Every exchange with its type. All are durable and have no arguments."""
    return {
        EVENTS_EXCHANGE: "topic",
        HINTS_EXCHANGE: "fanout",
        RPC_EXCHANGE: "topic",
        **{failed_exchange(service): "direct" for service in CONSUMERS},
    }
