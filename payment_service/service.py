"""The payment service: charges and refunds through the provider, and recovers answers that were lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, Row
from sqlalchemy.orm import Session

from payment_service import domain, models
from payment_service.breaker import Breaker, Guarded
from payment_service.domain import Answer
from payment_service.provider import Charge, Provider
from payment_service.providers import provider_of
from shared import outbox
from shared.config import Settings
from shared.edge.consumer import handles
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.fair_calls import Call, FairCalls, OpenCall
from shared.edge.http import Probes
from shared.edge.resources import ExternalClient
from shared.edge.rpc import rpc
from shared.edge.timer import each_alone, every
from shared.edge.tx import Events, Tx
from shared.envelope import envelope
from shared.errors import DeadMessage, OverShare, ProviderTimeout
from shared.events import Identity, Payload
from shared.relay import Relay

# After this time an unknown answer is asked for by key: no call of this service can still be running.
UNKNOWN_AFTER_S = 30
RECOVER_EVERY_S = 5
RECOVER_BATCH = 100

# A payment is written off UNKNOWN_AFTER_S after it was recorded at the earliest. A charge that is answered sooner than
# this after it was recorded need not look whether that has happened.
LOOK_AGAIN_AFTER_S = 2.0


def guarded_provider(ledger: Engine, settings: Settings) -> Provider:
    """Return the payment provider of the settings behind its circuit breaker."""
    return Guarded(provider_of(ledger, settings), Breaker(settings.provider_open_s), PaymentService.name)


class PaymentService(Probes):
    """Charges orders whose stock is reserved and refunds on request. Never charges an order twice."""

    name = "payment_service"

    db = Database()
    relay = Relay()
    context = Context()
    provider = ExternalClient(guarded_provider)
    charges = FairCalls()
    refunds = FairCalls()
    questions = FairCalls()

    @handles("q.payment.inventory-reserved", ask="ask_for_charges")
    def charge(self, events: Events, tx: Tx) -> None:
        """Save the provider's answers to charges, and emit them."""
        rows = models.payments_of(tx.session, [event.payload.order_id for event in events], lock=True)
        changed: dict[UUID, domain.Payment] = {}
        for event in events:
            answer = tx.answers.get(event.message_id)
            row = rows.get(event.payload.order_id)
            before = changed.get(event.payload.order_id) or (models.payment(row) if row else None)
            try:
                domain.check_charge(before, event.payload)
            except DeadMessage as error:
                tx.fail(event, error)
                continue
            if before is not None and answer is not None:
                after, emits = domain.charged(before, answer)
                tx.emit(event, *emits)
                if after is not before:
                    changed[after.order_id] = after
        models.save_payments(tx.session, changed.values())

    def ask_for_charges(self, events: Events) -> dict[UUID, Answer | Exception | OpenCall]:
        """Record PENDING payments, then ask the provider in fair shares, with no transaction open.

        A payment is not recorded as long as its customer's share is used up: it can still be cancelled without a trace.
        """
        consistent = [event for event in events if domain.fits(domain.check_charge, None, event.payload)]
        over_share = self.charges.over_share({event.message_id: event.identity.user_id for event in consistent})
        asked = [event for event in consistent if event.message_id not in over_share]
        recorded_at = time.monotonic()
        with self.db.autocommit() as session:
            pending = models.claim_charges(session, asked)
        wanted = {
            event.message_id: _charge_of(row, row.payment_id)
            for event in asked
            if (row := pending.get(event.payload.order_id))
            and domain.fits(domain.check_charge, models.payment(row), event.payload)
        }
        return over_share | _ask(self.charges, partial(self._charge, recorded_at), wanted)

    def _charge(self, recorded_at: float, charge: Charge) -> Answer:
        """Charge, and find out afterwards whether the payment is still expected.

        This process may have frozen before its call. Another process may then have handled the message and the payment
        may have become VOID, although it has been charged now.
        """
        try:
            return self.provider.charge(charge)
        finally:
            if time.monotonic() - recorded_at > LOOK_AGAIN_AFTER_S:
                with self.db.autocommit() as session:
                    models.reopen(session, charge.order_id)

    @handles("q.payment.refund-requested", ask="ask_for_refunds")
    def refund(self, events: Events, tx: Tx) -> None:
        """Save the provider's answers to refunds, and emit them."""
        rows = models.payments_of(tx.session, [event.payload.order_id for event in events], lock=True)
        payments = {order_id: models.payment(row) for order_id, row in rows.items()}
        refunds = models.refunds(tx.session, [event.payload.refund_id for event in events])
        after: dict[UUID, domain.Payment] = {}
        closed: dict[UUID, domain.Refund] = {}
        for event in events:
            order_id, refund_id = event.payload.order_id, event.payload.refund_id
            asked = refunds.get(refund_id) or domain.Refund(refund_id, order_id, domain.RefundStatus.PENDING)
            try:
                domain.check_refund(payments.get(order_id), asked, event.payload)
                payment, refund, emits = domain.refunded(
                    payments.get(order_id), order_id, asked, tx.answers.get(event.message_id)
                )
            except DeadMessage as error:
                tx.fail(event, error)
                continue
            payments[order_id] = after[order_id] = payment
            refunds[refund_id] = closed[refund_id] = refund
            tx.emit(event, *emits)
        models.save_payments(tx.session, after.values())
        models.save_refunds(tx.session, closed.values())

    def ask_for_refunds(self, events: Events) -> dict[UUID, Answer | Exception | OpenCall]:
        """Record PENDING refunds, then ask the provider in fair shares, with no transaction open."""
        with self.db.autocommit() as session:
            rows = models.payments_of(session, [event.payload.order_id for event in events])
            paid = {order_id: models.payment(row) for order_id, row in rows.items()}
            # A refund that is recorded and never asked for would stay PENDING forever.
            known = [
                event
                for event in events
                if domain.took_money(payment := paid.get(event.payload.order_id))
                and domain.fits(domain.check_refund, payment, None, event.payload)
            ]
            over_share = self.refunds.over_share(
                {event.message_id: rows[event.payload.order_id].user_id for event in known}
            )
            asked = [event for event in known if event.message_id not in over_share]
            refunds = models.claim_refunds(session, asked)
        wanted = {}
        for event in asked:
            row, refund = rows[event.payload.order_id], refunds[event.payload.refund_id]
            unknown = refund.status == domain.RefundStatus.PENDING and refund.order_id == row.order_id
            if unknown and domain.is_to_be_refunded(models.payment(row)):
                wanted[event.message_id] = _charge_of(row, refund.refund_id)
        return over_share | _ask(self.refunds, self.provider.refund, wanted)

    @handles("q.payment.order-cancelled")
    def void(self, events: Events, tx: Tx) -> None:
        """Prevent the charge of cancelled orders that were not charged yet."""
        order_ids = {event.payload.order_id for event in events}
        known = order_ids - models.claim_voids(tx.session, events)
        rows = models.payments_of(tx.session, known, lock=True)
        before = [models.payment(row) for row in rows.values()]
        after = [domain.cancelled(payment) for payment in before]
        models.save_payments(tx.session, [new for old, new in zip(before, after, strict=True) if new != old])

    @every(RECOVER_EVERY_S)
    def recover_unknown(self) -> None:
        """Ask the provider by key for unknown answers to payments and refunds, save them and emit them.

        Raises ProviderAway if the provider is down, after it has saved every answer that came.
        """
        for error in [*self._recover_charges(), *self._recover_refunds()]:
            if not isinstance(error, ProviderTimeout | OverShare):  # the next run asks for it again
                raise error

    def _recover_charges(self) -> list[Exception]:
        with self.db.read() as session:
            rows = models.unknown(session, models.PaymentRow, UNKNOWN_AFTER_S, RECOVER_BATCH)
        found, failed = self._find([(row, _charge_of(row, row.payment_id)) for row in rows])
        held_up = each_alone(found, self._save_charge)
        return [*failed, held_up] if held_up else failed

    def _save_charge(self, found: tuple[Row[Any], Answer | None]) -> None:
        row, answer = found
        with self.db.begin() as session:
            locked = models.payments_of(session, [row.order_id], lock=True)[row.order_id]
            before = models.payment(locked)
            if before.status != domain.Status.PENDING:
                return
            if answer is None and locked.updated_at != row.updated_at:
                return  # requested again meanwhile: the provider may know it by now
            after, emits = domain.charged(before, answer) if answer else (domain.unknown_to_provider(before), ())
            models.save_payments(session, [after])
            self._emit(session, locked, emits)

    def _recover_refunds(self) -> list[Exception]:
        with self.db.read() as session:
            rows = models.unknown(session, models.RefundRow, UNKNOWN_AFTER_S, RECOVER_BATCH)
            payments = models.payments_of(session, [row.order_id for row in rows])
        found, failed = self._find([(row, _charge_of(payments[row.order_id], row.refund_id)) for row in rows])
        held_up = each_alone(found, self._save_refund)
        return [*failed, held_up] if held_up else failed

    def _save_refund(self, found: tuple[Row[Any], Answer | None]) -> None:
        row, answer = found
        with self.db.begin() as session:
            locked = models.payments_of(session, [row.order_id], lock=True)[row.order_id]
            refund = models.refunds(session, [row.refund_id])[row.refund_id]
            after, closed, emits = domain.refunded(models.payment(locked), row.order_id, refund, answer)
            models.save_payments(session, [after])
            models.save_refunds(session, [closed])
            self._emit(session, row, emits)

    def _find(self, asked: list[tuple[Any, Charge]]) -> tuple[list[tuple[Any, Answer | None]], list[Exception]]:
        """Find the answer to each row's charge or refund: (row, answer) pairs, and the errors of the other rows.

        An answer that comes late is found by a later run, with the row as it was when the provider was asked.
        """

        def answer(row: Any, charge: Charge) -> tuple[Any, Answer | None]:
            return row, domain.answer_without_provider(charge.amount) or self.provider.find(charge.key)

        calls = {charge.key: Call(charge.customer, partial(answer, row, charge)) for row, charge in asked}
        results = self.questions.ask(calls).values()
        found = [result for result in results if isinstance(result, tuple)]
        return found, [result for result in results if isinstance(result, Exception)]

    def _emit(self, session: Session, asked: Row[Any], payloads: tuple[Payload, ...]) -> None:
        """Emit recovered answers with the trace and the identity of the original request."""
        identity = Identity(asked.user_id, tuple(asked.roles))
        outbox.emit(session, [envelope(self.name, payload, asked.trace_id, identity) for payload in payloads])

    @rpc
    def get_payment(self, payment_id: str) -> dict[str, Any]:
        """Return one payment. Raises NotFound, also if a customer asks for another customer's payment."""
        with self.db.read() as session:
            return models.visible(session, self.context.identity, payment_id=payment_id)

    @rpc
    def payment_of_order(self, order_id: str) -> dict[str, Any]:
        """Return the payment of an order. Raises NotFound, also if a customer asks for another customer's payment."""
        with self.db.read() as session:
            return models.visible(session, self.context.identity, order_id=order_id)


def _ask(fair_calls: FairCalls, call: Callable[[Charge], Answer], wanted: Mapping[UUID, Charge]) -> dict[UUID, Any]:
    """Ask the provider in fair shares where money is to move; by key what `FairCalls.ask` returns."""
    answers = {key: domain.answer_without_provider(charge.amount) for key, charge in wanted.items()}
    known = {key: answer for key, answer in answers.items() if answer is not None}
    calls = {key: Call(charge.customer, partial(call, charge)) for key, charge in wanted.items() if key not in known}
    return known | fair_calls.ask(calls)


def _charge_of(row: Row[Any], key: UUID) -> Charge:
    return Charge(key, row.order_id, row.amount, row.currency, row.method, row.user_id)
