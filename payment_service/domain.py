"""The rules of payments and refunds. The functions take and return plain values.

VOID: the order ended before the charge. PENDING: the provider was asked and its answer is unknown. A PENDING payment
may have been charged, so it never becomes VOID while a call may still be running.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from uuid import UUID, uuid5

from shared.enumerations import PaymentStatus
from shared.errors import Contradiction, UnexpectedEvent, UnknownOrder
from shared.events import (
    Identity,
    Payload,
    PaymentFailed,
    PaymentSucceeded,
    Refunded,
    RefundFailed,
    RefundRequested,
    Reserved,
    type_of,
)
from shared.facts import compare
from shared.roles import ADMIN, AUDITOR, CUSTOMER, OPERATOR, has_role

PAYMENT_NAMESPACE = UUID("6f1b1b5e-6c0a-5d56-9b1e-2f1f0f8f5a01")


def payment_id_of(order_id: UUID) -> UUID:
    """Return the id of an order's only payment. It is the provider's idempotency key, so no retry charges twice."""
    return uuid5(PAYMENT_NAMESPACE, str(order_id))


Status = PaymentStatus


class RefundStatus(StrEnum):
    """The status of a refund."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Answer:
    """The provider's answer for a key: done with a reference, or refused with a reason."""

    done: bool
    reference: str = ""
    reason: str = ""


# The answer to a charge or a refund of nothing. The provider is not asked: it may refuse an amount of 0.
NOTHING_TO_PAY = Answer(done=True, reference="nothing_to_pay")


@dataclass(frozen=True)
class Payment:
    """One order's payment; amount in minor units. `cancelled`: the order ended while the answer was unknown."""

    order_id: UUID
    payment_id: UUID
    status: Status
    amount: int = 0
    currency: str = ""
    reference: str = ""
    reason: str = ""
    cancelled: bool = False
    method: str = ""


@dataclass(frozen=True)
class Refund:
    """One attempt to refund a payment."""

    refund_id: UUID
    order_id: UUID
    status: RefundStatus


def check_charge(payment: Payment | None, asked: Reserved) -> None:
    """Compare a request to charge with itself and with the order's payment. Raises Contradiction.

    This service does not know the order. It knows what the lines cost, and what it was asked to charge before.
    """
    compare(type_of(asked), ("total", asked.total, sum(item.quantity * item.unit_price for item in asked.items)))
    if payment is not None and payment.currency:  # one that was void before it was asked for knows no amount
        compare(
            type_of(asked),
            ("total", asked.total, payment.amount),
            ("currency", asked.currency, payment.currency),
            ("payment_method", asked.payment_method, payment.method),
        )


def check_refund(payment: Payment | None, refund: Refund | None, asked: RefundRequested) -> None:
    """Compare a request to refund with the payment, and with the refund if it is known. Raises Contradiction."""
    if payment is not None and payment.currency:
        compare(
            type_of(asked),
            ("payment_id", asked.payment_id, payment.payment_id),
            ("amount", asked.amount, payment.amount),
            ("currency", asked.currency, payment.currency),
        )
    if refund is not None:
        compare(type_of(asked), ("order_id", asked.order_id, refund.order_id))


def fits(check: Callable[..., None], *given: object) -> bool:
    """Whether a check raises no Contradiction."""
    try:
        check(*given)
    except Contradiction:
        return False
    return True


def is_to_be_charged(payment: Payment) -> bool:
    """Whether the provider must be asked to charge: only if its answer is unknown."""
    return payment.status == Status.PENDING


def answer_without_provider(amount: int) -> Answer | None:
    """Return the answer to a charge or a refund of an amount that needs no provider, or None if it must be asked."""
    return NOTHING_TO_PAY if amount == 0 else None


def charged(payment: Payment, answer: Answer) -> tuple[Payment, tuple[Payload, ...]]:
    """Apply the provider's answer to a payment. A payment with a known answer does not change and emits nothing."""
    if payment.status != Status.PENDING:
        return payment, ()
    if answer.done:
        event: Payload = PaymentSucceeded(
            payment.order_id, payment.payment_id, payment.amount, payment.currency, answer.reference
        )
        return replace(payment, status=Status.COMPLETED, reference=answer.reference), (event,)
    event = PaymentFailed(payment.order_id, payment.payment_id, answer.reason)
    return replace(payment, status=Status.FAILED, reason=answer.reason), (event,)


def cancelled(payment: Payment) -> Payment:
    """Apply the end of an order to its payment: a PENDING one is marked cancelled, any other does not change."""
    return replace(payment, cancelled=True) if payment.status == Status.PENDING else payment


def unknown_to_provider(payment: Payment) -> Payment:
    """Handle a payment that the provider does not know: VOID if its order was cancelled, otherwise unchanged."""
    return replace(payment, status=Status.VOID) if payment.cancelled else payment


def took_money(payment: Payment | None) -> bool:
    """Whether the payment was charged, even if it has been refunded since."""
    return payment is not None and payment.status in (Status.COMPLETED, Status.REFUND_PENDING, Status.REFUNDED)


def is_to_be_refunded(payment: Payment | None) -> bool:
    """Whether the provider must be asked for a refund: the payment was charged and not refunded yet."""
    return payment is not None and payment.status in (Status.COMPLETED, Status.REFUND_PENDING)


def refunded(
    payment: Payment | None, order_id: UUID, refund: Refund, answer: Answer | None
) -> tuple[Payment, Refund, tuple[Payload, ...]]:
    """Apply the provider's answer, or None if it is unknown, to a payment and its refund.

    Raises UnknownOrder if the order has no payment, UnexpectedEvent if the payment was never charged.
    """
    if payment is None:
        raise UnknownOrder(f"order {order_id} has no payment to refund")
    if not took_money(payment):
        raise UnexpectedEvent(f"a payment that is {payment.status} has no money to give back")
    if refund.status != RefundStatus.PENDING:
        return payment, refund, ()
    ids = (order_id, payment.payment_id, refund.refund_id)
    if payment.status == Status.REFUNDED or (answer is not None and answer.done):
        event: Payload = Refunded(*ids, payment.amount, payment.currency)
        return replace(payment, status=Status.REFUNDED), replace(refund, status=RefundStatus.COMPLETED), (event,)
    if answer is None:
        return replace(payment, status=Status.REFUND_PENDING), refund, ()
    event = RefundFailed(*ids, answer.reason)
    return replace(payment, status=Status.COMPLETED), replace(refund, status=RefundStatus.FAILED), (event,)


def may_see(caller: Identity, owner: str) -> bool:
    """Whether someone may see a payment of `owner`."""
    owns = caller.user_id == owner and has_role(caller, CUSTOMER)
    return owns or has_role(caller, OPERATOR, AUDITOR, ADMIN)
