"""The states of an order, typed once: for the order service, the gateway's filters, `ecom` and the tests.

The table in order_service.domain moves an order from state to state.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Where an order is."""

    PENDING = "PENDING"
    RESERVED = "RESERVED"
    PAID = "PAID"
    CANCELLED = "CANCELLED"
    REFUND_PENDING = "REFUND_PENDING"
    REFUND_FAILED = "REFUND_FAILED"


# An order without a payment yet. The deadline cancels orders in these states.
UNPAID = frozenset({Status.PENDING, Status.RESERVED})

# No message is on its way for an order in these states. A REFUND_FAILED order waits for an operator.
AT_REST = frozenset({Status.PAID, Status.CANCELLED, Status.REFUND_FAILED})
