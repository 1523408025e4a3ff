"""The exchange and the queues of the floor and of the peers: the main queues of this project that a paid order passes.

They have the same arguments as ours, and DLQs. Ours has three retry queues more for each, which are empty here.
"""

from __future__ import annotations

from collections.abc import Mapping

# What each queue of a contender hears. `order.paid` reaches no queue, as in this project.
BINDINGS = {
    "inventory.order-created": ("order.created",),
    "inventory.commit-requested": ("inventory.commit.requested",),
    "payment.inventory-reserved": ("inventory.reserved",),
    "order.inventory-result": ("inventory.reserved", "inventory.committed"),
    "order.payment-result": ("payment.succeeded",),
}


def exchange_of(contender: str) -> str:
    """The topic exchange of a contender."""
    return f"bench.{contender}"


def queue_of(contender: str, name: str) -> str:
    """A contender's queue."""
    return f"q.{contender}.{name}"


def dead_letter_queue_of(queue: str) -> str:
    """Where the messages go that a queue has delivered too often."""
    return f"{queue}.dlq"


def arguments_of(queue: str) -> Mapping[str, str | int]:
    """The arguments of a main queue."""
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead_letter_queue_of(queue),
        "x-delivery-limit": 20,
    }
