"""What a replay of each dead message would do now: the services' own rules, asked about what their books say today.

Read only. A prediction is as good as its moment: what is predicted to apply was held up by something that may still
be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.orm import Session

from inventory_service import domain as inventory
from inventory_service import models as inventory_models
from ops.dlq.books import Books
from ops.dlq.desk import Desk
from ops.dlq.letters import event_of
from ops.dlq.selection import Held
from ops.domain import Filter, Prediction, dlq_of
from order_service import domain as order
from order_service import models as order_models
from payment_service import domain as payment
from payment_service import models as payment_models
from shared.envelope import Envelope
from shared.errors import DeadMessage, UnknownOrder, UnknownType
from shared.ids import uuid7
from topology.table import BY_NAME, hears

# Messages whose books are read together.
CHUNK = 500

Verdict = tuple[Prediction, str]
APPLIES: Verdict = (Prediction.APPLY, "")


@dataclass(frozen=True)
class Group:
    """Messages with one prediction, and one of them as an example."""

    prediction: Prediction
    why: str
    reason: str
    event_type: str


@dataclass
class Diagnosis:
    """How many messages of a DLQ have which prospect."""

    queue: str
    groups: Counter[Group] = field(default_factory=Counter)
    examples: dict[Group, UUID] = field(default_factory=dict)


def diagnose(desk: Desk, queue: str, chosen: Filter) -> Diagnosis:
    """The prospects of what a filter chooses. Raises Conflict when somebody works on the DLQ, CannotWork."""
    main, _ = dlq_of(queue)
    diagnosis = Diagnosis(main)
    with desk.look_into(queue, chosen) as selection:
        while held := selection.take(CHUNK):
            verdicts = predict(desk.books, main, held)
            for item in held:
                prediction, why = verdicts[item.slot.message_id]
                group = Group(prediction, why, item.letter.reason, item.letter.event_type)
                diagnosis.groups[group] += 1
                diagnosis.examples.setdefault(group, item.slot.message_id)
    return diagnosis


def predict(books: Books, main: str, held: Sequence[Held]) -> dict[UUID, Verdict]:
    """The prospects of some messages. A handful of statements, whatever their number."""
    verdicts: dict[UUID, Verdict] = {}
    events: list[Envelope] = []
    applied = books.consumed(main, [item.slot.message_id for item in held])
    for item in held:
        message_id = item.slot.message_id
        try:
            event = event_of(item.content)
            if not hears(BY_NAME[main], event.type):
                raise UnknownType(f"{main} does not take {event.type}")
        except DeadMessage as error:
            verdicts[message_id] = (Prediction.POISON, error.code)
        else:
            if message_id in applied:
                verdicts[message_id] = (Prediction.APPLIED, "in the inbox")
            else:
                events.append(event)
    if events:
        with books.read(BY_NAME[main].service) as session:
            verdicts |= PROPHETS[main](session, events)
    return verdicts


def _judged(events: Sequence[Envelope], decide: Callable[[Envelope], Verdict]) -> dict[UUID, Verdict]:
    verdicts = {}
    for event in events:
        try:
            verdicts[event.message_id] = decide(event)
        except DeadMessage as error:
            verdicts[event.message_id] = (Prediction.POISON, f"{error.code}: {_without_ids(str(error))}")
    return verdicts


def _without_ids(text: str) -> str:
    """A message's reason, alike for all that are alike."""
    return " ".join("..." if len(word) == 36 and word.count("-") == 4 else word for word in text.split())


# --- order --------------------------------------------------------------------------------------------------------


def _follow(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    orders = order_models.orders_of(session, [event.payload.order_id for event in events])

    def decide(event: Envelope) -> Verdict:
        known = orders.get(event.payload.order_id)
        if known is None:
            raise UnknownOrder("there is no such order")
        step = order.follow(known, event.payload, uuid7())
        if step.repeated:
            return Prediction.STALE, f"the order is {known.status} and has followed it"
        if step.order.status == known.status:
            return Prediction.APPLY, f"the order is {known.status} and stays so: it is a step of its timeline"
        return Prediction.APPLY, f"the order is {known.status} and becomes {step.order.status}"

    return _judged(events, decide)


# --- inventory ----------------------------------------------------------------------------------------------------


def _reserve(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    held = inventory_models.reservations_of(session, [event.payload.order_id for event in events])

    def decide(event: Envelope) -> Verdict:
        existing = held.get(event.payload.order_id)
        if existing is None:
            return APPLIES
        return APPLIES if inventory.repeat_reserve(existing, event.payload).emits else _is(existing)

    return _judged(events, decide)


def _settle(verb: str) -> Callable[[Session, Sequence[Envelope]], dict[UUID, Verdict]]:
    def prophet(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
        held = inventory_models.reservations_of(session, [event.payload.order_id for event in events])
        skus = {sku for reservation in held.values() for sku in reservation.quantities}
        stock = inventory_models.stock_of(session, skus)

        def decide(event: Envelope) -> Verdict:
            existing = held.get(event.payload.order_id)
            if existing is None and verb == inventory.RELEASE:
                return APPLIES  # it leaves a tombstone
            reason = getattr(event.payload, "reason", "")
            outcome = inventory.close_reservation(stock, existing, verb, event.payload.order_id, reason)
            return APPLIES if outcome.changed else _is(outcome.reservation)

        return _judged(events, decide)

    return prophet


def _is(reservation: inventory.Reservation) -> Verdict:
    return Prediction.STALE, f"the reservation is {reservation.state}"


# --- payment ------------------------------------------------------------------------------------------------------


def _charge(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    payments = _payments(session, events)

    def decide(event: Envelope) -> Verdict:
        known = payments.get(event.payload.order_id)
        return APPLIES if known is None or payment.is_to_be_charged(known) else _settled(known)

    return _judged(events, decide)


def _refund(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    payments = _payments(session, events)
    refunds = payment_models.refunds(session, [event.payload.refund_id for event in events])

    def decide(event: Envelope) -> Verdict:
        order_id, refund_id = event.payload.order_id, event.payload.refund_id
        asked = refunds.get(refund_id) or payment.Refund(refund_id, order_id, payment.RefundStatus.PENDING)
        known = payments.get(order_id)
        payment.refunded(known, order_id, asked, None)  # raises what its handler would
        if known is not None and asked.status != payment.RefundStatus.PENDING:
            return Prediction.STALE, f"the refund is {asked.status}"
        return APPLIES

    return _judged(events, decide)


def _void(session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    payments = _payments(session, events)

    def decide(event: Envelope) -> Verdict:
        known = payments.get(event.payload.order_id)
        return APPLIES if known is None or payment.cancelled(known) != known else _settled(known)

    return _judged(events, decide)


def _payments(session: Session, events: Sequence[Envelope]) -> Mapping[UUID, payment.Payment]:
    rows = payment_models.payments_of(session, [event.payload.order_id for event in events])
    return {order_id: payment_models.payment(row) for order_id, row in rows.items()}


def _settled(known: payment.Payment) -> Verdict:
    return Prediction.STALE, f"the payment is {known.status}"


# Who knows what would become of a message in which queue; a queue without a row here fails a test.
PROPHETS: dict[str, Callable[[Session, Sequence[Envelope]], dict[UUID, Verdict]]] = {
    "q.inventory.order-created": _reserve,
    "q.inventory.release-requested": _settle(inventory.RELEASE),
    "q.inventory.commit-requested": _settle(inventory.COMMIT),
    "q.payment.inventory-reserved": _charge,
    "q.payment.refund-requested": _refund,
    "q.payment.order-cancelled": _void,
    "q.order.inventory-result": _follow,
    "q.order.payment-result": _follow,
}
