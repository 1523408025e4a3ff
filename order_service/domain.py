"""The life of an order, as a table.

Queues give no order between each other, so every overtaking has a row. Plain values in, plain values out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import UUID

from shared.errors import Contradiction, TooManyOrders, UnexpectedEvent, ValidationFailed
from shared.events import (
    CommitRequested,
    Identity,
    OrderCancelled,
    OrderPaid,
    Payload,
    PaymentFailed,
    PaymentSucceeded,
    PricedItem,
    RefundRequested,
    ReleaseRequested,
    Reserved,
    type_of,
)
from shared.facts import compare
from shared.order_states import UNPAID, Command, Reason
from shared.order_states import Status as Status
from shared.roles import ADMIN, AUDITOR, CUSTOMER, OPERATOR, SERVICE, SYSTEM, has_role
from shared.schema import MAX_AMOUNT

# Commands of people and timers, beside the events of services.
CANCEL = Command.CANCEL.value
DEADLINE = Command.DEADLINE.value
REFUND_RETRY = Command.REFUND_RETRY.value

OUT_OF_STOCK = Reason.OUT_OF_STOCK.value
PAYMENT_FAILED = Reason.PAYMENT_FAILED.value
ORDER_CANCELLED = Reason.ORDER_CANCELLED.value


@dataclass(frozen=True)
class Order:
    """An order as the rules see it. `followed` holds (event type, id) of each result that was already applied."""

    order_id: UUID
    customer_id: str
    status: Status
    currency: str
    total: int
    reason: str | None = None
    reservation_id: UUID | None = None
    payment_id: UUID | None = None
    refund_id: UUID | None = None
    cancelled_told: bool = False
    followed: frozenset[tuple[str, UUID | None]] = frozenset()
    payment_method: str | None = None
    trace_id: str = ""


@dataclass(frozen=True)
class Step:
    """The effect of an event or command on an order: its new state and the events to emit."""

    order: Order
    emits: tuple[Payload, ...] = ()
    repeated: bool = False  # the result was already applied: nothing changes, nothing is emitted

    def changes(self, before: Order) -> bool:
        """Whether the status changes or an event is emitted."""
        return self.order.status != before.status or bool(self.emits)


S = Status
REFUNDING = frozenset({S.REFUND_PENDING, S.REFUND_FAILED})
ANY = frozenset(Status)

SAME = None  # the status stays


@dataclass(frozen=True)
class Rule:
    """One row: an order in one of `states` that hears `hears` becomes `becomes` and emits `emits`."""

    states: frozenset[Status]
    hears: str
    becomes: Status | None
    emits: tuple[str, ...] = ()
    reason: str | None = None
    older_refund: bool = False  # the row is for a refund_id that is not the current one


def _in(*states: Status) -> frozenset[Status]:
    return frozenset(states)


# The events that a row may emit; `_WORDS` builds each of them.
PAID_WORD, CANCELLED_WORD, COMMIT, RELEASE = "order.paid", "order.cancelled", "commit", "release"
NEW_REFUND, SAME_REFUND = "refund with a new id", "refund with the same id"

TABLE: tuple[Rule, ...] = (
    Rule(_in(S.PENDING), "inventory.reserved", S.RESERVED),
    Rule(_in(S.PENDING), "inventory.failed", S.CANCELLED, (CANCELLED_WORD,), OUT_OF_STOCK),
    Rule(UNPAID, "payment.succeeded", S.PAID, (PAID_WORD, COMMIT)),
    Rule(UNPAID, "payment.failed", S.CANCELLED, (CANCELLED_WORD, RELEASE), PAYMENT_FAILED),
    Rule(UNPAID, CANCEL, S.CANCELLED, (CANCELLED_WORD, RELEASE), ORDER_CANCELLED),
    Rule(UNPAID, DEADLINE, S.CANCELLED, (CANCELLED_WORD, RELEASE), Reason.DEADLINE.value),
    Rule(_in(S.PAID), CANCEL, S.REFUND_PENDING, (NEW_REFUND, RELEASE), ORDER_CANCELLED),
    Rule(REFUNDING | {S.PAID}, "inventory.reserved", SAME),
    Rule(_in(S.CANCELLED), "payment.succeeded", S.REFUND_PENDING, (NEW_REFUND,)),
    Rule(_in(S.CANCELLED), "inventory.reserved", SAME, (RELEASE,)),
    Rule(_in(S.CANCELLED), "inventory.failed", SAME),
    Rule(_in(S.CANCELLED), "payment.failed", SAME),
    Rule(REFUNDING, "payment.refunded", S.CANCELLED, (CANCELLED_WORD,)),
    # The result of an older refund_id may arrive late: payment_service refunds once, under whichever id.
    Rule(_in(S.CANCELLED), "payment.refunded", SAME),
    Rule(ANY, "payment.refund_failed", SAME, older_refund=True),
    Rule(_in(S.REFUND_PENDING), "payment.refund_failed", S.REFUND_FAILED),
    Rule(_in(S.REFUND_FAILED), REFUND_RETRY, S.REFUND_PENDING, (NEW_REFUND,)),
    Rule(_in(S.REFUND_PENDING), REFUND_RETRY, S.REFUND_PENDING, (SAME_REFUND,)),
    Rule(REFUNDING | {S.CANCELLED}, CANCEL, SAME),
    Rule(ANY - UNPAID, DEADLINE, SAME),
    Rule(ANY, "inventory.released", SAME),
    Rule(ANY, "inventory.committed", SAME),
)

# What an order that is not at rest waits for, and from whom.
AWAITED: dict[Status, tuple[str, tuple[str, ...]]] = {
    S.PENDING: ("inventory_service", ("inventory.reserved", "inventory.failed")),
    S.RESERVED: ("payment_service", ("payment.succeeded", "payment.failed")),
    S.REFUND_PENDING: ("payment_service", ("payment.refunded", "payment.refund_failed")),
    S.REFUND_FAILED: ("operator", (REFUND_RETRY,)),
}

# `inventory.release.requested` knows fewer reasons than an order does.
_RELEASE_REASONS = {PAYMENT_FAILED: PAYMENT_FAILED, DEADLINE: DEADLINE}

_WORDS: dict[str, Callable[[Order], Payload]] = {
    PAID_WORD: lambda order: OrderPaid(order.order_id, order.total, order.currency, order.customer_id),
    CANCELLED_WORD: lambda order: OrderCancelled(order.order_id, order.reason or ORDER_CANCELLED, order.customer_id),
    COMMIT: lambda order: CommitRequested(order.order_id, order.customer_id),
    RELEASE: lambda order: ReleaseRequested(
        order.order_id, _RELEASE_REASONS.get(order.reason or "", ORDER_CANCELLED), order.customer_id
    ),
    NEW_REFUND: lambda order: _refund(order),
    SAME_REFUND: lambda order: _refund(order),
}


def _refund(order: Order) -> RefundRequested:
    if order.payment_id is None or order.refund_id is None:
        raise UnexpectedEvent(f"order {order.order_id} has no payment to refund")
    return RefundRequested(
        order.order_id,
        order.payment_id,
        order.refund_id,
        order.total,
        order.currency,
        order.reason or ORDER_CANCELLED,
        order.customer_id,
    )


def subject_of(payload: Payload) -> UUID | None:
    """The id that identifies a result: that of its reservation, payment or refund."""
    for name in ("refund_id", "payment_id", "reservation_id"):
        subject: UUID | None = getattr(payload, name, None)
        if subject:
            return subject
    return None


# The fields of a result that the order has, too, and what they are called there.
FACTS = {
    "total": "total",
    "amount": "total",
    "currency": "currency",
    "payment_method": "payment_method",
    "reservation_id": "reservation_id",
    "payment_id": "payment_id",
}


def check(order: Order, payload: Payload) -> None:
    """Compare a result with the order. Raises Contradiction.

    Of its refunds an order knows the newest only, so the result of any refund fits an order that has asked for one.
    """
    facts = [
        (name, getattr(payload, name), getattr(order, known)) for name, known in FACTS.items() if name in vars(payload)
    ]
    compare(type_of(payload), *facts)
    if "refund_id" in vars(payload) and order.refund_id is None:
        raise Contradiction(f"{type_of(payload)} answers a refund that was never asked for")


def follow(order: Order, payload: Payload, new_refund_id: UUID) -> Step:
    """Apply the result of another service to an order.

    Raises UnexpectedEvent where the table has no row, and Contradiction for a result that does not fit the order.
    """
    check(order, payload)
    hears, subject = type_of(payload), subject_of(payload)
    if (hears, subject) in order.followed:
        return Step(order, repeated=True)
    rule = _rule(order, hears, subject)
    noted = replace(order, followed=order.followed | {(hears, subject)})
    match payload:
        case Reserved():
            noted = replace(noted, reservation_id=payload.reservation_id)
        case PaymentSucceeded() | PaymentFailed():
            noted = replace(noted, payment_id=payload.payment_id)
    return _apply(rule, noted, new_refund_id)


def command(order: Order, hears: str, new_refund_id: UUID) -> Step:
    """Apply CANCEL, DEADLINE or REFUND_RETRY to an order. Raises UnexpectedEvent where the table has no row."""
    return _apply(_rule(order, hears, None), order, new_refund_id)


def _rule(order: Order, hears: str, subject: UUID | None) -> Rule:
    for rule in TABLE:
        applies = order.status in rule.states and hears == rule.hears
        if applies and not (rule.older_refund and subject == order.refund_id):
            return rule
    raise UnexpectedEvent(f"an order that is {order.status} does not expect {hears}")


def _apply(rule: Rule, order: Order, new_refund_id: UUID) -> Step:
    after = replace(
        order,
        status=rule.becomes or order.status,
        # The first reason stays: it says why the order ended. A later refund does not change it.
        reason=order.reason or rule.reason,
        refund_id=new_refund_id if NEW_REFUND in rule.emits else order.refund_id,
    )
    words = [word for word in rule.emits if word != CANCELLED_WORD or not order.cancelled_told]
    emits = tuple(_WORDS[word](after) for word in words)
    return Step(replace(after, cancelled_told=after.cancelled_told or CANCELLED_WORD in words), emits)


def total_of(items: tuple[PricedItem, ...]) -> int:
    """The order's total in minor units.

    Raises ValidationFailed if a line or the total is over MAX_AMOUNT; `details` names each line by its place.
    """
    lines = [item.quantity * item.unit_price for item in items]
    too_large = {
        str(place): {"unit_price": [f"Must be at most {MAX_AMOUNT} when multiplied by quantity."]}
        for place, line in enumerate(lines)
        if line > MAX_AMOUNT
    }
    if too_large:
        raise ValidationFailed("A line of the order is too large.", {"items": too_large})
    if sum(lines) > MAX_AMOUNT:
        raise ValidationFailed(
            "The total of the order is too large.", {"items": [f"Must cost at most {MAX_AMOUNT} together."]}
        )
    return sum(lines)


def order_no_in(text: str) -> str:
    """An order number as it is stored, however somebody writes it: in any case, with or without its hyphen."""
    plain = text.upper().replace("-", "").translate(str.maketrans("OIL", "011"))
    return f"{plain[:4]}-{plain[4:]}"


@dataclass(frozen=True)
class Open:
    """Orders that are not paid yet, and the units in them."""

    orders: int
    units: int


def check_open(before: Open, units: int, most: Open) -> None:
    """Check what a user has open, and one more order of so many units, against the most that a user may; 0 is no limit.

    Raises TooManyOrders, and ValidationFailed for an order that is too large by itself.
    """
    if most.units and units > most.units:
        raise ValidationFailed(
            "The order has too many units.", {"items": [f"Must be at most {most.units} units together."]}
        )
    if (most.orders and before.orders >= most.orders) or (most.units and before.units + units > most.units):
        raise TooManyOrders(
            details={
                "open_orders": before.orders,
                "max_open_orders": most.orders or None,
                "held_units": before.units,
                "max_held_units": most.units or None,
            }
        )


def may_create(caller: Identity) -> bool:
    """Whether someone may post an order."""
    return has_role(caller, CUSTOMER)


def may_post_for_others(caller: Identity) -> bool:
    """Whether someone may hand in the posts of many users: a gateway alone, which has checked who they are."""
    return has_role(caller, SYSTEM)


def may_list(caller: Identity) -> bool:
    """Whether someone may list orders: customers their own, the others all."""
    return has_role(caller, CUSTOMER) or may_see_all(caller)


def may_write_notes(caller: Identity) -> bool:
    """Whether someone may write notes on orders."""
    return has_role(caller, OPERATOR, ADMIN)


def may_see_all(caller: Identity) -> bool:
    """Whether someone may see the orders of everybody."""
    return has_role(caller, OPERATOR, AUDITOR, ADMIN)


def may_see(caller: Identity, owner: str) -> bool:
    """Whether someone may see an order of `owner`, with its steps."""
    return _owns(caller, owner) or may_see_all(caller)


def may_cancel(caller: Identity, owner: str) -> bool:
    """Whether someone may cancel an order of `owner`."""
    return _owns(caller, owner) or has_role(caller, ADMIN)


def may_retry_refund(caller: Identity) -> bool:
    """Whether someone may ask once more for the refund of an order, whoever owns it."""
    return has_role(caller, OPERATOR, ADMIN)


def may_read_feed(caller: Identity) -> bool:
    """Whether someone may read the steps of all orders."""
    return has_role(caller, OPERATOR, ADMIN, SERVICE)


def may_ask_for_changes(caller: Identity) -> bool:
    """Whether someone may ask which orders have changed: a gateway alone, for clients who may see these orders."""
    return has_role(caller, SYSTEM)


def _owns(caller: Identity, owner: str) -> bool:
    return caller.user_id == owner and has_role(caller, CUSTOMER)
