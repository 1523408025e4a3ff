"""The rules of payments and refunds. Plain values in, plain values out.

VOID: cancelled before it was charged. PENDING: asked of the provider, answer unknown. A payment that is PENDING may
have been charged, so it never becomes VOID while a call can still be under way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from uuid import UUID, uuid5

from shared.errors import UnexpectedEvent, UnknownOrder
from shared.events import Payload, PaymentFailed, PaymentSucceeded, Refunded, RefundFailed

PAYMENT_NAMESPACE = UUID("6f1b1b5e-6c0a-5d56-9b1e-2f1f0f8f5a01")


def payment_id_of(order_id: UUID) -> UUID:
    """The one payment an order can have. It is also the provider's idempotency key, so no retry charges twice."""
    return uuid5(PAYMENT_NAMESPACE, str(order_id))


class Status(StrEnum):
    """What a payment is."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    VOID = "VOID"
    REFUND_PENDING = "REFUND_PENDING"
    REFUNDED = "REFUNDED"


class RefundStatus(StrEnum):
    """What a refund is."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Answer:
    """What the provider says of a key: done with its reference, or refused with a reason."""

    done: bool
    reference: str = ""
    reason: str = ""


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


@dataclass(frozen=True)
class Refund:
    """One try to give a payment back."""

    refund_id: UUID
    order_id: UUID
    status: RefundStatus


def is_to_be_charged(payment: Payment) -> bool:
    """Whether the provider must be asked: only a payment whose answer is not known."""
    return payment.status == Status.PENDING


def charged(payment: Payment, answer: Answer) -> tuple[Payment, tuple[Payload, ...]]:
    """What the provider's answer makes of a payment. An answer that is known already changes and tells nothing."""
    if payment.status != Status.PENDING:
        return payment, ()
    if answer.done:
        told: Payload = PaymentSucceeded(
            payment.order_id, payment.payment_id, payment.amount, payment.currency, answer.reference
        )
        return replace(payment, status=Status.COMPLETED, reference=answer.reference), (told,)
    told = PaymentFailed(payment.order_id, payment.payment_id, answer.reason)
    return replace(payment, status=Status.FAILED, reason=answer.reason), (told,)


def cancelled(payment: Payment) -> Payment:
    """What the end of its order makes of a payment: only one whose answer is unknown remembers it."""
    return replace(payment, cancelled=True) if payment.status == Status.PENDING else payment


def unknown_to_provider(payment: Payment) -> Payment:
    """The provider never heard of a payment that was asked for long ago: of a cancelled order, it is VOID."""
    return replace(payment, status=Status.VOID) if payment.cancelled else payment


def took_money(payment: Payment | None) -> bool:
    """Whether there is, or was, money to give back."""
    return payment is not None and payment.status in (Status.COMPLETED, Status.REFUND_PENDING, Status.REFUNDED)


def is_to_be_refunded(payment: Payment | None) -> bool:
    """Whether the provider must be asked to give it back."""
    return payment is not None and payment.status in (Status.COMPLETED, Status.REFUND_PENDING)


def refunded(
    payment: Payment | None, order_id: UUID, refund: Refund, answer: Answer | None
) -> tuple[Payment, Refund, tuple[Payload, ...]]:
    """What the provider's answer makes of a payment and a refund of it.

    Raises UnknownOrder for an order never charged here, UnexpectedEvent for a payment that took no money.
    """
    if payment is None:
        raise UnknownOrder(f"order {order_id} has no payment to refund")
    if not took_money(payment):
        raise UnexpectedEvent(f"a payment that is {payment.status} has no money to give back")
    if refund.status != RefundStatus.PENDING:
        return payment, refund, ()
    ids = (order_id, payment.payment_id, refund.refund_id)
    if payment.status == Status.REFUNDED or (answer is not None and answer.done):
        told: Payload = Refunded(*ids, payment.amount, payment.currency)
        return replace(payment, status=Status.REFUNDED), replace(refund, status=RefundStatus.COMPLETED), (told,)
    if answer is None:
        return replace(payment, status=Status.REFUND_PENDING), refund, ()
    told = RefundFailed(*ids, answer.reason)
    return replace(payment, status=Status.COMPLETED), replace(refund, status=RefundStatus.FAILED), (told,)
