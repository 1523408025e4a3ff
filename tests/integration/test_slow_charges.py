"""Charges and refunds of one customer that the provider does not answer delay no other customer's."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import eventlet
import pytest
from eventlet.event import Event
from nameko.containers import ServiceContainer

from payment_service import models
from payment_service.domain import Answer, payment_id_of
from payment_service.mock_provider import MockProvider
from payment_service.provider import Charge, Provider
from payment_service.service import RECOVER_BATCH, UNKNOWN_AFTER_S, PaymentService
from shared.config import Settings
from shared.edge.fair_calls import PLACES, FairCalls
from shared.edge.http import Health
from shared.envelope import Envelope
from shared.errors import ProviderTimeout
from shared.events import OrderCancelled, RefundRequested
from tests.databases import Databases
from tests.integration.support import (
    Bench,
    Mail,
    container_of,
    deliveries,
    emitted,
    extension,
    headers_of,
    reserved_event,
    throughout,
    until,
)

CHARGES = "q.payment.inventory-reserved"
REFUNDS = "q.payment.refund-requested"
VOIDS = "q.payment.order-cancelled"
SHARE = PLACES // 2

Benches = Callable[..., Bench]


def charges(number: int, customer: str) -> list[Envelope]:
    return [reserved_event(customer=customer) for _ in range(number)]


def refund_of(event: Envelope) -> Envelope:
    order_id = event.payload.order_id
    payload = RefundRequested(order_id, payment_id_of(order_id), uuid4(), 100, "EUR", "order_cancelled")
    return emitted(payload, by=event.identity.user_id)


def statuses(database: Databases, table: str = "payments") -> dict[UUID, str]:
    return {row["order_id"]: row["status"] for row in database.rows("payment", f"SELECT * FROM {table}")}


def orders_of(events: list[Envelope]) -> list[UUID]:
    return [event.payload.order_id for event in events]


class Silence:
    """Calls for Mallory hang until `answer` is sent, and time out then."""

    def __init__(self) -> None:
        self.under_way = 0
        self.asked: list[UUID] = []
        self.answer = Event()

    def hang(self, charge: Charge) -> None:
        self.asked.append(charge.key)
        if charge.customer == "mallory" and not self.answer.ready():
            self.under_way += 1
            self.answer.wait()
            self.under_way -= 1
            raise ProviderTimeout

    def end(self) -> None:
        """Let all calls that hang time out; later ones are answered at once."""
        if not self.answer.ready():
            self.answer.send()
        until(lambda: not self.under_way)


class Hanging(Provider):
    """A provider behind a silence."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.silence = Silence()

    def charge(self, charge: Charge) -> Answer:
        self.silence.hang(charge)
        return self.provider.charge(charge)

    def refund(self, refund: Charge) -> Answer:
        self.silence.hang(refund)
        return self.provider.refund(refund)

    def find(self, key: UUID) -> Answer | None:
        return self.provider.find(key)


def with_patience(payment: Bench, seconds: float) -> None:
    for fair_calls in ("charges", "refunds", "questions"):
        setattr(payment.service, fair_calls, FairCalls(patience_s=seconds))


@pytest.fixture
def payment(bench: Benches) -> Bench:
    """A payment service whose batches hardly wait for calls that hang."""
    payment = bench("payment")
    with_patience(payment, 0.1)
    return payment


@pytest.fixture
def silence(payment: Bench) -> Iterator[Silence]:
    """The provider answers none of Mallory's calls."""
    payment.service.provider = hanging = Hanging(payment.service.provider)
    yield hanging.silence
    hanging.silence.end()


@pytest.mark.parametrize("queue", [CHARGES, REFUNDS])
def test_a_batch_goes_on_without_the_calls_that_hang_and_sets_aside_what_is_over_the_customers_share(
    queue: str, payment: Bench, silence: Silence, database: Databases, mail: Mail
) -> None:
    slow, quick = charges(30, "mallory"), charges(5, "ann")
    table, events = "payments", [*slow, *quick]
    if queue == REFUNDS:
        hanging, payment.service.provider = payment.service.provider, payment.service.provider.provider
        with_patience(payment, 20.0)
        payment.handle_batch(CHARGES, events)
        payment.service.provider = hanging
        table, events = "refunds", [refund_of(event) for event in events]
    with_patience(payment, 2.0)  # Ann's calls end by then, also on a busy machine
    batch = payment.batch(queue)

    going_on = batch.handle_batch(deliveries(events))

    of = statuses(database, table)
    assert [of[order_id] for order_id in orders_of(quick)] == ["COMPLETED"] * 5
    assert "COMPLETED" not in {of.get(order_id) for order_id in orders_of(slow)}
    assert silence.under_way == len(going_on) == SHARE
    set_aside = mail.all(f"{queue}.retry")
    assert [headers_of(message)["x-attempt"] for message in set_aside] == [0] * (30 - SHARE)
    assert "slow calls for the same customers" in batch.warnings()[0]
    assert batch.held_up_since() is not None

    silence.end()
    until(lambda: all(item.call.ended for item in going_on))
    assert batch.handle_batch([item.delivery for item in going_on]) == []
    retried = mail.all(f"{queue}.retry")
    assert [headers_of(message)["x-attempt"] for message in retried] == [1] * SHARE
    assert len(silence.asked) == SHARE + 5


def test_a_charge_whose_customer_has_no_place_is_not_recorded_and_can_be_cancelled(
    payment: Bench, silence: Silence, database: Databases, mail: Mail
) -> None:
    first, late = charges(SHARE, "mallory"), charges(1, "mallory")
    batch = payment.batch(CHARGES)
    batch.handle_batch(deliveries(first))

    assert batch.handle_batch(deliveries(late)) == []

    assert set(statuses(database)) == set(orders_of(first))
    payment.handle_batch(VOIDS, [emitted(OrderCancelled(late[0].payload.order_id, "deadline"))])
    silence.end()
    batch.handle_batch(deliveries(late))
    assert statuses(database)[late[0].payload.order_id] == "VOID"
    assert payment_id_of(late[0].payload.order_id) not in silence.asked


def test_a_charge_that_is_answered_late_is_saved_by_a_later_batch_also_if_its_order_was_cancelled_meanwhile(
    payment: Bench, database: Databases, mail: Mail
) -> None:
    payment.service.provider = provider = Late(payment.service.provider)
    kept, cancelled = charges(2, "mallory")
    batch = payment.batch(CHARGES)
    going_on = batch.handle_batch(deliveries([kept, cancelled]))
    assert set(statuses(database).values()) == {"PENDING"}
    payment.handle_batch(VOIDS, [emitted(OrderCancelled(cancelled.payload.order_id, "deadline"))])
    assert set(statuses(database).values()) == {"PENDING"}, "a call that is under way may take the money"

    provider.answer.send()
    until(lambda: all(item.call.ended for item in going_on))
    assert batch.handle_batch([item.delivery for item in going_on]) == []

    assert set(statuses(database).values()) == {"COMPLETED"}
    emitted_now = database.rows("payment", "SELECT event_type FROM outbox")
    assert [row["event_type"] for row in emitted_now] == ["payment.succeeded"] * 2
    assert database.rows("payment", "SELECT count(*) AS n FROM provider_ledger") == [{"n": 2}]


@pytest.mark.usefixtures("restless")
def test_a_pause_is_not_over_while_the_call_that_tries_the_provider_has_no_answer(
    payment: Bench, database: Databases, mail: Mail, tmp_path: Path
) -> None:
    outage = tmp_path / "provider-is-down"
    outage.touch()
    payment.service.provider = payment.provider(f"down_while:{outage}", open_s=0.1)
    with_patience(payment, 0.001)
    batch = payment.batch(CHARGES)
    (going_on,) = batch.handle_batch(deliveries(charges(1, "ann")))
    until(lambda: going_on.call.ended)
    handling = eventlet.spawn(batch.handle_batch, [going_on.delivery])
    until(lambda: batch.pausing.not_ready_reason)

    throughout(lambda: not handling.dead and batch.pausing.not_ready_reason is not None, for_s=0.6)
    outage.unlink()

    left = handling.wait()
    until(lambda: all(item.call.ended for item in left))
    batch.handle_batch([item.delivery for item in left])
    assert set(statuses(database).values()) == {"COMPLETED"}
    assert mail.all(f"{CHARGES}.retry") == []


class Late(Provider):
    """Answers each charge, but not before `answer`."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.answer = Event()

    def charge(self, charge: Charge) -> Answer:
        self.answer.wait()
        return self.provider.charge(charge)


def test_questions_of_one_customer_that_hang_keep_no_other_from_being_recovered(
    payment: Bench, database: Databases, mail: Mail
) -> None:
    provider, payment.service.provider = payment.service.provider, payment.provider("timeout")
    slow, quick = charges(30, "mallory"), charges(1, "ann")
    payment.service.charges = FairCalls()
    payment.handle_batch(CHARGES, slow + quick)
    make_old(database, slow, 60)
    make_old(database, quick, 30)  # after all of Mallory's
    answer = Event()

    class Silent(Provider):
        def find(self, key: UUID) -> Answer | None:
            if key in {payment_id_of(order_id) for order_id in orders_of(slow)}:
                answer.wait()
            return Answer(True, reference="ref")

    payment.service.provider = Silent()

    payment.service.recover_unknown()

    completed = [order_id for order_id, status in statuses(database).items() if status == "COMPLETED"]
    assert completed == orders_of(quick)
    answer.send()
    eventlet.sleep(0)
    payment.service.provider = provider
    payment.service.recover_unknown()
    assert Counter(statuses(database).values()) == {"COMPLETED": 1 + SHARE, "PENDING": 30 - SHARE}


def make_old(database: Databases, events: list[Envelope], seconds: int) -> None:
    old = "UPDATE payments SET updated_at = now() - make_interval(secs => :age) WHERE order_id = ANY(:ids)"
    database.run("payment", old, age=UNKNOWN_AFTER_S + seconds, ids=orders_of(events))


def test_a_customer_with_many_unknown_payments_keeps_no_other_from_their_turn(
    payment: Bench, database: Databases, mail: Mail
) -> None:
    slow, quick = charges(RECOVER_BATCH + 1, "mallory"), charges(2, "ann")
    with payment.sessions.begin() as session:
        models.claim_charges(session, slow + quick)
    make_old(database, slow, 60)
    make_old(database, quick, 30)

    with payment.sessions.read() as session:
        rows = models.unknown(session, models.PaymentRow, UNKNOWN_AFTER_S, RECOVER_BATCH)

    first = {row.order_id for row in rows[:4]}
    assert len(rows) == RECOVER_BATCH
    assert set(orders_of(quick)) <= first


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Silence]:
    """In every container the provider answers none of Mallory's calls."""

    def charge(provider: MockProvider, charge: Charge) -> Answer:
        silence.hang(charge)
        return answered(provider, charge)

    silence, answered = Silence(), MockProvider.charge
    monkeypatch.setattr(MockProvider, "charge", charge)
    yield silence
    silence.end()


def replica(settings: Settings, number: int = 0) -> ServiceContainer:
    container = container_of(settings, PaymentService, number)
    container.start()
    until(lambda: not extension(container, Health).reasons())
    return container


def test_with_two_replicas_another_customers_orders_are_charged_while_one_customers_charges_hang(
    settings: Settings, database: Databases, mail: Mail, everywhere: Silence
) -> None:
    containers = [replica(settings, number) for number in range(2)]
    slow, quick = charges(60, "mallory"), charges(10, "ann")
    mail.publish(slow)
    until(lambda: everywhere.under_way == 2 * SHARE)

    mail.publish(quick)

    until(lambda: Counter(statuses(database).values())["COMPLETED"] == 10)
    assert everywhere.under_way == 2 * SHARE
    assert len(everywhere.asked) == 2 * SHARE + 10
    everywhere.end()
    until(lambda: Counter(statuses(database).values())["COMPLETED"] == 70)
    for container in containers:
        container.stop()
    assert sorted(Counter(everywhere.asked).values())[-1] <= 2, "no charge was repeated but those that timed out"
    assert database.rows("payment", "SELECT count(*) AS n FROM provider_ledger WHERE done") == [{"n": 70}]
    assert mail.all(f"{CHARGES}.dlq") == []


def test_a_process_that_dies_with_calls_under_way_loses_none_of_them(
    settings: Settings, database: Databases, mail: Mail, everywhere: Silence
) -> None:
    container = replica(settings)
    slow = charges(SHARE, "mallory")
    mail.publish(slow)
    until(lambda: everywhere.under_way == SHARE)

    container.kill()
    assert until(lambda: mail.waiting(CHARGES)) == SHARE
    everywhere.end()
    container = replica(settings)

    until(lambda: Counter(statuses(database).values())["COMPLETED"] == SHARE)
    container.stop()
    assert database.rows("payment", "SELECT count(*) AS n FROM provider_ledger WHERE done") == [{"n": SHARE}]
