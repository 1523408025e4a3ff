"""The states of an order, typed once: for the order service, the gateway's filters, `ecom` and the tests.

The table in order_service.domain moves an order from state to state.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum


class Status(StrEnum):
    """Where an order is."""

    PENDING = "PENDING"
    RESERVED = "RESERVED"
    PAID = "PAID"
    CANCELLED = "CANCELLED"
    REFUND_PENDING = "REFUND_PENDING"
    REFUND_FAILED = "REFUND_FAILED"


class Reason(StrEnum):
    """Why an order was cancelled. The first reason stays, also if a refund follows."""

    OUT_OF_STOCK = "out_of_stock"  # inventory_service could not reserve its items
    PAYMENT_FAILED = "payment_failed"  # the provider refused the payment
    ORDER_CANCELLED = "order_cancelled"  # its customer or an admin cancelled it
    DEADLINE = "deadline"  # it had no payment after ORDER_DEADLINE_S


class Command(StrEnum):
    """What people and timers do to an order, beside the events of services. Each is a step of its timeline."""

    CANCEL = "cancel"
    DEADLINE = "deadline"
    REFUND_RETRY = "refund.retry"


# An order without a payment yet. The deadline cancels orders in these states.
UNPAID = frozenset({Status.PENDING, Status.RESERVED})

# The answer of inventory_service that an order in each of these states still hears, if stock was reserved for it: the
# order is at rest, and its stock is not yet. Whatever changes the order next is asked for by a person: a customer who
# cancels a paid order, an operator who retries a failed refund. docs/streams.md lists the exceptions: mostly what was
# under way when an order was cancelled. They cannot be waited for. If the cancel reaches inventory_service before the
# order does, no answer ever comes.
LAST_ANSWERS = {
    Status.PAID: "inventory.committed",
    Status.CANCELLED: "inventory.released",
    Status.REFUND_FAILED: "inventory.released",
}
AT_REST = frozenset(LAST_ANSWERS)

# Each says that stock was reserved for the order; any of them may be the first that it hears.
_RESERVED = frozenset({"inventory.reserved", "payment.succeeded", "payment.failed"})


def has_ended(status: str, heard: Collection[str]) -> bool:
    """Whether no further step of an order is due: it is at rest, and what it heard includes the last answer."""
    if status not in AT_REST:
        return False
    return _RESERVED.isdisjoint(heard) or LAST_ANSWERS[Status(status)] in heard
