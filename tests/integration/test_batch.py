"""The life of a batch: a poison message costs only itself, an outage costs no message anything."""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import eventlet
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from shared.edge import postgres, sending_on
from shared.edge.attempt import Limits
from shared.edge.deliveries import delivery_of
from shared.edge.hold_ups import FORGET_AFTER_S, WAIT_S, HoldUp
from shared.edge.pausing import Stopping
from shared.edge.publisher import LEFT_OUT, Outgoing
from shared.edge.tx import Events, Tx
from shared.envelope import Envelope
from shared.errors import CannotWork, HeldUp, ProviderAway, ProviderTimeout, PublishFailed, UnexpectedEvent
from shared.events import OrderCancelled, Reserved
from shared.failures import OURS, Delivery, FailedDelivery, Failure
from tests.databases import Databases
from tests.integration.support import (
    Bench,
    Mail,
    body_of,
    deliveries,
    delivery,
    emitted,
    headers_of,
    order_created,
    reserved_event,
    throughout,
    until,
)
from topology.table import QUEUES

pytestmark = pytest.mark.usefixtures("restless")

VOIDS = "q.payment.order-cancelled"
CHARGES = "q.payment.inventory-reserved"
CREATED = "q.inventory.order-created"

Benches = Callable[..., Bench]


def cancellations(count: int = 50) -> list[Envelope]:
    return [emitted(OrderCancelled(uuid4(), "deadline")) for _ in range(count)]


def effects(database: Databases) -> set[UUID]:
    """The orders on which a cancellation has taken effect."""
    return {UUID(str(row["order_id"])) for row in database.rows("payment", "SELECT order_id FROM payments")}


def charged(database: Databases) -> set[UUID]:
    completed = database.rows("payment", "SELECT order_id FROM payments WHERE status = 'COMPLETED'")
    return {UUID(str(row["order_id"])) for row in completed}


def remembered(database: Databases, service: str = "payment") -> set[UUID]:
    return {UUID(str(row["message_id"])) for row in database.rows(service, "SELECT message_id FROM consumed_messages")}


def orders_of(events: list[Envelope]) -> set[UUID]:
    return {event.payload.order_id for event in events}


def ids_of(events: list[Envelope]) -> set[UUID]:
    return {event.message_id for event in events}


class Poisoned:
    """A service's handler that raises when its loop is at a poison message; counts how often it is called."""

    def __init__(self, handle: Callable[[Events, Tx], None], error: Exception, *poison: Envelope) -> None:
        self.handle = handle
        self.error = error
        self.poison = ids_of(list(poison))
        self.calls = 0

    def __call__(self, events: Events, tx: Tx) -> None:
        self.calls += 1
        for event in events:
            if event.message_id in self.poison:
                raise self.error
        self.handle(events, tx)


class Watched:
    """A publisher that looks at something before it publishes, or fails so often first."""

    def __init__(self, publisher: Any, look: Callable[[], Any] = lambda: None, failures: int = 0) -> None:
        self.publisher = publisher
        self.look = look
        self.failures = failures
        self.seen: list[Any] = []
        self.sent: list[list[Outgoing]] = []

    def publish_all(self, messages: list[Outgoing]) -> list[str | None]:
        self.seen.append(self.look())
        self.sent.append(list(messages))
        if self.failures:
            self.failures -= 1
            raise PublishFailed("no confirm")
        return list(self.publisher.publish_all(messages))


@pytest.mark.parametrize("place", [0, 23, 49], ids=["first", "in the middle", "last"])
def test_a_message_whose_handler_raises_is_tried_again_alone(
    place: int, bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), cancellations()
    poison = events[place]
    handle = Poisoned(payment.service.void, ValueError("no"), poison)

    payment.handle_batch(VOIDS, events, handle=handle)

    others = [event for event in events if event is not poison]
    assert effects(database) == orders_of(others)
    assert remembered(database) == ids_of(others)
    assert handle.calls == 2, "the others run again together, not one by one"
    (retried,) = mail.all(f"{VOIDS}.retry")
    assert retried.properties["message_id"] == str(poison.message_id)
    assert body_of(retried) == json.loads(poison.to_json())
    headers = headers_of(retried)
    assert headers["x-attempt"] == 1
    assert headers["x-error-class"] == "ValueError"
    assert headers["x-source-queue"] == VOIDS
    assert headers["x-original-routing-key"] == "order.cancelled"
    assert set(headers) <= OURS
    assert database.rows("payment", "SELECT * FROM dead_messages") == []


def test_a_retry_returns_after_a_second_to_its_own_queue_and_no_other(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, event = bench("payment"), reserved_event()  # order_service consumes it too
    payment.handle_batch(CHARGES, [event], ask=None, handle=Poisoned(payment.service.void, ValueError("no"), event))

    returned = mail.take(CHARGES)

    assert returned.properties["message_id"] == str(event.message_id)
    assert headers_of(returned)["x-attempt"] == 1
    assert set(headers_of(returned)) <= OURS
    for queue in QUEUES:
        assert mail.get(queue.name) is None, queue.name


UNREADABLE = {
    "poison": b'{"message_id": 1, ',
    "invalid_schema": json.dumps(
        {**json.loads(emitted(OrderCancelled(uuid4(), "deadline")).to_json()), "payload": {"order_id": "1"}}
    ).encode(),
    "unknown_type": json.dumps(
        {**json.loads(emitted(OrderCancelled(uuid4(), "deadline")).to_json()), "type": "order.forgotten"}
    ).encode(),
}


@pytest.mark.parametrize("reason", UNREADABLE)
def test_a_message_that_cannot_be_read_dies_alone_and_is_written_down_first(
    reason: str, bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), cancellations(49)
    message_id = uuid4()
    unreadable = Delivery(50, UNREADABLE[reason], "order.cancelled", str(message_id), {})
    written = Watched(
        payment.publisher, lambda: database.rows("payment", "SELECT message_id, reason, queue FROM dead_messages")
    )

    payment.batch(VOIDS, publisher=written).handle_batch([*deliveries(events), unreadable])

    assert written.seen == [[{"message_id": message_id, "reason": reason, "queue": VOIDS}]]
    assert effects(database) == orders_of(events)
    (dead,) = mail.all(f"{VOIDS}.dlq")
    assert dead.body == UNREADABLE[reason]
    assert dead.properties["message_id"] == str(message_id)
    assert headers_of(dead)["x-reason"] == reason
    assert set(headers_of(dead)) <= OURS
    assert mail.all(f"{VOIDS}.retry") == []


def test_an_event_that_this_queue_does_not_take_dies_as_unknown(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    bench("payment").handle_batch(VOIDS, [reserved_event()])

    assert headers_of(mail.take(f"{VOIDS}.dlq"))["x-reason"] == "unknown_type"


def test_a_message_that_the_handler_fails_has_no_effect_and_emits_nothing(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), [reserved_event() for _ in range(50)]
    bad = events[7]

    def handle(batch: Events, tx: Tx) -> None:
        payment.service.charge(batch, tx)
        tx.fail(bad, UnexpectedEvent("not now"))

    payment.handle_batch(CHARGES, events, handle=handle)

    assert remembered(database) == ids_of(events) - {bad.message_id}
    told_of = database.rows("payment", "SELECT aggregate_id FROM outbox")
    assert {row["aggregate_id"] for row in told_of} == orders_of(events) - {bad.payload.order_id}
    (dead,) = mail.all(f"{CHARGES}.dlq")
    assert dead.properties["message_id"] == str(bad.message_id)
    assert headers_of(dead)["x-reason"] == "unexpected_event"


def test_many_culprits_are_found_one_by_one_in_the_end(bench: Benches, database: Databases, mail: Mail) -> None:
    payment, events = bench("payment"), cancellations()
    poison = events[::10]
    payment.handle_batch(VOIDS, events, handle=Poisoned(payment.service.void, ValueError("no"), *poison))

    assert effects(database) == orders_of(events) - orders_of(poison)
    retried = {message.properties["message_id"] for message in mail.all(f"{VOIDS}.retry")}
    assert retried == {str(event.message_id) for event in poison}


@pytest.mark.parametrize("when", ["in a bulk statement", "at the commit"])
def test_a_failure_that_names_no_message_is_narrowed_down_one_by_one(
    when: str, bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), cancellations()
    poison = events[31]
    database.run("payment", "DROP TABLE IF EXISTS test_once")
    database.run("payment", "CREATE TABLE test_once (n int, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED)")
    database.run("payment", "GRANT ALL ON test_once TO PUBLIC")

    def handle(batch: Events, tx: Tx) -> None:
        payment.service.void(batch, tx)
        if poison.message_id in [event.message_id for event in batch]:
            if when == "at the commit":
                tx.session.execute(text("INSERT INTO test_once VALUES (1), (1)"))
            else:
                tx.session.execute(text("SELECT 1 / 0"))

    try:
        payment.handle_batch(VOIDS, events, handle=handle)
    finally:
        database.run("payment", "DROP TABLE test_once")

    assert effects(database) == orders_of(events) - {poison.payload.order_id}
    (retried,) = mail.all(f"{VOIDS}.retry")
    assert retried.properties["message_id"] == str(poison.message_id)
    assert headers_of(retried)["x-error-class"] in ("IntegrityError", "DataError")


def test_headers_from_a_stranger_do_not_kill_the_consumer(bench: Benches, database: Databases, mail: Mail) -> None:
    strange = {
        "x-attempt": 2**40,
        "x-replays": 2**40,
        "x-first-failed-at": "yesterday",
        "x-death": [{"count": 1}],
        "x-delivery-count": 1,
        "x-first-death-queue": "q",
        "cookie": "c",
    }
    unreadable = Delivery(1, b"{", "order.cancelled", "not a uuid", strange)

    bench("payment").batch(VOIDS).handle_batch([unreadable])

    assert len(database.rows("payment", "SELECT * FROM dead_messages")) == 1
    (dead,) = mail.all(f"{VOIDS}.dlq")
    assert set(headers_of(dead)) <= OURS | {"cookie"}
    assert headers_of(dead)["cookie"] == "c"


def test_a_dead_message_keeps_what_its_publisher_wrote(bench: Benches, mail: Mail) -> None:
    zipped = gzip.compress(b"{}")
    properties = {"content_encoding": "gzip", "content_type": "text/x", "app_id": "shop", "correlation_id": "c-1"}
    message = Delivery(1, zipped, "order.cancelled", str(uuid4()), {"version": 7, "nested": {"a": [1]}}, properties)

    bench("payment").batch(VOIDS).handle_batch([message])

    (dead,) = mail.all(f"{VOIDS}.dlq")
    assert dead.body == zipped
    assert {name: dead.properties[name] for name in properties} == properties
    assert (headers_of(dead)["version"], headers_of(dead)["nested"]) == (7, {"a": [1]})


@pytest.mark.parametrize(
    "headers", [{"large": "x" * 125_000}, {"number": 2**80}, {"thing": object()}], ids=["large", "number", "thing"]
)
def test_headers_that_amqp_cannot_carry_with_ours_are_left_out(
    headers: dict[str, Any], bench: Benches, mail: Mail
) -> None:
    bench("payment").batch(VOIDS).handle_batch([Delivery(1, b"{", "order.cancelled", str(uuid4()), headers)])

    (dead,) = mail.all(f"{VOIDS}.dlq")
    assert set(headers_of(dead)) <= OURS | {LEFT_OUT}
    assert (dead.body, headers_of(dead)["x-reason"]) == (b"{", "poison")


def test_a_message_that_cannot_be_classified_goes_to_the_dlq_as_it_came(
    bench: Benches, database: Databases, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment, events = bench("payment"), cancellations(3)
    bad, classify = events[1], sending_on.classify_failure

    def fails_for_one(item: FailedDelivery, *args: Any) -> Failure:
        if item.event and item.event.message_id == bad.message_id:
            raise OverflowError("date value out of range")
        return classify(item, *args)

    monkeypatch.setattr(sending_on, "classify_failure", fails_for_one)
    payment.handle_batch(VOIDS, events, handle=Poisoned(payment.service.void, ValueError("no"), bad, events[2]))

    assert effects(database) == orders_of(events[:1])
    (dead,) = mail.all(f"{VOIDS}.dlq")
    assert (dead.body, headers_of(dead)["x-reason"]) == (bad.to_json().encode(), "poison")
    assert dead.properties["message_id"] == str(bad.message_id)
    assert len(mail.all(f"{VOIDS}.retry")) == 1


def test_a_death_that_cannot_be_recorded_keeps_no_message_from_its_dlq(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), cancellations(3)
    refused = events[1].message_id
    database.run("payment", f"ALTER TABLE dead_messages ADD CONSTRAINT test CHECK (message_id <> '{refused}')")
    try:
        payment.handle_batch(VOIDS, events, handle=Poisoned(payment.service.void, UnexpectedEvent("no"), *events))
    finally:
        database.run("payment", "ALTER TABLE dead_messages DROP CONSTRAINT test")

    recorded = {row["message_id"] for row in database.rows("payment", "SELECT message_id FROM dead_messages")}
    assert recorded == ids_of([events[0], events[2]])
    assert len(mail.all(f"{VOIDS}.dlq")) == 3


@pytest.mark.parametrize("reason", ["unexpected_event", "poison", "exhausted"])
def test_each_death_leaves_a_line_in_the_log(
    reason: str, bench: Benches, mail: Mail, caplog: pytest.LogCaptureFixture
) -> None:
    payment, event = bench("payment"), cancellations(1)[0]
    dying = delivery(event, headers={"x-attempt": 3 if reason == "exhausted" else 0})
    if reason == "poison":
        dying = replace(dying, body=b"{")
    error = UnexpectedEvent("no") if reason == "unexpected_event" else ValueError("no")

    payment.batch(VOIDS, handle=Poisoned(payment.service.void, error, event)).handle_batch([dying])

    (line,) = [line for line in caplog.messages if "is dead" in line]
    assert str(event.message_id) in line
    assert f"{VOIDS}.dlq: {reason}:" in line
    if reason != "poison":
        assert f"order {event.payload.order_id}" in line
        assert f"trace {event.trace_id}" in line


def test_a_deadlock_repeats_the_batch_and_counts_nothing(bench: Benches, database: Databases, mail: Mail) -> None:
    payment, events = bench("payment"), cancellations()
    database.run("payment", "DROP TABLE IF EXISTS test_locks")
    database.run("payment", "CREATE TABLE test_locks AS SELECT 1 AS a UNION SELECT 2")
    database.run("payment", "GRANT ALL ON test_locks TO PUBLIC")
    lock = text("SELECT a FROM test_locks WHERE a = :a FOR UPDATE")
    calls = 0

    def handle(batch: Events, tx: Tx) -> None:
        nonlocal calls
        calls += 1
        payment.service.void(batch, tx)
        tx.session.execute(lock, {"a": 1})
        if calls == 1:
            other = eventlet.spawn(other_way_round)
            until(lambda: started)
            # Our own wait ends as the victim: the other one waits for longer before it looks for a deadlock.
            tx.session.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
            tx.session.execute(lock, {"a": 2})
            other.wait()

    started: list[bool] = []

    def other_way_round() -> None:
        with payment.sessions.begin() as session:
            session.execute(lock, {"a": 2})
            started.append(True)
            session.execute(lock, {"a": 1})

    database.run("payment", "GRANT SET ON PARAMETER deadlock_timeout TO PUBLIC")
    try:
        payment.handle_batch(VOIDS, events, handle=handle)
    finally:
        database.run("payment", "DROP TABLE test_locks")

    assert calls == 2
    assert effects(database) == orders_of(events)
    assert mail.all(f"{VOIDS}.retry") == []


def test_a_serialization_failure_repeats_the_batch_and_counts_nothing(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), cancellations()
    calls = 0

    def handle(batch: Events, tx: Tx) -> None:
        nonlocal calls
        calls += 1
        payment.service.void(batch, tx)
        if calls < 6:  # more often than there are rounds
            tx.session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$"))

    payment.handle_batch(VOIDS, events, handle=handle)

    assert calls == 6
    assert effects(database) == orders_of(events)
    assert mail.all(f"{VOIDS}.retry") == []


def paused(queue: str) -> float:
    return REGISTRY.get_sample_value("ecom_pauses_total", {"queue": queue}) or 0


def test_a_killed_backend_pauses_the_consumer_and_sets_nothing_apart(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), cancellations()
    calls = 0
    before = paused(VOIDS)

    def handle(batch: Events, tx: Tx) -> None:
        nonlocal calls
        calls += 1
        payment.service.void(batch, tx)
        if calls < 6:
            pid = tx.session.scalar(text("SELECT pg_backend_pid()"))
            database.rows("payment", "SELECT pg_terminate_backend(:pid)", pid=pid)

    batch = payment.batch(VOIDS, handle=handle)
    batch.handle_batch(deliveries(events))

    assert calls == 6
    assert effects(database) == orders_of(events)
    assert mail.all(f"{VOIDS}.retry") == mail.all(f"{VOIDS}.dlq") == []
    assert batch.pausing.not_ready_reason is None
    assert paused(VOIDS) == before + 1


def test_an_empty_pool_pauses_the_consumer_and_sets_nothing_apart(
    bench: Benches, database: Databases, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment, events = bench("payment", pool_size=5), cancellations()
    monkeypatch.setattr(payment.database.engine.pool, "_timeout", 0.2)
    taken = [payment.database.engine.connect() for _ in range(5)]
    batch = payment.batch(VOIDS)
    settling = eventlet.spawn(batch.handle_batch, deliveries(events))

    assert "TimeoutError" in until(lambda: batch.pausing.not_ready_reason or "")
    for connection in taken:
        connection.close()
    settling.wait()

    assert effects(database) == orders_of(events)
    assert mail.all(f"{VOIDS}.retry") == []


def test_a_column_that_is_not_there_pauses_the_consumer_and_no_message_dies(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), cancellations(5)
    batch = payment.batch(VOIDS)
    database.run("payment", "ALTER TABLE payments RENAME COLUMN method TO of_another_version")
    try:
        settling = eventlet.spawn(batch.handle_batch, deliveries(events))
        assert until(lambda: batch.pausing.not_ready_reason) == f"{VOIDS} is paused: UndefinedColumn"
        throughout(lambda: not settling.dead and batch.pausing.not_ready_reason is not None, for_s=0.5)
    finally:
        database.run("payment", "ALTER TABLE payments RENAME COLUMN of_another_version TO method")
    settling.wait()

    assert effects(database) == orders_of(events)
    assert mail.all(f"{VOIDS}.retry") == mail.all(f"{VOIDS}.dlq") == []
    assert database.rows("payment", "SELECT 1 FROM dead_messages") == []


def test_a_provider_that_is_closed_to_everybody_pauses_and_counts_nothing(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), [reserved_event() for _ in range(10)]
    asked = 0

    def ask(batch: Events) -> dict[UUID, Any]:
        nonlocal asked
        asked += 1
        answers = payment.service.ask_for_charges(batch)
        if asked < 3:
            answers[events[4].message_id] = CannotWork("the circuit is open")
        return answers

    payment.handle_batch(CHARGES, events, ask=ask)

    assert asked == 3
    assert remembered(database) == ids_of(events)
    assert mail.all(f"{CHARGES}.retry") == []


def test_a_repeat_asks_only_for_messages_without_an_answer(bench: Benches, database: Databases, mail: Mail) -> None:
    payment, events = bench("payment"), [reserved_event() for _ in range(10)]
    silent, away = events[3], events[4:6]
    asked: list[set[UUID]] = []

    def ask(batch: Events) -> dict[UUID, Any]:
        asked.append(ids_of(list(batch)))
        answers = payment.service.ask_for_charges(batch)
        if silent.message_id in asked[-1]:
            answers[silent.message_id] = ProviderTimeout()
        return answers | (dict.fromkeys(ids_of(away), ProviderAway()) if len(asked) < 4 else {})

    payment.handle_batch(CHARGES, events, ask=ask)

    assert asked == [ids_of(events)] + [ids_of(away)] * 3
    assert remembered(database) == ids_of(events) - {silent.message_id}
    (retried,) = mail.all(f"{CHARGES}.retry")
    assert retried.properties["message_id"] == str(silent.message_id)
    assert headers_of(retried)["x-attempt"] == 1
    assert charged(database) == orders_of(events) - {silent.payload.order_id}


@pytest.mark.parametrize("count", [1, 3])
def test_a_message_keeps_its_answer_when_asking_for_the_others_fails(
    count: int, bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), [reserved_event() for _ in range(10)]
    away, bad = events[4 : 4 + count], events[4]
    asked: list[set[UUID]] = []

    def ask(batch: Events) -> dict[UUID, Any]:
        asked.append(ids_of(list(batch)))
        if len(asked) > 1 and bad.message_id in asked[-1]:
            raise ValueError("no")
        answers = payment.service.ask_for_charges(batch)
        return answers | (dict.fromkeys(ids_of(away), ProviderAway()) if len(asked) == 1 else {})

    payment.handle_batch(CHARGES, events, ask=ask)

    singly = [{event.message_id} for event in away] if count > 1 else []
    assert asked == [ids_of(events), ids_of(away), *singly]
    assert remembered(database) == ids_of(events) - {bad.message_id}
    assert charged(database) == orders_of(events) - {bad.payload.order_id}
    (retried,) = mail.all(f"{CHARGES}.retry")
    assert retried.properties["message_id"] == str(bad.message_id)


def test_a_service_that_stops_while_it_is_paused_sets_nothing_apart(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), cancellations(3)

    def handle(batch: Events, tx: Tx) -> None:
        raise CannotWork("closed")

    for batch in (events, events[:1]):
        with pytest.raises(Stopping):
            payment.handle_batch(VOIDS, batch, handle=handle, stopping=lambda: True)

    assert mail.all(f"{VOIDS}.retry") == mail.all(f"{VOIDS}.dlq") == []
    assert remembered(database) == set()


@contextmanager
def somebody_locks(database: Databases, service: str, statement: str) -> Iterator[int]:
    """Another session that holds a lock; its pid."""
    engine = database.engines[service]
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as somebody:
        somebody.execute(text("SET LOCAL application_name = 'a forgotten psql'"))
        somebody.execute(text(statement))
        yield somebody.execute(text("SELECT pg_backend_pid()")).scalar_one()


def test_a_locked_row_holds_up_its_own_messages_and_no_others(
    bench: Benches, database: Databases, mail: Mail, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postgres, "LOCK_TIMEOUT_MS", 200)
    inventory = bench("inventory")
    for sku in ("apple", "pear"):
        inventory.service.put_stock(sku, 100)
    events = [emitted(order_created(skus=[sku])) for sku in ("apple", "pear") * 5]
    held_up = [event for event in events if event.payload.items[0].sku == "apple"]
    batch = inventory.batch(CREATED)
    with somebody_locks(database, "inventory", "SELECT FROM stock_items WHERE sku = 'apple' FOR UPDATE") as pid:
        batch.handle_batch(deliveries(events))

        assert remembered(database, "inventory") == ids_of(events) - ids_of(held_up)
        (warning,) = batch.hold_ups.sentences()
        assert f"stock_items sku=apple, held by PostgreSQL session {pid}" in warning
        assert "a forgotten psql" in warning
        assert any("stock_items sku=apple" in line and "the others go on" in line for line in caplog.messages)
        retried = mail.all(f"{CREATED}.retry")
        assert {UUID(message.properties["message_id"]) for message in retried} == ids_of(held_up)
        assert {headers_of(message)["x-attempt"] for message in retried} == {0}
        fresh = emitted(order_created(skus=["pear"]))
        batch.handle_batch([*map(delivery_of, retried), delivery(fresh)])

        assert fresh.message_id in remembered(database, "inventory")
        retried = mail.all(f"{CREATED}.retry.4s")
        assert len(retried) == len(held_up)
    while retried:  # at first they rest
        batch.handle_batch([delivery_of(message) for message in retried])
        retried = mail.all(f"{CREATED}.retry.4s")
        eventlet.sleep(0.05)

    assert remembered(database, "inventory") == ids_of([*events, fresh])
    assert mail.all(f"{CREATED}.dlq") == []


def test_messages_that_were_held_up_before_rest_after_a_try_in_vain(bench: Benches, mail: Mail) -> None:
    batch = bench("payment").batch(VOIDS)
    tried: list[int] = []

    def handle(events: Events, tx: Tx) -> None:
        tried.append(len(events))

    batch.handling.handler = handle
    again = [delivery(event, headers={"x-held-up": 1}, queue=VOIDS) for event in cancellations(3)]
    batch.hold_ups.rest_after(60)
    batch.handle_batch([*again, delivery(cancellations(1)[0])])

    assert tried == [1], "only the new one"
    assert len(mail.all(f"{VOIDS}.retry.4s")) == 3


def test_a_slow_statement_is_set_aside_and_the_others_go_on(
    bench: Benches, database: Databases, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "STATEMENT_TIMEOUT_MS", 200)
    payment, events = bench("payment"), cancellations(4)

    def handle(batch: Events, tx: Tx) -> None:
        if events[0].message_id in ids_of(list(batch)):
            tx.session.execute(text("SELECT pg_sleep(10)"))
        payment.service.void(batch, tx)

    payment.handle_batch(VOIDS, events, handle=handle)

    assert effects(database) == orders_of(events[1:])
    (later,) = mail.all(f"{VOIDS}.retry")
    assert (headers_of(later)["x-attempt"], headers_of(later)["x-error-class"]) == (0, "HeldUp")


@pytest.mark.parametrize(("rounds", "tries"), [(3, [20, 1]), (0, [1])], ids=["together", "singly"])
def test_many_messages_behind_one_lock_do_not_wait_for_it_one_after_another(
    rounds: int,
    tries: list[int],
    bench: Benches,
    database: Databases,
    mail: Mail,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without rounds the messages run singly from the start, as after some culprits or an error at commit."""
    monkeypatch.setattr(postgres, "LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr("shared.edge.handling.ROUNDS", rounds)
    monkeypatch.setattr("shared.edge.handling.MOST_WAITED_S", 0.0)
    payment = bench("payment")
    tried: list[int] = []

    def handle(batch: Events, tx: Tx) -> None:
        tried.append(len(batch))
        payment.service.void(batch, tx)

    with somebody_locks(database, "payment", "LOCK TABLE payments"):
        payment.handle_batch(VOIDS, cancellations(20), handle=handle)

    assert tried == tries, "the rest is set aside untried"
    assert len(mail.all(f"{VOIDS}.retry")) == 20
    assert effects(database) == set()


@pytest.mark.parametrize(("held_up", "outcome"), [(4, set()), (5, {"done"})])
def test_a_message_that_is_slow_by_itself_has_its_full_time_now_and_then(
    held_up: int, outcome: set[str], bench: Benches, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Limits(lock_ms=200, statement_ms=100)
    monkeypatch.setattr("shared.edge.handling.ALONE", short)
    monkeypatch.setattr("shared.edge.handling.LOOKING", short)
    payment, event = bench("payment"), cancellations(1)[0]

    def handle(batch: Events, tx: Tx) -> None:
        tx.session.execute(text("SELECT pg_sleep(0.3)"))
        payment.service.void(batch, tx)

    batch = payment.batch(VOIDS, handle=handle)
    batch.handle_batch([delivery(event, headers={"x-held-up": held_up}, queue=VOIDS)])

    assert effects(database) == (orders_of([event]) if outcome else set())


def test_a_hold_up_is_as_old_as_the_oldest_message_that_was_seen_lately() -> None:
    now = 1000.0
    found = HoldUp(100.0, now, now)
    for _ in range(5):  # the oldest was settled, newer ones come
        now += FORGET_AFTER_S / 2 + 1
        found.see(now, now)

    assert found.since > 1000


@pytest.mark.parametrize(("passes", "waits"), [(True, [0.0]), (False, [WAIT_S])], ids=["some pass", "nothing passes"])
def test_a_queue_of_which_nothing_passes_stays_where_it_is(
    passes: bool, waits: list[float], bench: Benches, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that took one batch after the other would move the whole queue through its retry level."""
    monkeypatch.setattr("shared.edge.hold_ups.NOTHING_PASSES_S", 3600.0 if passes else 0.0)
    slept: list[float] = []
    monkeypatch.setattr("shared.edge.batch.green", SimpleNamespace(sleep=slept.append))

    def handle(events: Events, tx: Tx) -> None:
        raise HeldUp("a lock on the whole table")

    bench("payment").handle_batch(VOIDS, cancellations(3), handle=handle)

    assert slept == waits
    assert len(mail.all(f"{VOIDS}.retry")) == 3


def test_the_log_of_a_death_shows_no_value_of_the_body(
    bench: Benches, mail: Mail, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt = json.loads(cancellations(1)[0].to_json())
    spoilt["identity"]["user_id"] = ["ann.smith@example.com"]
    spoilt["trace_id"] = "ann.smith@example.com"

    bench("payment").batch(VOIDS).handle_batch([Delivery(1, json.dumps(spoilt).encode(), VOIDS, None, {})])

    (line,) = [line for line in caplog.messages if "is dead" in line]
    assert "invalid_schema: trace_id: text like [0-9a-f]{32} is expected (" in line
    assert "ann" not in caplog.text
    (dead,) = mail.all(f"{VOIDS}.dlq")
    assert "ann.smith" in headers_of(dead)["x-error-message"]


def test_nothing_is_settled_before_what_failed_is_safe_in_its_next_queue(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), cancellations(5)
    publisher = Watched(payment.publisher, failures=3)
    batch = payment.batch(
        VOIDS, publisher=publisher, handle=Poisoned(payment.service.void, ValueError("no"), events[2])
    )
    settling = eventlet.spawn(batch.handle_batch, deliveries(events))

    assert "PublishFailed" in until(lambda: batch.pausing.not_ready_reason or "")
    assert not settling.dead
    settling.wait()

    assert len(publisher.sent) == 4
    (retried,) = mail.all(f"{VOIDS}.retry")
    assert headers_of(retried)["x-attempt"] == 1


def test_a_refused_message_is_sent_again_and_the_others_are_not(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, events = bench("payment"), cancellations(4)
    dlq, exchange = f"{VOIDS}.dlq", "ecom.failed.payment"
    handle = Poisoned(payment.service.void, ValueError("no"), events[1])
    unreadable = Delivery(5, b"{", "order.cancelled", None, {})
    batch = payment.batch(VOIDS, handle=handle)
    mail.channel.queue_unbind(dlq, exchange, dlq)
    try:
        settling = eventlet.spawn(batch.handle_batch, [*deliveries(events), unreadable])
        assert "CannotWork" in until(lambda: batch.pausing.not_ready_reason or "")
        throughout(lambda: not settling.dead, for_s=0.5)  # some more tries
        assert len(mail.all(f"{VOIDS}.retry")) == 1
    finally:
        mail.channel.queue_bind(dlq, exchange, dlq)
    settling.wait()

    assert len(mail.all(dlq)) == 1


def test_a_bare_payload_that_fails_is_tried_again_as_the_event_it_was_completed_to(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    inventory, order = bench("inventory"), order_created()
    bare = json.dumps(
        {
            "order_id": str(order.order_id),
            "currency": "EUR",
            "total": 100,
            "items": [{"sku": "apple", "quantity": 1, "unit_price": 100}],
            "payment_method": "mock_ok",
        }
    ).encode()

    def fail(events: Events, tx: Tx) -> None:
        raise ValueError("no")

    inventory.batch(CREATED, handle=fail).handle_batch([Delivery(1, bare, "order.created", None, {})])

    retried = mail.take(CREATED)
    body = body_of(retried)
    assert body["source"] == body["identity"]["user_id"] == "shell"
    assert body["message_id"] == retried.properties["message_id"]
    again = Delivery(1, retried.body, CREATED, retried.properties["message_id"], headers_of(retried))
    inventory.batch(CREATED).handle_batch([again])
    assert remembered(database, "inventory") == {UUID(body["message_id"])}
    reservations = database.rows("inventory", "SELECT order_id FROM reservations")
    assert reservations == [{"order_id": order.order_id}]


def test_a_message_that_dies_again_updates_what_is_written_of_it(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, event = bench("payment"), cancellations(1)[0]
    handle = Poisoned(payment.service.void, UnexpectedEvent("no"), event)
    payment.batch(VOIDS, handle=handle).handle_batch([delivery(event)])
    database.run("payment", "UPDATE dead_messages SET left_at = now(), left_how = 'replayed'")

    payment.batch(VOIDS, handle=handle).handle_batch([delivery(event, headers={"x-replays": 1}, queue=VOIDS)])

    (row,) = database.rows("payment", "SELECT replays, left_at, left_how, attempts FROM dead_messages")
    assert row == {"replays": 1, "left_at": None, "left_how": None, "attempts": 1}


def test_a_told_event_carries_trace_and_identity_of_its_cause(bench: Benches, database: Databases, mail: Mail) -> None:
    event = reserved_event()
    bench("payment").handle_batch(CHARGES, [event])

    (row,) = database.rows("payment", "SELECT body, traceparent, aggregate_id FROM outbox")
    body = json.loads(str(row["body"]))
    assert isinstance(event.payload, Reserved)
    assert body["trace_id"] == event.trace_id
    assert body["causation_id"] == str(event.message_id)
    assert body["identity"] == {"user_id": "customer", "roles": ["customer"]}
    assert event.trace_id in str(row["traceparent"])
    assert row["aggregate_id"] == event.payload.order_id
