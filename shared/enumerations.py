"""Closed lists of words that a service keeps and the gateway shows, each typed once.

The states of an order are in shared.order_states.
"""

from __future__ import annotations

from enum import StrEnum


class ReservationState(StrEnum):
    """The state of a reservation. REFUSED and RELEASED are final."""

    RESERVED = "RESERVED"
    REFUSED = "REFUSED"
    COMMITTED = "COMMITTED"
    RELEASED = "RELEASED"  # without items it is a tombstone: the release overtook its order


class ReleaseReason(StrEnum):
    """Why stock was released. `manual` and `expired` are of reservations without an order."""

    PAYMENT_FAILED = "payment_failed"
    ORDER_CANCELLED = "order_cancelled"
    DEADLINE = "deadline"
    MANUAL = "manual"
    EXPIRED = "expired"


class MovementCause(StrEnum):
    """Why on_hand changed. All but `sale` and `return` are people's."""

    SALE = "sale"
    RETURN = "return"
    PUT = "put"
    COUNTED = "counted"
    STOCK_IN = "stock_in"
    STOCK_OUT = "stock_out"
    RECEIVED = "received"


class StockInReason(StrEnum):
    """Why people take stock in."""

    DELIVERY = "delivery"
    FOUND = "found"
    PRODUCTION = "production"
    CORRECTION = "correction"


class StockOutReason(StrEnum):
    """Why people take stock out without selling it."""

    WASTE = "waste"
    SPOILED = "spoiled"
    STAFF_MEAL = "staff_meal"
    THEFT = "theft"
    PRODUCTION = "production"
    CORRECTION = "correction"


class CountReason(StrEnum):
    """Why people set stock to a figure."""

    COUNT = "count"
    CORRECTION = "correction"


class Unit(StrEnum):
    """In what a sku is counted. Quantities are whole, and nothing is converted."""

    PIECE = "piece"
    GRAM = "g"
    MILLILITRE = "ml"


class PurchaseStatus(StrEnum):
    """The status of a purchase order. RECEIVED and CANCELLED are final."""

    PROPOSED = "PROPOSED"
    ORDERED = "ORDERED"
    RECEIVED = "RECEIVED"
    CANCELLED = "CANCELLED"


class PaymentStatus(StrEnum):
    """The status of a payment. VOID: the order ended before the charge."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    VOID = "VOID"
    REFUND_PENDING = "REFUND_PENDING"
    REFUNDED = "REFUNDED"


class OperationKind(StrEnum):
    """The operations on dead messages."""

    REPLAY = "replay"
    EXPORT = "export"
    DISCARD = "discard"
    IMPORT = "import"


class OperationStatus(StrEnum):
    """How far an operation got. All but `started` are final."""

    STARTED = "started"
    DONE = "done"
    STOPPED = "stopped"  # it ended itself, or was asked to, before it was through
    FAILED = "failed"  # it could not go on
    INTERRUPTED = "interrupted"  # its process died, or was cut off from the ledger, and has not said how it ended


class ItemStatus(StrEnum):
    """Whether an item is on the menu. A draft is seen by editors alone; what was published once is no draft again."""

    DRAFT = "draft"
    PUBLISHED = "published"
    WITHDRAWN = "withdrawn"
