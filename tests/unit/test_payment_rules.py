"""What becomes of payments and refunds, and what the mock provider does."""

from pathlib import Path
from uuid import uuid4

import pytest

from payment_service import domain
from payment_service.domain import Answer, Payment, Refund, RefundStatus, Status, payment_id_of
from payment_service.provider import parse_mode
from shared.errors import ConfigurationFault, UnexpectedEvent, UnknownOrder
from shared.events import PaymentFailed, PaymentSucceeded, Refunded, RefundFailed

ORDER, R = uuid4(), uuid4()
P = payment_id_of(ORDER)
YES, NO = Answer(True, reference="ref"), Answer(False, reason="card_declined")


def payment(status: Status, cancelled: bool = False) -> Payment:
    return Payment(ORDER, P, status, 500, "EUR", cancelled=cancelled)


def refund(status: RefundStatus = RefundStatus.PENDING) -> Refund:
    return Refund(R, ORDER, status)


def test_a_payment_that_is_answered_yes_is_completed_and_told() -> None:
    after, emits = domain.charged(payment(Status.PENDING), YES)

    assert (after.status, after.reference) == (Status.COMPLETED, "ref")
    assert emits == (PaymentSucceeded(ORDER, P, 500, "EUR", "ref"),)


def test_a_payment_that_is_answered_no_has_failed_and_is_told() -> None:
    after, emits = domain.charged(payment(Status.PENDING), NO)

    assert (after.status, after.reason) == (Status.FAILED, "card_declined")
    assert emits == (PaymentFailed(ORDER, P, "card_declined"),)


def test_a_charge_of_a_cancelled_order_is_told_so_that_it_is_given_back() -> None:
    after, emits = domain.charged(payment(Status.PENDING, cancelled=True), YES)

    assert after.status == Status.COMPLETED
    assert emits == (PaymentSucceeded(ORDER, P, 500, "EUR", "ref"),)


@pytest.mark.parametrize("status", set(Status) - {Status.PENDING})
def test_an_answer_to_what_is_settled_changes_and_tells_nothing(status: Status) -> None:
    assert domain.charged(payment(status), YES) == (payment(status), ())
    assert not domain.is_to_be_charged(payment(status))


def test_an_order_that_ends_while_its_charge_is_unknown_is_remembered_as_cancelled() -> None:
    assert domain.cancelled(payment(Status.PENDING)) == payment(Status.PENDING, cancelled=True)
    assert domain.cancelled(payment(Status.COMPLETED)) == payment(Status.COMPLETED)


def test_what_the_provider_never_heard_of_is_void_only_when_its_order_has_ended() -> None:
    assert domain.unknown_to_provider(payment(Status.PENDING, cancelled=True)).status == Status.VOID
    assert domain.unknown_to_provider(payment(Status.PENDING)).status == Status.PENDING


def test_a_refund_that_is_answered_yes_is_told() -> None:
    after, settled, emits = domain.refunded(payment(Status.COMPLETED), ORDER, refund(), YES)

    assert (after.status, settled.status) == (Status.REFUNDED, RefundStatus.COMPLETED)
    assert emits == (Refunded(ORDER, P, R, 500, "EUR"),)


def test_a_refund_that_is_answered_no_leaves_the_payment_as_it_was() -> None:
    after, settled, emits = domain.refunded(payment(Status.REFUND_PENDING), ORDER, refund(), NO)

    assert (after.status, settled.status) == (Status.COMPLETED, RefundStatus.FAILED)
    assert emits == (RefundFailed(ORDER, P, R, "card_declined"),)


def test_a_refund_without_an_answer_is_waited_for() -> None:
    after, settled, emits = domain.refunded(payment(Status.COMPLETED), ORDER, refund(), None)

    assert (after.status, settled.status, emits) == (Status.REFUND_PENDING, RefundStatus.PENDING, ())


def test_another_refund_of_what_was_given_back_is_told_with_its_own_id_and_not_asked_for() -> None:
    given_back = payment(Status.REFUNDED)

    assert not domain.is_to_be_refunded(given_back)
    assert domain.refunded(given_back, ORDER, refund(), None)[2] == (Refunded(ORDER, P, R, 500, "EUR"),)


def test_a_refund_that_is_settled_tells_nothing_again() -> None:
    assert domain.refunded(payment(Status.REFUNDED), ORDER, refund(RefundStatus.COMPLETED), None)[2] == ()


@pytest.mark.parametrize("status", [Status.PENDING, Status.FAILED, Status.VOID])
def test_a_refund_of_what_took_no_money_is_unexpected(status: Status) -> None:
    with pytest.raises(UnexpectedEvent, match=status):
        domain.refunded(payment(status), ORDER, refund(), None)


def test_a_refund_of_an_order_never_charged_is_of_an_unknown_order() -> None:
    with pytest.raises(UnknownOrder):
        domain.refunded(None, ORDER, refund(), None)


def test_a_payment_has_one_id_for_ever() -> None:
    assert payment_id_of(ORDER) == P != payment_id_of(uuid4())


@pytest.mark.parametrize(
    ("mode", "parsed"),
    [
        ("succeed", ("succeed", None)),
        ("down", ("down", None)),
        ("fail_share:0.25", ("fail_share", 0.25)),
        ("delay:2", ("delay", 2.0)),
        ("down_while:/tmp/a:b", ("down_while", Path("/tmp/a:b"))),
    ],
)
def test_a_mode_has_a_name_and_perhaps_an_argument(mode: str, parsed: tuple[str, object]) -> None:
    assert parse_mode(mode) == parsed


@pytest.mark.parametrize("mode", ["", "succeeed", "fail_share", "succeed:1", "delay:soon", "down_while"])
def test_a_mode_that_is_not_known_stops_the_start(mode: str) -> None:
    with pytest.raises(ConfigurationFault, match="PAYMENT_MODE"):
        parse_mode(mode)
