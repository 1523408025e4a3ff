"""What a message says is compared with what its receiver knows; a message that contradicts it never takes effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from inventory_service import domain as inventory
from inventory_service.domain import Reservation, State
from order_service import domain as orders
from order_service.domain import Order, Status
from payment_service import domain as payments
from payment_service.domain import Payment, Refund, RefundStatus
from shared.errors import Contradiction
from shared.events import (
    Committed,
    OrderCreated,
    OrderedItem,
    Payload,
    PaymentFailed,
    PaymentSucceeded,
    Refunded,
    RefundFailed,
    RefundRequested,
    Released,
    Reserved,
    type_of,
)

ORDER, RESERVATION, PAYMENT, REFUND, OTHER = (uuid4() for _ in range(5))
LINES = (OrderedItem("lamp", 2, 150), OrderedItem("desk", 1, 200))
OTHER_LINES = (OrderedItem("lamp", 1, 300), OrderedItem("desk", 1, 200))
CREATED = OrderCreated(ORDER, "EUR", 500, LINES, "card")
RESERVED = Reserved(ORDER, RESERVATION, LINES, 500, "EUR", "card")
ASKED = RefundRequested(ORDER, PAYMENT, REFUND, 500, "EUR", "order_cancelled")

Check = Callable[[Any], object]


def order(status: Status) -> Order:
    return Order(ORDER, "ann", status, "EUR", 500, None, RESERVATION, PAYMENT, REFUND, payment_method="card")


def followed_at(status: Status) -> Check:
    return lambda payload: orders.follow(order(status), payload, uuid4())


def paid(status: payments.Status, **changed: Any) -> Payment:
    return replace(Payment(ORDER, PAYMENT, status, 500, "EUR", method="card"), **changed)


CHARGED = paid(payments.Status.COMPLETED)
HELD = Reservation(ORDER, RESERVATION, State.RESERVED, {"desk": 1, "lamp": 2})

# A message that fits, who compares it with what, and each lie that is noticed: the fields that are changed.
LIES: list[tuple[Payload, Check, list[dict[str, Any]]]] = [
    (
        RESERVED,
        followed_at(Status.CANCELLED),
        [{"total": 1}, {"currency": "USD"}, {"payment_method": "mock_ok"}, {"reservation_id": OTHER}],
    ),
    (Released(ORDER, RESERVATION, (), "deadline"), followed_at(Status.CANCELLED), [{"reservation_id": OTHER}]),
    (Committed(ORDER, RESERVATION, (), "paid"), followed_at(Status.PAID), [{"reservation_id": OTHER}]),
    (
        PaymentSucceeded(ORDER, PAYMENT, 500, "EUR", "ref"),
        followed_at(Status.RESERVED),
        [{"amount": 1}, {"amount": 501}, {"currency": "USD"}, {"payment_id": OTHER}],
    ),
    (PaymentFailed(ORDER, PAYMENT, "declined"), followed_at(Status.RESERVED), [{"payment_id": OTHER}]),
    (
        Refunded(ORDER, PAYMENT, REFUND, 500, "EUR"),
        followed_at(Status.REFUND_PENDING),
        [{"amount": 499}, {"currency": "USD"}, {"payment_id": OTHER}],
    ),
    (RefundFailed(ORDER, PAYMENT, REFUND, "declined"), followed_at(Status.REFUND_PENDING), [{"payment_id": OTHER}]),
    # Payment knows no order: a first request is compared with its own lines, a second one with the first.
    (RESERVED, lambda asked: payments.check_charge(None, asked), [{"total": 501}, {"items": LINES[:1]}]),
    (
        RESERVED,
        lambda asked: payments.check_charge(CHARGED, asked),
        [{"total": 300, "items": LINES[:1]}, {"currency": "USD"}, {"payment_method": "mock_ok"}],
    ),
    (
        ASKED,
        lambda asked: payments.check_refund(CHARGED, None, asked),
        [{"amount": 5_000}, {"currency": "USD"}, {"payment_id": OTHER}],
    ),
    (
        ASKED,
        lambda asked: payments.check_refund(CHARGED, Refund(REFUND, ORDER, RefundStatus.COMPLETED), asked),
        [{"order_id": OTHER}],
    ),
    (
        CREATED,
        lambda created: inventory.repeat_reserve(HELD, created),
        [{"items": OTHER_LINES}, {"items": LINES[:1]}],
    ),
]


@pytest.mark.parametrize(
    ("fitting", "check", "lie"),
    [(fitting, check, lie) for fitting, check, lies in LIES for lie in lies],
    ids=lambda value: (
        type_of(value) if isinstance(value, Payload) else " ".join(value) if isinstance(value, dict) else ""
    ),
)
def test_a_message_that_says_anything_else_than_is_known_is_refused(
    fitting: Payload, check: Check, lie: dict[str, Any]
) -> None:
    check(fitting)
    with pytest.raises(Contradiction) as refused:
        check(replace(fitting, **lie))
    assert type_of(fitting) in str(refused.value)


def test_the_words_name_each_difference() -> None:
    with pytest.raises(Contradiction) as refused:
        followed_at(Status.RESERVED)(PaymentSucceeded(ORDER, PAYMENT, 1, "USD", "ref"))
    assert str(refused.value) == "payment.succeeded says: amount 1, known is 500; currency USD, known is EUR"


def test_what_is_not_known_yet_contradicts_nothing() -> None:
    new = Order(ORDER, "ann", Status.PENDING, "EUR", 500)
    assert orders.follow(new, PaymentSucceeded(ORDER, OTHER, 500, "EUR", "ref"), uuid4()).order.payment_id == OTHER
    void = Payment(ORDER, PAYMENT, payments.Status.VOID)
    payments.check_charge(void, RESERVED)
    payments.check_refund(void, None, ASKED)
    for quantities in (State.REFUSED, State.RELEASED):
        inventory.repeat_reserve(Reservation(ORDER, RESERVATION, quantities), CREATED)


def test_a_repeat_that_says_another_amount_is_refused_and_not_taken_for_a_repeat() -> None:
    succeeded = PaymentSucceeded(ORDER, PAYMENT, 500, "EUR", "ref")
    heard = replace(order(Status.PAID), followed=frozenset({(type_of(succeeded), PAYMENT)}))
    assert orders.follow(heard, succeeded, uuid4()).repeated
    with pytest.raises(Contradiction):
        orders.follow(heard, replace(succeeded, amount=1), uuid4())


@pytest.mark.parametrize(
    "result", [Refunded(ORDER, PAYMENT, REFUND, 500, "EUR"), RefundFailed(ORDER, PAYMENT, REFUND, "no")]
)
def test_the_result_of_a_refund_that_was_never_asked_for_is_refused(result: Payload) -> None:
    with pytest.raises(Contradiction, match="never asked for"):
        orders.follow(replace(order(Status.CANCELLED), refund_id=None), result, uuid4())
