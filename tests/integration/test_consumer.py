"""The messaging entrypoint in a real container on the real broker: no message is lost in any fault."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import amqp
import eventlet
import pika
import pytest
from nameko.containers import ServiceContainer
from nameko.standalone.events import event_dispatcher
from sqlalchemy import text

from inventory_service import queries
from inventory_service.domain import State
from ops.local.servers import Servers
from shared.config import Settings
from shared.edge.consumer import Handles, handles
from shared.edge.database import Database
from shared.edge.publisher import Outgoing
from shared.edge.subscription import PREFETCH
from shared.edge.tx import Events, Tx
from shared.envelope import Envelope
from shared.errors import CannotWork, PublishFailed
from shared.ids import uuid7
from tests.databases import Databases
from tests.integration.support import (
    Mail,
    body_of,
    container_of,
    emitted,
    extension,
    headers_of,
    order_created,
    throughout,
    until,
)
from topology.table import dead_letter_queue

QUEUE = "q.inventory.order-created"

Handle = Callable[[Events, Tx], None]
Start = Callable[..., ServiceContainer]


def nothing_else(events: Events, tx: Tx) -> None:
    """A handler's own part, beside the effect."""


def service(handle: Handle) -> type:
    """A service with one handler, whose effect is a reservation for each order."""

    class Tiny:
        name = "inventory_service"
        db = Database()

        @handles(QUEUE)
        def reserve(self, events: Events, tx: Tx) -> None:
            handle(events, tx)
            ids = {event.payload.order_id: uuid7() for event in events}
            assert queries.claim_reservations(tx.session, ids, State.RESERVED) == set(ids), "an effect came twice"

    return Tiny


@pytest.fixture
def start(settings: Settings, database: Databases, mail: Mail) -> Iterator[Start]:
    """Starts a container with a handler; it is killed at the end."""
    running: list[ServiceContainer] = []

    def start_one(handle: Handle = nothing_else, **changed: Any) -> ServiceContainer:
        container = container_of(replace(settings, **changed), service(handle))
        running.append(container)
        container.start()
        return container

    yield start_one
    for container in running:
        container.kill()


def orders(count: int) -> list[Envelope]:
    return [emitted(order_created()) for _ in range(count)]


def ids(events: list[Envelope]) -> set[UUID]:
    return {event.message_id for event in events}


def consumed(database: Databases) -> set[object]:
    return {row["message_id"] for row in database.rows("inventory", "SELECT message_id FROM consumed_messages")}


def left(mail: Mail) -> list[amqp.Message]:
    return mail.all(QUEUE)


class Gate:
    """A handler that writes down each batch and waits in it until it is opened."""

    def __init__(self) -> None:
        self.batches: list[list[UUID]] = []
        self.open = False

    def __call__(self, events: Events, tx: Tx) -> None:
        self.batches.append([event.message_id for event in events])
        while not self.open:
            eventlet.sleep(0.005)


def test_a_consumer_begins_with_one_message_and_opens_after_it_was_settled(
    start: Start, database: Databases, mail: Mail
) -> None:
    events, gate = orders(150), Gate()
    mail.publish(events)
    start(gate)

    until(lambda: gate.batches)
    assert len(gate.batches[0]) == 1
    throughout(lambda: mail.waiting(QUEUE) == 149, for_s=0.3)  # the broker has handed out one and no more

    gate.open = True
    until(lambda: consumed(database) == ids(events))
    assert max(len(batch) for batch in gate.batches) <= 50
    assert len(gate.batches) < 20, "what waits is handled together"


def test_the_broker_sees_a_prefetch_of_a_hundred_once_it_is_open(
    start: Start, database: Databases, mail: Mail, servers_of_this_run: Servers
) -> None:
    gate = Gate()
    gate.open = True
    start(gate)
    mail.publish(orders(1))
    until(lambda: len(gate.batches) == 1 and consumed(database))
    gate.open = False
    mail.publish(orders(PREFETCH + 50))

    until(lambda: mail.waiting(QUEUE) == 50)
    throughout(lambda: mail.waiting(QUEUE) == 50, for_s=0.3)
    gate.open = True


def test_one_replica_gets_every_message_and_another_those_for_which_it_has_no_room(
    start: Start, database: Databases, mail: Mail
) -> None:
    gates = Gate(), Gate()
    replicas = [start(gate) for gate in gates]
    for gate in gates:
        gate.open = True
    until(lambda: mail.channel.queue_declare(QUEUE, passive=True).consumer_count == 2)
    mail.publish(orders(1))  # until it is settled, the favoured one has no room for a second
    until(lambda: any(extension(one, Handles)._subscription.prefetch == PREFETCH for one in replicas))
    singles = [orders(1) for _ in range(20)]
    for number, single in enumerate(singles):
        mail.publish(single)
        until(lambda number=number: len(consumed(database)) == number + 2)
    favoured, other = sorted((0, 1), key=lambda replica: len(gates[replica].batches), reverse=True)
    assert (len(gates[favoured].batches), gates[other].batches) == (21, []), "without priorities they take turns"

    gates[favoured].open = gates[other].open = False
    mail.publish(orders(PREFETCH + 1))
    until(lambda: gates[other].batches)  # the first one holds as many as it may
    gates[favoured].open = gates[other].open = True
    until(lambda: len(consumed(database)) == 21 + PREFETCH + 1)

    seen = len(gates[other].batches)
    replicas[favoured].stop()
    mail.publish(orders(5))
    until(lambda: len(consumed(database)) == 21 + PREFETCH + 1 + 5)
    assert len(gates[other].batches) > seen


def test_a_suspect_is_handled_alone_and_after_its_neighbours(start: Start, database: Databases, mail: Mail) -> None:
    (suspect,) = orders(1)
    mail.publish([suspect])
    for _ in range(3):  # what three deaths of a process leave behind
        held = until(lambda: mail.channel.basic_get(QUEUE))
        mail.channel.basic_reject(held.delivery_tag, requeue=True)
    held = until(lambda: mail.channel.basic_get(QUEUE))
    assert held.headers["x-delivery-count"] == 3
    gate, neighbours = Gate(), orders(5)
    gate.open = True
    start(gate)
    mail.publish(neighbours[:1])
    until(lambda: consumed(database) == ids(neighbours[:1]))
    gate.open = False
    mail.publish(neighbours[1:2])
    until(lambda: len(gate.batches) == 2)

    mail.channel.basic_reject(held.delivery_tag, requeue=True)
    until(lambda: mail.waiting(QUEUE) == 0)
    mail.publish(neighbours[2:])
    until(lambda: mail.waiting(QUEUE) == 0)
    gate.open = True
    until(lambda: consumed(database) == ids([suspect, *neighbours]))

    assert [len(batch) for batch in gate.batches[2:]] == [1, 1, 1, 1]
    assert gate.batches[-1] == [suspect.message_id]
    assert [batch[0] for batch in gate.batches[2:-1]] == [event.message_id for event in neighbours[2:]]


UNREADABLE = [
    pika.BasicProperties(correlation_id=b"\xff", message_id=str(uuid4())),
    pika.BasicProperties(headers={"since": datetime(9999, 12, 31, tzinfo=UTC), "note": b"x"}, type=b"\xc3("),
]


@pytest.mark.parametrize("properties", UNREADABLE, ids=["no text", "no text in a type, and headers"])
def test_a_message_with_unreadable_properties_is_handled_by_its_body_and_ends_no_connection(
    start: Start, database: Databases, mail: Mail, settings: Settings, properties: pika.BasicProperties
) -> None:
    event, neighbour = orders(2)
    with closing(pika.BlockingConnection(pika.URLParameters(settings.amqp_uri))) as connection:
        channel = connection.channel()
        for body in (event.to_json(), "no event"):
            channel.basic_publish("", QUEUE, body.encode(), properties)
    mail.publish([neighbour])
    start()

    until(lambda: consumed(database) == ids([event, neighbour]))
    dead = mail.take(dead_letter_queue(QUEUE))
    assert bytes(dead.body) == b"no event"
    assert dead.headers["x-reason"] == "poison"


def test_a_stop_under_load_redelivers_nothing_that_is_finished_and_finishes_what_is_held(
    start: Start, database: Databases, mail: Mail, long: bool
) -> None:
    events = orders(10_000 if long else 600)
    mail.publish(events)
    container = start(lambda batch, tx: eventlet.sleep(0.02))
    until(lambda: len(consumed(database)) >= 100)

    container.stop()

    finished, waiting = consumed(database), left(mail)
    assert len(finished) < len(events), "stopped too late to prove anything"
    assert {UUID(message.properties["message_id"]) for message in waiting} == ids(events) - finished
    assert len(waiting) == len(events) - len(finished)
    assert [message for message in waiting if message.headers.get("x-delivery-count")] == []


def test_a_stop_in_the_first_message_opens_nothing_and_takes_nothing_more(
    start: Start, database: Databases, mail: Mail
) -> None:
    events, gate = orders(120), Gate()
    mail.publish(events)
    container = start(gate)
    until(lambda: gate.batches)
    stopping = eventlet.spawn(container.stop)
    until(lambda: extension(container, Handles)._stopping)
    gate.open = True
    stopping.wait()

    assert len(consumed(database)) == 1
    waiting = left(mail)
    assert len(waiting) == 119
    assert [message for message in waiting if message.headers.get("x-delivery-count")] == []


def test_a_stop_while_paused_is_quick_and_gives_everything_back(start: Start, database: Databases, mail: Mail) -> None:
    def closed(events: Events, tx: Tx) -> None:
        raise CannotWork("closed")

    events = orders(3)
    mail.publish(events)
    container = start(closed)
    until(lambda: extension(container, Handles).batch.pausing.not_ready_reason)
    began = time.monotonic()
    container.stop()

    assert time.monotonic() - began < 10
    assert until(lambda: mail.waiting(QUEUE) == 3)
    assert mail.all(f"{QUEUE}.retry") == mail.all(f"{QUEUE}.dlq") == []


def test_a_container_that_dies_in_the_middle_of_a_query_dies(start: Start, database: Databases, mail: Mail) -> None:
    queries: list[int] = []

    def handle(events: Events, tx: Tx) -> None:
        queries.append(1)
        tx.session.execute(text("SELECT pg_sleep(10)"))

    mail.publish(orders(1))
    container = start(handle)
    until(lambda: queries)
    began = time.monotonic()
    container.kill()

    assert time.monotonic() - began < 8
    assert container._died.ready()
    assert until(lambda: mail.waiting(QUEUE) == 1), "the message is back"


def test_a_failing_message_waits_one_two_and_four_seconds_and_is_then_exhausted(
    start: Start, database: Databases, mail: Mail
) -> None:
    events = orders(10)
    poison = events[3].message_id
    tried: list[float] = []

    def handle(batch: Events, tx: Tx) -> None:
        for event in batch:
            if event.message_id == poison:
                tried.append(time.monotonic())
                raise ValueError("no")

    mail.publish(events)
    start(handle)
    dead = mail.take(f"{QUEUE}.dlq")

    waits = [later - sooner for sooner, later in pairwise(tried)]
    assert all(0.9 * level < wait < 2 * level + 2 for level, wait in zip((1, 2, 4), waits, strict=True)), waits
    assert dead.properties["message_id"] == str(poison)
    assert headers_of(dead)["x-reason"] == "exhausted"
    assert headers_of(dead)["x-attempt"] == 4
    assert headers_of(dead)["x-first-failed-at"] < headers_of(dead)["x-last-failed-at"]
    assert consumed(database) == ids(events) - {poison}
    (row,) = database.rows("inventory", "SELECT message_id, reason, attempts, queue FROM dead_messages")
    assert row == {"message_id": poison, "reason": "exhausted", "attempts": 4, "queue": QUEUE}


def test_a_publisher_that_fails_pauses_the_consumer_and_nothing_is_acked(
    start: Start, database: Databases, mail: Mail
) -> None:
    events = orders(10)
    poison = events[0].message_id
    failing = True

    def handle(batch: Events, tx: Tx) -> None:
        for event in batch:
            if event.message_id == poison:
                raise ValueError("no")

    mail.publish(events)
    container = start(handle)
    entrypoint = extension(container, Handles)
    publish = entrypoint.batch.publisher.publish_all

    def publish_all(messages: list[Outgoing]) -> list[str | None]:
        if failing:
            raise PublishFailed("no confirm")
        return publish(messages)

    entrypoint.batch.publisher.publish_all = publish_all  # type: ignore[method-assign, assignment]
    until(lambda: "PublishFailed" in (entrypoint.not_ready_reason() or ""))
    throughout(lambda: not mail.get(f"{QUEUE}.retry"), for_s=0.3)
    container.kill()
    assert until(lambda: mail.waiting(QUEUE) == 10), "not one of them was acked"

    failing = False
    start(handle)
    until(lambda: consumed(database) == ids(events[1:]))
    assert headers_of(mail.take(f"{QUEUE}.retry"))["x-attempt"] == 1


def test_a_body_that_no_codec_can_write_back_goes_to_the_dlq_and_the_consumer_lives(
    start: Start, database: Databases, mail: Mail
) -> None:
    container = start()
    message = amqp.Message(b"\\ud800", content_encoding="unicode_escape", message_id=str(uuid4()))
    mail.channel.basic_publish(message, "", QUEUE)

    assert mail.take(f"{QUEUE}.dlq").body == b"\\ud800"
    events = orders(2)
    mail.publish(events)
    until(lambda: consumed(database) == ids(events))
    assert not container._died.ready()


def test_a_consumer_whose_connection_is_closed_comes_back_and_nothing_is_lost_or_done_twice(
    start: Start, database: Databases, mail: Mail, servers_of_this_run: Servers, settings: Settings, long: bool
) -> None:
    events = orders(10_000 if long else 600)
    mail.publish(events)
    start(lambda batch, tx: eventlet.sleep(0.1))
    until(lambda: len(consumed(database)) >= 100)
    vhost = settings.amqp_uri.rpartition("/")[2]
    assert servers_of_this_run.broker
    servers_of_this_run.broker.rabbitmqctl("close_all_connections", "-p", vhost, "test")
    mail.open()

    # The effect itself fails when it comes twice.
    until(lambda: consumed(database) == ids(events), within_s=80 if long else 20)
    until(lambda: not mail.waiting(QUEUE))
    assert mail.all(f"{QUEUE}.retry") == mail.all(f"{QUEUE}.dlq") == []


def test_a_consumer_gives_up_a_frozen_broker_and_comes_back(
    start: Start, database: Databases, mail: Mail, servers_of_this_run: Servers
) -> None:
    container = start(heartbeat_s=1.0)
    first, second = orders(1), orders(20)
    mail.publish(first)
    until(lambda: consumed(database) == ids(first))
    broker = servers_of_this_run.broker
    assert broker
    broker.pause()
    try:
        until(lambda: "is away" in (extension(container, Handles).not_ready_reason() or ""))
    finally:
        broker.resume()
    mail.publish(second)

    until(lambda: consumed(database) == ids(first + second))
    assert extension(container, Handles).not_ready_reason() is None


def test_a_bare_payload_from_a_nameko_shell_starts_the_flow_as_the_user_shell(
    settings: Settings, database: Databases, mail: Mail
) -> None:
    database.run("inventory", "INSERT INTO stock_items (sku, on_hand) VALUES ('apple', 10)")
    order_id = uuid4()
    container = container_of(settings, "inventory")
    container.start()
    try:
        dispatch = event_dispatcher({"AMQP_URI": settings.amqp_uri, "serializer": "json"})
        dispatch(
            "ecom",
            "order.created",
            {
                "order_id": str(order_id),
                "currency": "EUR",
                "total": 200,
                "items": [{"sku": "apple", "quantity": 2, "unit_price": 100}],
                "payment_method": "mock_ok",
            },
        )
        reserved = body_of(mail.take("q.payment.inventory-reserved"))
    finally:
        container.stop()

    assert reserved["payload"]["order_id"] == str(order_id)
    assert reserved["identity"] == {"user_id": "shell", "roles": []}
    assert reserved["source"] == "inventory_service"
    (row,) = database.rows("inventory", "SELECT reserved FROM stock_items")
    assert row == {"reserved": 2}
    assert json.dumps(reserved["causation_id"]) != "null"
