"""Inbox and outbox: each message acts once, and events are committed together with their change."""

import json
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID, uuid4

import eventlet
import pytest

from shared import inbox, outbox
from shared.edge.tx import Events, Tx
from shared.envelope import envelope
from shared.errors import InvalidSchema
from shared.events import Identity, OrderCancelled, OrderPaid
from shared.ids import new_trace_id
from tests.databases import Databases
from tests.integration.support import Bench, Mail, emitted, until
from tests.integration.test_handlers import CASES
from topology.table import BY_NAME

Benches = Callable[..., Bench]
CONSUMER = "q.test"


class Undone(Exception):
    """Rolls a transaction back."""


def remembered(database: Databases) -> set[object]:
    return {row["message_id"] for row in database.rows("payment", "SELECT message_id FROM consumed_messages")}


def test_a_message_is_new_once_for_each_consumer(bench: Benches, database: Databases) -> None:
    payment, ids = bench("payment"), {uuid4() for _ in range(5)}
    with payment.sessions.begin() as session:
        assert inbox.claim(session, CONSUMER, [*ids, *ids]) == ids
        assert inbox.claim(session, CONSUMER, ids) == set()
    with payment.sessions.begin() as session:
        extra = uuid4()
        assert inbox.claim(session, CONSUMER, [*ids, extra]) == {extra}
        assert inbox.claim(session, "q.other", ids) == ids


def test_a_rolled_back_message_is_not_in_the_inbox(bench: Benches, database: Databases) -> None:
    payment, message_id = bench("payment"), uuid4()
    with suppress(Undone), payment.sessions.begin() as session:
        assert inbox.claim(session, CONSUMER, [message_id]) == {message_id}
        raise Undone

    assert remembered(database) == set()
    with payment.sessions.begin() as session:
        assert inbox.claim(session, CONSUMER, [message_id]) == {message_id}


def test_a_message_that_is_forgotten_may_come_again_and_the_others_may_not(bench: Benches, database: Databases) -> None:
    payment, kept, apart = bench("payment"), uuid4(), uuid4()
    with payment.sessions.begin() as session:
        inbox.claim(session, CONSUMER, [kept, apart])
        inbox.claim(session, "q.other", [apart])
        inbox.forget(session, CONSUMER, [apart])
    with payment.sessions.begin() as session:
        assert inbox.claim(session, CONSUMER, [kept, apart]) == {apart}
        assert inbox.claim(session, "q.other", [apart]) == set()


def test_a_message_that_another_transaction_holds_is_waited_for(bench: Benches, database: Databases) -> None:
    """Its outcome decides: after a commit the message is a duplicate, after a rollback it is new."""
    payment, first, second = bench("payment"), uuid4(), uuid4()

    def claims() -> set[UUID]:
        with payment.sessions.begin() as session:
            return inbox.claim(session, CONSUMER, [first, second])

    with suppress(Undone), payment.sessions.begin() as session:
        inbox.claim(session, CONSUMER, [first])
        undone = eventlet.spawn(claims)
        until(lambda: somebody_waits(database, "payment"))
        raise Undone
    assert undone.wait() == {first, second}

    third = uuid4()
    with payment.sessions.begin() as session:
        inbox.claim(session, CONSUMER, [third])
        committed = eventlet.spawn(lambda: claims_of(payment, third))
        until(lambda: somebody_waits(database, "payment"))
    assert committed.wait() == set()


def claims_of(payment: Bench, message_id: UUID) -> set[UUID]:
    with payment.sessions.begin() as session:
        return inbox.claim(session, CONSUMER, [message_id])


def somebody_waits(database: Databases, service: str) -> list[dict[str, object]]:
    return database.rows(
        service,
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )


@pytest.mark.parametrize("queue", CASES)
def test_two_replicas_with_the_same_messages_have_one_effect(
    queue: str, bench: Benches, database: Databases, mail: Mail
) -> None:
    service = BY_NAME[queue].service
    prepare, effect, expected = CASES[queue]
    first, second = bench(service), bench(service)
    events = prepare(first, database)
    before = len(database.rows(service, "SELECT id FROM outbox"))
    calls = 0

    def handle(batch: Events, tx: Tx) -> None:
        nonlocal calls
        calls += 1
        until(lambda: somebody_waits(database, service))  # the other replica has come to the same messages
        getattr(first.service, first_handler)(batch, tx)

    first_handler = first.batch(queue).handling.handler.__name__
    settling = eventlet.spawn(first.handle_batch, queue, events, handle=handle)
    until(lambda: calls)
    second.handle_batch(queue, list(reversed(events)))
    settling.wait()

    assert database.rows(service, effect) == [{"n": expected}]
    told_now = [json.loads(str(row["body"])) for row in database.rows(service, "SELECT body FROM outbox ORDER BY id")]
    caused = [(body["causation_id"], body["type"]) for body in told_now[before:]]
    assert len(caused) == len(set(caused))
    claimed = database.rows(service, "SELECT message_id FROM consumed_messages WHERE consumer = :queue", queue=queue)
    assert {row["message_id"] for row in claimed} == {event.message_id for event in events}


def test_events_are_rolled_back_with_their_transaction(bench: Benches, database: Databases) -> None:
    payment = bench("payment")
    with suppress(Undone), payment.sessions.begin() as session:
        outbox.emit(session, [emitted(OrderCancelled(uuid4(), "deadline"))])
        raise Undone

    assert database.rows("payment", "SELECT id FROM outbox") == []


def test_an_event_that_breaks_its_own_schema_is_not_told_nor_are_those_beside_it(
    bench: Benches, database: Databases
) -> None:
    payment = bench("payment")
    bad = envelope("order_service", OrderPaid(uuid4(), -1, "EUR"), new_trace_id(), Identity("customer", ()))
    with payment.sessions.begin() as session, pytest.raises(InvalidSchema, match="total"):
        outbox.emit(session, [emitted(OrderCancelled(uuid4(), "deadline")), bad])

    assert database.rows("payment", "SELECT id FROM outbox") == []


def test_the_relay_is_woken_after_the_commit_and_only_if_something_was_told(
    bench: Benches, database: Databases
) -> None:
    payment = bench("payment")
    woken: list[int] = []
    outbox.wake_after_commit(
        payment.database.Session, lambda: woken.append(len(database.rows("payment", "SELECT id FROM outbox")))
    )
    with payment.sessions.begin() as session:
        inbox.claim(session, CONSUMER, [uuid4()])
    assert woken == []
    with suppress(Undone), payment.sessions.begin() as session:
        outbox.emit(session, [emitted(OrderCancelled(uuid4(), "deadline"))])
        raise Undone
    assert woken == []
    with payment.sessions.begin() as session:
        outbox.emit(session, [emitted(OrderCancelled(uuid4(), "deadline"))])
    assert woken == [1], "once, and the row can be seen by then"
