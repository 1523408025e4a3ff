"""The prediction for a dead message comes true when it is replayed: the service itself is the oracle."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from ops.dlq.diagnose import PREDICTORS, diagnose
from ops.dlq.operator_session import Actor, OperatorSession
from ops.domain import Filter
from order_service import new_orders
from order_service.new_orders import NewOrder
from payment_service.domain import payment_id_of
from shared.config import Settings
from shared.edge.publisher import Outgoing
from shared.envelope import Envelope
from shared.events import (
    CommitRequested,
    Committed,
    Item,
    OrderCancelled,
    OrderCreated,
    Payload,
    PaymentFailed,
    PaymentSucceeded,
    Refunded,
    RefundRequested,
    Released,
    ReleaseRequested,
    ReservationFailed,
    Reserved,
)
from shared.failures import Delivery
from shared.idempotency import KeyedRequest
from shared.predictions import Prediction
from tests.databases import Databases
from tests.integration.support import CUSTOMER, Bench, emitted, order_created, reserved_event
from tests.integration.test_handlers import CASES
from topology.table import BY_NAME, dead_letter_queue

CREATED = "q.inventory.order-created"
RELEASE = "q.inventory.release-requested"
COMMIT = "q.inventory.commit-requested"
CHARGE = "q.payment.inventory-reserved"
REFUND = "q.payment.refund-requested"
VOID = "q.payment.order-cancelled"
STOCK_SAYS = "q.order.inventory-result"
MONEY_SAYS = "q.order.payment-result"

# What changes without anything happening.
RESTLESS = {"updated_at", "consumed_at"}
NOT_BUSINESS = {"alembic_version", "dead_messages", "consumed_messages"}


class World:
    """A service with its database, brought into a state by earlier messages."""

    def __init__(self, bench: Bench, queue: str, database: Databases) -> None:
        self.bench = bench
        self.queue = queue
        self.database = database

    def heard(self, payload: Payload, queue: str = "") -> Envelope:
        """An event that has been handled."""
        event = emitted(payload)
        self.bench.handle_batch(queue or self.queue, [event])
        return event

    def stock(self, on_hand: int = 10) -> None:
        self.database.run("inventory", "INSERT INTO stock_items (sku, on_hand) VALUES ('apple', :n)", n=on_hand)

    def reserved(self) -> UUID:
        self.stock()
        order = order_created()
        self.heard(order, CREATED)
        return order.order_id

    def held_manually(self) -> UUID:
        self.stock()
        order_id = uuid4()
        self.bench.service.reserve_manually(str(order_id), [{"sku": "apple", "quantity": 1}])
        return order_id

    def paid(self, method: str = "mock_ok") -> UUID:
        event = reserved_event(method=method)
        self.bench.handle_batch(CHARGE, [event])
        return UUID(str(event.payload.order_id))

    def order(self) -> OrderCreated:
        """A new order, PENDING."""
        order = order_created()
        versions = tuple(1 for _ in order.items)
        request = KeyedRequest(CUSTOMER.user_id, new_orders.ROUTE, str(order.order_id), {})
        with self.bench.sessions.begin() as session:
            new_orders.add(session, [NewOrder(order, versions, request, CUSTOMER, "a" * 32)])
        return order

    def snapshot(self) -> dict[str, Any]:
        """All rows of the service, without its inbox and its dead messages."""
        tables = (
            "SELECT relname AS tablename FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
        )
        found = {}
        for row in self.database.rows(self.bench.name, tables):
            if row["tablename"] not in NOT_BUSINESS:
                rows = self.database.rows(self.bench.name, f"SELECT * FROM {row['tablename']}")
                found[row["tablename"]] = sorted(
                    str({name: value for name, value in one.items() if name not in RESTLESS}) for one in rows
                )
        return found

    def consumed(self, event: Envelope) -> bool:
        rows = self.database.rows(
            self.bench.name,
            "SELECT 1 FROM consumed_messages WHERE consumer = :queue AND message_id = :id",
            queue=self.queue,
            id=event.message_id,
        )
        return bool(rows)


def reserved_by(order: OrderCreated, reservation_id: UUID | None = None) -> Reserved:
    return Reserved(
        order.order_id, reservation_id or uuid4(), order.items, order.total, order.currency, order.payment_method
    )


def released(order_id: UUID) -> Released:
    return Released(order_id, uuid4(), (Item("apple", 1),), "deadline")


def refund(order_id: UUID, refund_id: UUID | None = None) -> RefundRequested:
    return RefundRequested(order_id, payment_id_of(order_id), refund_id or uuid4(), 100, "EUR", "order_cancelled")


Made = Payload | Envelope | bytes
Scene = Callable[[World], Made]
SCENES: dict[tuple[str, str], tuple[Prediction, Scene]] = {}


def scene(queue: str, prediction: Prediction) -> Callable[[Scene], Scene]:
    def add(made: Scene) -> Scene:
        SCENES[queue, made.__name__] = (prediction, made)
        return made

    return add


def again(world: World, payload: Payload) -> Payload:
    """The same again, under another message_id."""
    world.heard(payload)
    return payload


@scene(CREATED, Prediction.APPLY)
def a_new_order(world: World) -> Made:
    world.stock()
    return order_created()


@scene(CREATED, Prediction.APPLY)
def an_order_of_what_is_short(world: World) -> Made:
    return order_created()


@scene(CREATED, Prediction.APPLY)
def an_order_that_is_held_manually(world: World) -> Made:
    return order_created(world.held_manually())


@scene(CREATED, Prediction.STALE)
def an_order_that_was_seen(world: World) -> Made:
    world.stock()
    return again(world, order_created())


@scene(CREATED, Prediction.STALE)
def an_order_after_its_release(world: World) -> Made:
    order = order_created()
    world.heard(ReleaseRequested(order.order_id, "deadline"), RELEASE)
    return order


@scene(CREATED, Prediction.POISON)
def an_order_that_was_seen_with_other_quantities(world: World) -> Made:
    world.stock()
    order = order_created(quantity=2)
    world.heard(order)
    return order_created(order.order_id)


# Who reserves by hand under an order's id makes up for a reservation that was lost: its order closes it.
@scene(RELEASE, Prediction.APPLY)
def a_release_of_what_is_held_manually(world: World) -> Made:
    return ReleaseRequested(world.held_manually(), "deadline")


@scene(COMMIT, Prediction.APPLY)
def a_commit_of_what_is_held_manually(world: World) -> Made:
    return CommitRequested(world.held_manually())


@scene(RELEASE, Prediction.APPLY)
def a_release_of_what_is_held(world: World) -> Made:
    return ReleaseRequested(world.reserved(), "deadline")


@scene(RELEASE, Prediction.APPLY)
def a_release_of_what_was_sold(world: World) -> Made:
    order_id = world.reserved()
    world.heard(CommitRequested(order_id), COMMIT)
    return ReleaseRequested(order_id, "deadline")


@scene(RELEASE, Prediction.APPLY)
def a_release_before_its_order(world: World) -> Made:
    return ReleaseRequested(uuid4(), "deadline")


@scene(RELEASE, Prediction.STALE)
def a_release_of_what_was_released(world: World) -> Made:
    return again(world, ReleaseRequested(world.reserved(), "deadline"))


@scene(RELEASE, Prediction.STALE)
def a_release_of_what_was_refused(world: World) -> Made:
    order = order_created()
    world.heard(order, CREATED)
    return ReleaseRequested(order.order_id, "deadline")


@scene(COMMIT, Prediction.APPLY)
def a_commit_of_what_is_held(world: World) -> Made:
    return CommitRequested(world.reserved())


@scene(COMMIT, Prediction.STALE)
def a_commit_of_what_was_sold(world: World) -> Made:
    return again(world, CommitRequested(world.reserved()))


@scene(COMMIT, Prediction.STALE)
def a_commit_after_the_release(world: World) -> Made:
    order_id = world.reserved()
    world.heard(ReleaseRequested(order_id, "deadline"), RELEASE)
    return CommitRequested(order_id)


@scene(COMMIT, Prediction.POISON)
def a_commit_of_what_was_never_reserved(world: World) -> Made:
    return CommitRequested(uuid4())


@scene(COMMIT, Prediction.POISON)
def a_commit_of_what_was_refused(world: World) -> Made:
    order = order_created()
    world.heard(order, CREATED)
    return CommitRequested(order.order_id)


@scene(CHARGE, Prediction.APPLY)
def a_charge(world: World) -> Made:
    return reserved_event()


@scene(CHARGE, Prediction.APPLY)
def a_charge_that_is_refused(world: World) -> Made:
    return reserved_event(method="mock_decline")


@scene(CHARGE, Prediction.STALE)
def a_charge_of_what_was_charged(world: World) -> Made:
    return reserved_event(world.paid())


@scene(CHARGE, Prediction.STALE)
def a_charge_of_what_was_cancelled(world: World) -> Made:
    order_id = uuid4()
    world.heard(OrderCancelled(order_id, "deadline"), VOID)
    return reserved_event(order_id)


@scene(CHARGE, Prediction.POISON)
def a_charge_of_more_than_the_lines_cost(world: World) -> Made:
    event = reserved_event()
    return replace(event.payload, total=777_777)  # type: ignore[no-any-return]


@scene(CHARGE, Prediction.POISON)
def a_second_charge_of_another_amount(world: World) -> Made:
    return reserved_event(world.paid(), unit_price=200)


@scene(REFUND, Prediction.POISON)
def a_refund_of_another_amount(world: World) -> Made:
    return replace(refund(world.paid()), amount=5_000)


@scene(REFUND, Prediction.POISON)
def a_refund_of_another_payment(world: World) -> Made:
    return replace(refund(world.paid()), payment_id=uuid4())


@scene(REFUND, Prediction.POISON)
def a_refund_of_another_order(world: World) -> Made:
    made = world.heard(refund(world.paid())).payload
    return refund(world.paid(), made.refund_id)


@scene(REFUND, Prediction.APPLY)
def a_refund(world: World) -> Made:
    return refund(world.paid())


@scene(REFUND, Prediction.APPLY)
def another_refund_of_what_was_refunded(world: World) -> Made:
    order_id = world.paid()
    world.heard(refund(order_id))
    return refund(order_id)


@scene(REFUND, Prediction.STALE)
def a_refund_that_was_made(world: World) -> Made:
    return again(world, refund(world.paid()))


@scene(REFUND, Prediction.POISON)
def a_refund_of_nothing(world: World) -> Made:
    return refund(uuid4())


@scene(REFUND, Prediction.POISON)
def a_refund_of_what_took_no_money(world: World) -> Made:
    order_id = uuid4()
    world.heard(OrderCancelled(order_id, "deadline"), VOID)
    return refund(order_id)


@scene(VOID, Prediction.APPLY)
def a_cancellation(world: World) -> Made:
    return OrderCancelled(uuid4(), "deadline")


@scene(VOID, Prediction.STALE)
def a_cancellation_of_what_was_charged(world: World) -> Made:
    return OrderCancelled(world.paid(), "deadline")


@scene(VOID, Prediction.STALE)
def a_cancellation_that_was_heard(world: World) -> Made:
    return again(world, OrderCancelled(uuid4(), "deadline"))


@scene(STOCK_SAYS, Prediction.APPLY)
def a_reservation(world: World) -> Made:
    return reserved_by(world.order())


@scene(STOCK_SAYS, Prediction.APPLY)
def a_reservation_that_was_overtaken(world: World) -> Made:
    order = world.order()
    world.heard(PaymentSucceeded(order.order_id, uuid4(), order.total, "EUR", "r"), MONEY_SAYS)
    return reserved_by(order)


@scene(STOCK_SAYS, Prediction.APPLY)
def a_late_reservation_of_a_cancelled_order(world: World) -> Made:
    order = world.order()
    world.heard(PaymentFailed(order.order_id, uuid4(), "declined"), MONEY_SAYS)
    return reserved_by(order)


@scene(STOCK_SAYS, Prediction.APPLY)
def a_step_for_the_timeline(world: World) -> Made:
    return released(world.order().order_id)


@scene(STOCK_SAYS, Prediction.APPLY)
def another_step_for_the_timeline(world: World) -> Made:
    return Committed(world.order().order_id, uuid4(), (Item("apple", 1),), "paid")


@scene(STOCK_SAYS, Prediction.STALE)
def a_reservation_that_was_followed(world: World) -> Made:
    return again(world, reserved_by(world.order()))


@scene(STOCK_SAYS, Prediction.POISON)
def a_reservation_of_no_order(world: World) -> Made:
    return reserved_by(order_created())


@scene(STOCK_SAYS, Prediction.POISON)
def a_failure_after_the_reservation(world: World) -> Made:
    order = world.order()
    world.heard(reserved_by(order))
    return ReservationFailed(order.order_id, "out_of_stock", ())


@scene(MONEY_SAYS, Prediction.APPLY)
def a_payment(world: World) -> Made:
    order = world.order()
    return PaymentSucceeded(order.order_id, uuid4(), order.total, "EUR", "r")


@scene(MONEY_SAYS, Prediction.APPLY)
def a_late_failure_of_a_cancelled_order(world: World) -> Made:
    order = world.order()
    world.heard(ReservationFailed(order.order_id, "out_of_stock", ()), STOCK_SAYS)
    return PaymentFailed(order.order_id, uuid4(), "declined")


@scene(MONEY_SAYS, Prediction.STALE)
def a_payment_that_was_followed(world: World) -> Made:
    order = world.order()
    return again(world, PaymentSucceeded(order.order_id, uuid4(), order.total, "EUR", "r"))


@scene(STOCK_SAYS, Prediction.POISON)
def a_reservation_of_another_total(world: World) -> Made:
    return replace(reserved_by(world.order()), total=1)


@scene(MONEY_SAYS, Prediction.POISON)
def a_payment_of_another_amount_and_currency(world: World) -> Made:
    return PaymentSucceeded(world.order().order_id, uuid4(), 1, "USD", "r")


@scene(MONEY_SAYS, Prediction.POISON)
def money_back_that_nobody_asked_for(world: World) -> Made:
    return Refunded(world.order().order_id, uuid4(), uuid4(), 100, "EUR")


def scene_of(queue: str, prediction: Prediction) -> Scene:
    return next(made for (name, _), (said, made) in SCENES.items() if name == queue and said == prediction)


def handled_before(queue: str) -> Scene:
    def made(world: World) -> Made:
        event = scene_of(queue, Prediction.APPLY)(world)
        event = event if isinstance(event, Envelope) else emitted(event)  # type: ignore[arg-type]
        world.bench.handle_batch(queue, [event])
        return event

    return made


def of_another_queue(queue: str) -> Scene:
    return lambda world: order_created() if queue != CREATED else CommitRequested(uuid4())


def fresh(queue: str) -> Scene:
    """The first message of the queue's case in test_handlers: it takes effect."""
    return lambda world: CASES[queue][0](world.bench, world.database)[0]


def same_again(queue: str) -> Scene:
    """A message that says what another has said: it changes nothing."""

    def made(world: World) -> Made:
        event: Envelope = fresh(queue)(world)  # type: ignore[assignment]
        world.bench.handle_batch(queue, [event])
        return replace(event, message_id=uuid4())

    return made


for _queue in BY_NAME:
    # A queue without scenes of its own is tried with the messages of its case.
    if not any(name == _queue for name, _ in SCENES):
        SCENES[_queue, "a_fresh_message"] = (Prediction.APPLY, fresh(_queue))
        SCENES[_queue, "the_same_again"] = (Prediction.STALE, same_again(_queue))
    SCENES[_queue, "what_is_in_the_inbox"] = (Prediction.APPLIED, handled_before(_queue))
    SCENES[_queue, "what_is_no_event"] = (Prediction.POISON, lambda world: b"\xff")
    SCENES[_queue, "what_is_of_another_queue"] = (Prediction.POISON, of_another_queue(_queue))


@pytest.fixture
def operator(settings: Settings, database: Databases) -> Iterator[OperatorSession]:
    one = OperatorSession(settings, Actor("ann"))
    yield one
    one.close()


def test_every_queue_has_a_predictor():
    assert PREDICTORS.keys() == BY_NAME.keys()


@pytest.mark.parametrize("queue", BY_NAME)
def test_every_prediction_of_every_queue_has_a_scene(queue):
    assert {prediction for (name, _), (prediction, _) in SCENES.items() if name == queue} == set(Prediction)


@pytest.mark.parametrize(("queue", "name"), SCENES)
def test_predictions_come_true(queue, name, bench, database, mail, operator):
    prediction, made = SCENES[queue, name]
    world = World(bench(BY_NAME[queue].service), queue, database)
    what = made(world)
    event = what if isinstance(what, Envelope) else emitted(what) if isinstance(what, Payload) else None
    message_id = event.message_id if event else uuid4()
    body = event.to_json().encode() if event else what
    dlq = dead_letter_queue(queue)
    mail.send([Outgoing("", dlq, body, str(message_id), event.type if event else "", {"x-reason": "exhausted"})])
    before = world.snapshot()

    found = diagnose(operator, queue, Filter())

    ((group, count),) = found.groups.items()
    assert (group.prediction, count, found.examples[group]) == (prediction, 1, message_id)
    assert world.snapshot() == before, "a diagnosis changed something"

    mail.all(dlq)
    world.bench.batch(queue).handle_batch([Delivery(1, body, event.type if event else "x", str(message_id), {})])

    died = bool(mail.all(dlq))
    changed = world.snapshot() != before
    known = bool(event) and world.consumed(event)
    assert (died, changed, known) == {
        Prediction.APPLY: (False, True, True),
        Prediction.APPLIED: (False, False, True),
        Prediction.STALE: (False, False, True),
        Prediction.POISON: (True, False, False),
    }[prediction]


def test_alike_messages_are_one_group_with_an_example(operator, mail):
    events = [emitted(CommitRequested(uuid4())) for _ in range(3)]
    dlq = dead_letter_queue(COMMIT)
    mail.send(
        [Outgoing("", dlq, e.to_json(), str(e.message_id), e.type, {"x-reason": "unknown_order"}) for e in events]
    )
    found = diagnose(operator, COMMIT, Filter())
    ((group, count),) = found.groups.items()
    assert (count, group.reason, group.event_type) == (3, "unknown_order", "inventory.commit.requested")
    assert group.why == "unknown_order: order ... has no reservation to commit"
    assert found.examples[group] in {event.message_id for event in events}


def test_a_message_whose_id_was_changed_by_hand_is_diagnosed(operator, mail):
    event = emitted(CommitRequested(uuid4()))
    mail.send([Outgoing("", dead_letter_queue(COMMIT), event.to_json(), str(uuid4()), "", {"x-reason": "by hand"})])
    (group,) = diagnose(operator, COMMIT, Filter()).groups
    assert group.prediction == Prediction.POISON
