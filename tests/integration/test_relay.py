"""The relay: in order for each aggregate, nothing lost, one leader."""

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import amqp
import eventlet
import pytest
from nameko.containers import ServiceContainer
from sqlalchemy import Connection, text

from shared import outbox, relay
from shared.config import Settings
from shared.edge.database import Database
from shared.edge.publisher import Outgoing, Publisher
from shared.envelope import Envelope
from shared.errors import PublishFailed
from shared.events import OrderCancelled, OrderPaid, PaymentSucceeded
from shared.relay import Relay, publish_once, purge
from tests.databases import Databases
from tests.integration.support import (
    TIMEOUT_S,
    Bench,
    Mail,
    Wire,
    container_of,
    emitted,
    extension,
    order_created,
    until,
)
from topology.table import EVENTS_EXCHANGE

CANCELLED = "q.payment.order-cancelled"
CREATED = "q.inventory.order-created"

Benches = Callable[..., Bench]


class Telling:
    """A service that only publishes."""

    name = "order_service"
    db = Database()
    relay = Relay()


@pytest.fixture
def start(settings: Settings, database: Databases, mail: Mail) -> Iterator[Callable[..., ServiceContainer]]:
    """Starts a replica with a relay."""
    running: list[ServiceContainer] = []

    def start_one(url: str = "") -> ServiceContainer:
        changed: dict[str, Any] = {"DB_URIS": {"order_service:Base": url}} if url else {}
        running.append(container_of(settings, Telling, **changed))
        running[-1].start()
        return running[-1]

    yield start_one
    for container in running:
        container.kill()


def tell(bench: Bench, *events: Envelope) -> None:
    with bench.sessions.begin() as session:
        outbox.emit(session, events)


def tell_from(container: ServiceContainer, *events: Envelope) -> None:
    with extension(container, Database).sessions.begin() as session:
        outbox.emit(session, events)


def cancelled(order_id: UUID | None = None) -> Envelope:
    return emitted(OrderCancelled(order_id or uuid4(), "deadline"))


def ids(messages: list[amqp.Message] | list[Envelope]) -> list[str]:
    return [
        str(item.message_id) if isinstance(item, Envelope) else str(item.properties["message_id"]) for item in messages
    ]


# As if the time of every hold were over: a busy machine may take longer for one step than a short hold lasts.
END_HOLDS = "UPDATE outbox SET held_until = now() WHERE held_until IS NOT NULL"


def unpublished(database: Databases) -> list[dict[str, Any]]:
    return database.rows(
        "order",
        "SELECT message_id, attempts, last_error, held_until > now() AS held FROM outbox"
        " WHERE published_at IS NULL ORDER BY id",
    )


def test_rows_go_out_in_the_order_in_which_they_were_told_and_are_marked(
    bench: Benches, database: Databases, mail: Mail, connection: Connection, publisher: Publisher
) -> None:
    orders = [uuid4() for _ in range(4)]
    events = [cancelled(orders[n % 4]) for n in range(40)]
    tell(bench("order"), *events)

    assert publish_once(connection, publisher) == 40
    assert publish_once(connection, publisher) == 0

    messages = mail.all(CANCELLED)
    assert ids(messages) == ids(events)
    first = messages[0]
    assert first.properties["type"] == "order.cancelled"
    assert first.properties["content_type"] == "application/json"
    assert first.properties["delivery_mode"] == 2
    assert first.headers["event-contract-version"] == "v1"
    assert events[0].trace_id in first.headers["traceparent"]
    assert unpublished(database) == []


def test_waiting_rows_are_read_and_marked_by_index_whatever_the_statistics_say(
    bench: Benches, database: Databases, connection: Connection
) -> None:
    tell(bench("order"), cancelled())
    for name, value in relay.BY_INDEX.items():
        connection.execute(text(f"SET {name} = {value}"))
    for statement, given in ((relay._READ, {"limit": 500}), (relay._MARK, {"ids": [1, 2]})):
        plan = "\n".join(connection.scalars(text(f"EXPLAIN {statement.text}"), given))
        assert "Index Scan" in plan, plan
        assert not {word for word in ("Seq Scan", "Bitmap", "Sort", "_until_") if word in plan}, plan


def test_an_event_that_nobody_hears_yet_is_published_all_the_same(
    bench: Benches, database: Databases, mail: Mail, connection: Connection, publisher: Publisher
) -> None:
    tell(bench("order"), emitted(OrderPaid(uuid4(), 1, "EUR")))

    assert publish_once(connection, publisher) == 1
    assert unpublished(database) == []


def test_an_unroutable_row_stays_holds_back_only_its_aggregate_and_goes_out_in_the_end(
    bench: Benches,
    database: Databases,
    mail: Mail,
    connection: Connection,
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay, "HOLD_S", 600)
    order = order_created()
    unroutable, after, other = cancelled(order.order_id), emitted(order), emitted(order_created())
    tell(bench("order"), unroutable, after, other)
    mail.channel.queue_unbind(CANCELLED, EVENTS_EXCHANGE, "order.cancelled")
    try:
        assert publish_once(connection, publisher) == 1
        held, waiting = unpublished(database)
        assert str(held["message_id"]) == str(unroutable.message_id)
        assert held["attempts"] == 1
        assert held["last_error"] == "unroutable: no queue for ecom.events order.cancelled"
        assert held["held"]
        assert str(waiting["message_id"]) == str(after.message_id)

        late = emitted(order_created())
        tell(bench("order"), late)
        assert publish_once(connection, publisher) == 1, "others pass while one is held"
        assert len(unpublished(database)) == 2
        database.run("order", END_HOLDS)
        assert publish_once(connection, publisher) == 0
        assert unpublished(database)[0]["attempts"] == 2
    finally:
        mail.channel.queue_bind(CANCELLED, EVENTS_EXCHANGE, "order.cancelled")
    mail.all(CREATED)
    database.run("order", END_HOLDS)

    assert publish_once(connection, publisher) == 2
    assert ids(mail.all(CANCELLED)) == ids([unroutable])
    assert ids(mail.all(CREATED)) == ids([after])
    assert unpublished(database) == []


def test_a_row_that_the_service_may_not_publish_holds_up_no_other(
    bench: Benches, each_as_its_user: Settings, database: Databases, mail: Mail, connection: Connection
) -> None:
    foreign, good = emitted(PaymentSucceeded(uuid4(), uuid4(), 100, "EUR", "reference")), cancelled()
    tell(bench("order"), foreign, good)
    own = Publisher(each_as_its_user.amqp_uri_of("order"), heartbeat_s=10)
    try:
        assert publish_once(connection, own) == 1
    finally:
        own.close()
    assert ids(mail.all(CANCELLED)) == ids([good])
    (held,) = unpublished(database)
    assert (str(held["message_id"]), held["last_error"]) == (ids([foreign])[0], "ecom-order may not publish it")


def test_nothing_is_marked_when_the_broker_is_away(
    bench: Benches, database: Databases, mail: Mail, connection: Connection
) -> None:
    tell(bench("order"), cancelled(), cancelled())
    nowhere = Publisher("amqp://guest:guest@127.0.0.1:9/none", heartbeat_s=1)

    with pytest.raises(PublishFailed):
        publish_once(connection, nowhere)

    assert [(row["attempts"], row["held"]) for row in unpublished(database)] == [(0, None), (0, None)]


def test_a_row_with_a_lower_id_that_commits_later_is_not_lost(
    bench: Benches, database: Databases, mail: Mail, connection: Connection, publisher: Publisher
) -> None:
    order, slow, quick = bench("order"), cancelled(), cancelled()
    with order.sessions.begin() as session:
        outbox.emit(session, [slow])
        tell(order, quick)
        assert publish_once(connection, publisher) == 1
    assert publish_once(connection, publisher) == 1

    assert ids(mail.all(CANCELLED)) == ids([quick, slow])


def test_no_transaction_is_open_while_the_broker_is_spoken_to(
    bench: Benches, database: Databases, mail: Mail, connection: Connection, publisher: Publisher
) -> None:
    tell(bench("order"), cancelled())
    (pid,) = connection.exec_driver_sql("SELECT pg_backend_pid()").one()

    class Looking:
        uri = publisher.uri

        def publish_all(self, messages: list[Outgoing]) -> list[str | None]:
            (row,) = database.rows("order", "SELECT state FROM pg_stat_activity WHERE pid = :pid", pid=pid)
            assert row["state"] == "idle"
            return publisher.publish_all(messages)

    assert publish_once(connection, Looking()) == 1  # type: ignore[arg-type]


def asked_in_vain(database: Databases) -> list[dict[str, Any]]:
    """The replicas that have asked for the lead and wait."""
    return database.rows(
        "order",
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'order_service relay'"
        " AND query LIKE 'SELECT pg_try_advisory_lock%' AND state = 'idle'",
    )


def leaders(*containers: ServiceContainer) -> list[ServiceContainer]:
    return [container for container in containers if extension(container, Relay).leading]


def test_one_of_two_relays_leads_and_the_other_takes_over_when_its_backend_is_killed(
    start: Callable[..., ServiceContainer], database: Databases, mail: Mail
) -> None:
    first = start()
    until(lambda: leaders(first))
    second = start()
    until(lambda: asked_in_vain(database))
    events = [cancelled() for _ in range(20)]
    tell_from(first, *events[:10])
    tell_from(second, *events[10:])
    until(lambda: not unpublished(database))
    assert leaders(first, second) == [first]

    (row,) = database.rows("order", "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")
    database.rows("order", "SELECT pg_terminate_backend(:pid)", pid=row["pid"])
    last = cancelled()
    tell_from(second, last)
    until(lambda: not unpublished(database))
    until(lambda: len(leaders(first, second)) == 1)

    published = ids(mail.all(CANCELLED))
    assert sorted(set(published)) == sorted(ids([*events, last]))


def test_the_standby_leads_at_once_when_the_leader_dies(
    start: Callable[..., ServiceContainer], settings: Settings, database: Databases, mail: Mail, wire: Wire
) -> None:
    leader = start(wire.url(settings.database_url("order")))
    until(lambda: leaders(leader))
    standby = start()
    until(lambda: asked_in_vain(database))
    wire.close()  # the sockets of a process that was killed are closed by its kernel

    until(lambda: leaders(standby), within_s=relay.FROZEN_AFTER_MS / 1000 / 2)  # and not when its silence is noticed
    event = cancelled()
    tell_from(standby, event)
    until(lambda: not unpublished(database))
    assert ids(mail.all(CANCELLED)) == ids([event])


def test_a_replica_that_does_not_lead_wakes_the_leader_long_before_its_poll(
    start: Callable[..., ServiceContainer], database: Databases, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "POLL_S", 2 * TIMEOUT_S)
    leader = start()
    until(lambda: leaders(leader))
    standby = start()
    until(lambda: asked_in_vain(database))
    for replica in (leader, standby, leader, standby, standby, standby):
        tell_from(replica, cancelled())
        mail.take(CANCELLED)
        eventlet.sleep(0.05)  # an event emitted meanwhile would be published with the one before


def test_the_poll_finds_rows_that_a_crash_left(
    start: Callable[..., ServiceContainer], bench: Benches, database: Databases, mail: Mail
) -> None:
    leader = start()
    until(lambda: leaders(leader))
    event = cancelled()
    tell(bench("order"), event)  # a bench wakes no relay

    assert ids([mail.take(CANCELLED)]) == ids([event])


def test_a_relay_whose_broker_is_away_tries_less_and_less_often_and_says_so(
    start: Callable[..., ServiceContainer], database: Databases, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []

    def refuse(*_: object) -> int:
        tries.append(time.monotonic())
        raise PublishFailed("nobody there")

    monkeypatch.setattr(relay, "publish_once", refuse)
    container = start()
    until(lambda: len(tries) >= 5, within_s=15)

    # The least that 0.1, 0.2, 0.4 and 0.8 s come to with their jitter.
    assert tries[4] - tries[0] > 1.0
    assert "PublishFailed" in (extension(container, Relay).not_ready_reason() or "")

    monkeypatch.undo()
    until(lambda: extension(container, Relay).not_ready_reason() is None, within_s=15)


def test_a_stopped_relay_has_given_its_lock_back(
    start: Callable[..., ServiceContainer], database: Databases, mail: Mail
) -> None:
    leader = start()
    until(lambda: leaders(leader))
    leader.stop()

    # The server notices a closed socket a moment later.
    until(lambda: not database.rows("order", "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"))


def test_only_what_is_older_than_its_promise_is_purged(
    bench: Benches, database: Databases, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "PURGE_LIMIT", 2)
    tell(bench("order"), *(cancelled() for _ in range(9)))
    database.run(
        "order",
        "UPDATE outbox SET created_at = now() - interval '100 days', published_at = CASE"
        " WHEN id % 3 = 0 THEN now() - interval '7 days 1 minute'"
        " WHEN id % 3 = 1 THEN now() - interval '6 days 23 hours' END",
    )
    for days in ("90 days 1 minute", "89 days 23 hours", "0 days"):
        for _ in range(3):
            database.run(
                "order",
                "INSERT INTO consumed_messages VALUES ('q', gen_random_uuid(), now() - CAST(:days AS interval))",
                days=days,
            )

    assert purge(connection) == 6

    assert database.rows("order", "SELECT count(*) AS n, count(published_at) AS p FROM outbox") == [{"n": 6, "p": 3}]
    assert database.rows("order", "SELECT count(*) AS n FROM consumed_messages") == [{"n": 6}]
