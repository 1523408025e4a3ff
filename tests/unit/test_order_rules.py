"""Every row of the state table of an order."""

from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from order_service import domain
from order_service.domain import ANY, CANCEL, DEADLINE, REFUND_RETRY, Order, Status, Step
from shared.errors import UnexpectedEvent, ValidationFailed
from shared.events import (
    CommitRequested,
    Committed,
    OrderCancelled,
    OrderPaid,
    Payload,
    PaymentFailed,
    PaymentSucceeded,
    PricedItem,
    Refunded,
    RefundFailed,
    RefundRequested,
    Released,
    ReleaseRequested,
    ReservationFailed,
    Reserved,
    type_of,
)
from shared.schema import MAX_AMOUNT

ORDER, R, P, OLD, NEW = (uuid4() for _ in range(5))
ANN = "ann"
S = Status

RESERVED = Reserved(ORDER, R, (), 500, "EUR", "mock_ok")
FAILED = ReservationFailed(ORDER, "out_of_stock", ())
PAID = PaymentSucceeded(ORDER, P, 500, "EUR", "ref")
DECLINED = PaymentFailed(ORDER, P, "card_declined")
REFUNDED = Refunded(ORDER, P, OLD, 500, "EUR")
REFUND_FAILED = RefundFailed(ORDER, P, OLD, "declined")
RELEASED = Released(ORDER, R, (), "payment_failed")
COMMITTED = Committed(ORDER, R, (), "paid")


def order(status: Status, reason: str | None = None, **more: object) -> Order:
    """An order in the middle of its life; what was refunded or paid has its ids."""
    charged = status in (S.PAID, S.REFUND_PENDING, S.REFUND_FAILED)
    refunding = status in (S.REFUND_PENDING, S.REFUND_FAILED)
    ended = Order(
        ORDER, ANN, status, "EUR", 500, reason, payment_id=P if charged else None, refund_id=OLD if refunding else None
    )
    return replace(ended, **more)  # type: ignore[arg-type]


def follow(before: Order, payload: Payload) -> Step:
    return domain.follow(before, payload, NEW)


def ask(refund_id: UUID, reason: str = "order_cancelled") -> RefundRequested:
    return RefundRequested(ORDER, P, refund_id, 500, "EUR", reason)


CANCELLED = "order_cancelled"
# is, hears, becomes, reason, tells
ROWS = [
    (order(S.PENDING), RESERVED, S.RESERVED, None, ()),
    (order(S.PENDING), FAILED, S.CANCELLED, "out_of_stock", (OrderCancelled(ORDER, "out_of_stock"),)),
    *[
        row
        for unpaid in (S.PENDING, S.RESERVED)
        for row in [
            (order(unpaid), PAID, S.PAID, None, (OrderPaid(ORDER, 500, "EUR"), CommitRequested(ORDER))),
            (
                order(unpaid),
                DECLINED,
                S.CANCELLED,
                "payment_failed",
                (OrderCancelled(ORDER, "payment_failed"), ReleaseRequested(ORDER, "payment_failed")),
            ),
            (
                order(unpaid),
                CANCEL,
                S.CANCELLED,
                CANCELLED,
                (OrderCancelled(ORDER, CANCELLED), ReleaseRequested(ORDER, CANCELLED)),
            ),
            (
                order(unpaid),
                DEADLINE,
                S.CANCELLED,
                "deadline",
                (OrderCancelled(ORDER, "deadline"), ReleaseRequested(ORDER, "deadline")),
            ),
        ]
    ],
    (order(S.PAID), CANCEL, S.REFUND_PENDING, CANCELLED, (ask(NEW), ReleaseRequested(ORDER, CANCELLED))),
    (order(S.PAID), RESERVED, S.PAID, None, ()),
    (order(S.REFUND_PENDING), RESERVED, S.REFUND_PENDING, None, ()),
    (order(S.REFUND_FAILED), RESERVED, S.REFUND_FAILED, None, ()),
    (order(S.CANCELLED, "deadline"), PAID, S.REFUND_PENDING, "deadline", (ask(NEW, "deadline"),)),
    (order(S.CANCELLED, "deadline"), RESERVED, S.CANCELLED, "deadline", (ReleaseRequested(ORDER, "deadline"),)),
    (order(S.CANCELLED, CANCELLED), RESERVED, S.CANCELLED, CANCELLED, (ReleaseRequested(ORDER, CANCELLED),)),
    (order(S.CANCELLED, CANCELLED), FAILED, S.CANCELLED, CANCELLED, ()),
    (order(S.CANCELLED, CANCELLED), DECLINED, S.CANCELLED, CANCELLED, ()),
    (order(S.REFUND_PENDING, CANCELLED), REFUNDED, S.CANCELLED, CANCELLED, (OrderCancelled(ORDER, CANCELLED),)),
    (order(S.REFUND_FAILED, CANCELLED), REFUNDED, S.CANCELLED, CANCELLED, (OrderCancelled(ORDER, CANCELLED),)),
    (order(S.REFUND_PENDING, "deadline", cancelled_told=True), REFUNDED, S.CANCELLED, "deadline", ()),
    (order(S.CANCELLED, CANCELLED, refund_id=NEW, cancelled_told=True), REFUNDED, S.CANCELLED, CANCELLED, ()),
    (order(S.REFUND_PENDING, CANCELLED), REFUND_FAILED, S.REFUND_FAILED, CANCELLED, ()),
    (order(S.REFUND_FAILED, CANCELLED), REFUND_RETRY, S.REFUND_PENDING, CANCELLED, (ask(NEW),)),
    (order(S.REFUND_PENDING, CANCELLED), REFUND_RETRY, S.REFUND_PENDING, CANCELLED, (ask(OLD),)),
    *[(order(at, CANCELLED), CANCEL, at, CANCELLED, ()) for at in (S.CANCELLED, S.REFUND_PENDING, S.REFUND_FAILED)],
    *[(order(at), DEADLINE, at, None, ()) for at in (S.PAID, S.CANCELLED, S.REFUND_PENDING, S.REFUND_FAILED)],
    *[(order(at), heard, at, None, ()) for at in Status for heard in (RELEASED, COMMITTED)],
    *[(order(at, refund_id=NEW), REFUND_FAILED, at, None, ()) for at in Status],
]


@pytest.mark.parametrize(
    ("before", "hears", "becomes", "reason", "emits"),
    ROWS,
    ids=lambda value: getattr(value, "status", None) or (type(value).__name__ if isinstance(value, Payload) else None),
)
def test_each_row_of_the_table(
    before: Order, hears: Payload | str, becomes: Status, reason: str | None, emits: tuple[Payload, ...]
) -> None:
    step = domain.command(before, hears, NEW) if isinstance(hears, str) else follow(before, hears)

    of_the_owner = tuple(replace(payload, customer_id=ANN) for payload in emits)
    assert (step.order.status, step.order.reason, step.emits) == (becomes, reason, of_the_owner)


def test_every_row_of_the_table_is_tested_from_each_of_its_states() -> None:
    tested = {(before.status, hears if isinstance(hears, str) else type_of(hears)) for before, hears, *_ in ROWS}
    written = {(status, rule.hears) for rule in domain.TABLE for status in rule.states}

    assert written - tested == set()


def test_every_pair_without_a_row_is_refused() -> None:
    written = {(status, rule.hears) for rule in domain.TABLE for status in rule.states}
    heard = [RESERVED, FAILED, PAID, DECLINED, REFUNDED, RELEASED, COMMITTED]
    refused = [(at, payload) for at in ANY for payload in heard if (at, type_of(payload)) not in written]

    assert refused
    for at, payload in refused:
        with pytest.raises(UnexpectedEvent, match=type_of(payload)):
            follow(order(at), payload)


def test_a_second_reservation_of_a_reserved_order_is_refused() -> None:
    reserved = follow(order(S.PENDING), RESERVED).order

    with pytest.raises(UnexpectedEvent):
        follow(reserved, replace(RESERVED, reservation_id=NEW))


@pytest.mark.parametrize("payload", [RESERVED, PAID, DECLINED, RELEASED, COMMITTED, REFUNDED, REFUND_FAILED])
@pytest.mark.parametrize("at", Status)
def test_a_result_applied_before_changes_and_emits_nothing_in_any_state(at: Status, payload: Payload) -> None:
    seen = order(at, refund_id=OLD, followed=frozenset({(type_of(payload), domain.subject_of(payload))}))

    assert follow(seen, payload) == Step(seen, repeated=True)


def test_a_late_payment_is_given_back_once_and_not_again_when_it_is_repeated() -> None:
    first = follow(order(S.CANCELLED, "deadline", cancelled_told=True), PAID)
    again = follow(first.order, PAID)

    assert first.emits == (replace(ask(NEW, "deadline"), customer_id=ANN),)
    assert again.repeated


def test_the_overtaken_reservation_is_noted() -> None:
    assert follow(order(S.PAID), RESERVED).order.reservation_id == R


def test_a_total_that_no_reader_can_keep_exact_is_refused() -> None:
    assert domain.total_of((PricedItem("a", 2, 100), PricedItem("b", 1, 1))) == 201
    assert domain.total_of((PricedItem("a", 1, MAX_AMOUNT),)) == MAX_AMOUNT
    with pytest.raises(ValidationFailed) as caught:
        domain.total_of((PricedItem("a", 1, MAX_AMOUNT), PricedItem("b", 1, 1)))
    assert caught.value.details == {"items": [f"Must cost at most {MAX_AMOUNT} together."]}


def test_a_line_that_is_too_large_is_named_by_its_place() -> None:
    lines = (PricedItem("a", 1, 5), PricedItem("b", 2, MAX_AMOUNT // 2 + 1), PricedItem("c", 10_000, MAX_AMOUNT))
    with pytest.raises(ValidationFailed) as caught:
        domain.total_of(lines)
    assert list(caught.value.details["items"]) == ["1", "2"]
