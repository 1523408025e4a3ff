"""The rules of payments and refunds, and the modes of the mock provider."""

from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine

from payment_service import domain
from payment_service.domain import Answer, Payment, Refund, RefundStatus, Status, payment_id_of
from payment_service.http_provider import HttpProvider
from payment_service.mock_provider import MockProvider, parse_mode
from payment_service.providers import provider_of
from shared.config import Settings
from shared.errors import ConfigurationFault, UnexpectedEvent, UnknownOrder
from shared.events import PaymentFailed, PaymentSucceeded, Refunded, RefundFailed

ORDER, REFUND = uuid4(), uuid4()
PAYMENT = payment_id_of(ORDER)
YES, NO = Answer(True, reference="ref"), Answer(False, reason="card_declined")


def payment(status: Status, cancelled: bool = False) -> Payment:
    return Payment(ORDER, PAYMENT, status, 500, "EUR", cancelled=cancelled)


def refund(status: RefundStatus = RefundStatus.PENDING) -> Refund:
    return Refund(REFUND, ORDER, status)


def test_an_accepted_charge_completes_the_payment_and_emits_succeeded() -> None:
    after, emits = domain.charged(payment(Status.PENDING), YES)

    assert (after.status, after.reference) == (Status.COMPLETED, "ref")
    assert emits == (PaymentSucceeded(ORDER, PAYMENT, 500, "EUR", "ref"),)


def test_a_declined_charge_fails_the_payment_and_emits_failed() -> None:
    after, emits = domain.charged(payment(Status.PENDING), NO)

    assert (after.status, after.reason) == (Status.FAILED, "card_declined")
    assert emits == (PaymentFailed(ORDER, PAYMENT, "card_declined"),)


def test_a_charge_of_a_cancelled_order_emits_succeeded_so_that_it_is_refunded() -> None:
    after, emits = domain.charged(payment(Status.PENDING, cancelled=True), YES)

    assert after.status == Status.COMPLETED
    assert emits == (PaymentSucceeded(ORDER, PAYMENT, 500, "EUR", "ref"),)


@pytest.mark.parametrize("status", set(Status) - {Status.PENDING})
def test_an_answer_to_a_payment_that_is_not_pending_changes_and_emits_nothing(status: Status) -> None:
    assert domain.charged(payment(status), YES) == (payment(status), ())
    assert not domain.is_to_be_charged(payment(status))


def test_the_end_of_an_order_marks_only_a_pending_payment_as_cancelled() -> None:
    assert domain.cancelled(payment(Status.PENDING)) == payment(Status.PENDING, cancelled=True)
    assert domain.cancelled(payment(Status.COMPLETED)) == payment(Status.COMPLETED)


def test_a_payment_unknown_to_the_provider_is_void_only_if_its_order_was_cancelled() -> None:
    assert domain.unknown_to_provider(payment(Status.PENDING, cancelled=True)).status == Status.VOID
    assert domain.unknown_to_provider(payment(Status.PENDING)).status == Status.PENDING


def test_an_accepted_refund_completes_and_emits_refunded() -> None:
    after, closed, emits = domain.refunded(payment(Status.COMPLETED), ORDER, refund(), YES)

    assert (after.status, closed.status) == (Status.REFUNDED, RefundStatus.COMPLETED)
    assert emits == (Refunded(ORDER, PAYMENT, REFUND, 500, "EUR"),)


def test_a_declined_refund_sets_the_payment_back_to_completed() -> None:
    after, closed, emits = domain.refunded(payment(Status.REFUND_PENDING), ORDER, refund(), NO)

    assert (after.status, closed.status) == (Status.COMPLETED, RefundStatus.FAILED)
    assert emits == (RefundFailed(ORDER, PAYMENT, REFUND, "card_declined"),)


def test_a_refund_without_an_answer_stays_pending() -> None:
    after, closed, emits = domain.refunded(payment(Status.COMPLETED), ORDER, refund(), None)

    assert (after.status, closed.status, emits) == (Status.REFUND_PENDING, RefundStatus.PENDING, ())


def test_a_second_refund_emits_refunded_with_its_own_id_without_asking_the_provider() -> None:
    already_refunded = payment(Status.REFUNDED)

    assert not domain.is_to_be_refunded(already_refunded)
    assert domain.refunded(already_refunded, ORDER, refund(), None)[2] == (
        Refunded(ORDER, PAYMENT, REFUND, 500, "EUR"),
    )


def test_a_completed_refund_emits_nothing_again() -> None:
    assert domain.refunded(payment(Status.REFUNDED), ORDER, refund(RefundStatus.COMPLETED), None)[2] == ()


@pytest.mark.parametrize("status", [Status.PENDING, Status.FAILED, Status.VOID])
def test_a_refund_of_a_payment_that_was_never_charged_is_unexpected(status: Status) -> None:
    with pytest.raises(UnexpectedEvent, match=status):
        domain.refunded(payment(status), ORDER, refund(), None)


def test_a_refund_of_an_order_without_payment_raises_unknown_order() -> None:
    with pytest.raises(UnknownOrder):
        domain.refunded(None, ORDER, refund(), None)


def test_only_an_amount_of_0_needs_no_provider() -> None:
    assert domain.answer_without_provider(0) == Answer(True, reference="nothing_to_pay")
    assert domain.answer_without_provider(1) is None


def test_an_order_always_has_the_same_payment_id() -> None:
    assert payment_id_of(ORDER) == PAYMENT != payment_id_of(uuid4())


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
def test_a_mode_has_a_name_and_an_optional_argument(mode: str, parsed: tuple[str, object]) -> None:
    assert parse_mode(mode) == parsed


@pytest.mark.parametrize("mode", ["", "succeeed", "fail_share", "succeed:1", "delay:soon", "down_while"])
def test_an_unknown_mode_prevents_the_start(mode: str) -> None:
    with pytest.raises(ConfigurationFault, match="PAYMENT_MODE"):
        parse_mode(mode)


def test_the_provider_is_the_one_that_the_settings_name() -> None:
    assert isinstance(provider_of(create_engine("sqlite://"), Settings(payment_provider="mock")), MockProvider)
    at = Settings(payment_provider="http", payment_provider_url="https://pay.example")
    assert isinstance(provider_of(create_engine("sqlite://"), at), HttpProvider)
    with pytest.raises(ConfigurationFault, match="PAYMENT_PROVIDER_URL is not set"):
        provider_of(create_engine("sqlite://"), Settings(payment_provider="http"))
    for name in ("", "Mock", "acme"):
        with pytest.raises(ConfigurationFault, match="PAYMENT_PROVIDER must be mock or http, not"):
            provider_of(create_engine("sqlite://"), Settings(payment_provider=name))
