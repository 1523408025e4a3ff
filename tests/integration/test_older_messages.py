"""Messages of an older version, which lack the fields that were added since, are read wherever they were stored."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import eventlet
import pytest
from sqlalchemy import Connection, insert

from ops.dlq import files
from ops.dlq.operator_session import Actor, OperatorSession, Watch
from ops.dlq.replay import replay
from ops.dlq.replay_request import ReplayRequest
from ops.domain import Filter, Pace
from shared import outbox
from shared.config import Settings
from shared.edge.publisher import Publisher
from shared.envelope import Envelope
from shared.errors import UnexpectedEvent
from shared.events import OrderCancelled
from shared.failures import Delivery
from shared.relay import publish_once
from shared.tables import OutboxRow
from shared.tracing import traceparent
from tests.databases import Databases
from tests.integration.support import Bench, Mail, body_of, emitted, order_created, until
from topology.table import dead_letter_queue

CREATED = "q.inventory.order-created"
CANCELLED = "q.payment.order-cancelled"
REPLAY_ALL = ReplayRequest(Filter(), None, Pace())


def body_of_version_0_1(event: Envelope) -> str:
    """The body as version 0.1 wrote it: `customer_id` did not exist."""
    body = json.loads(event.to_json())
    del body["payload"]["customer_id"]
    return json.dumps(body)


def cancelled() -> Envelope:
    return emitted(OrderCancelled(uuid4(), "deadline"))


def payments(database: Databases) -> list[UUID]:
    return [row["order_id"] for row in database.rows("payment", "SELECT order_id FROM payments")]


@pytest.fixture
def operator(settings: Settings) -> Iterator[OperatorSession]:
    one = OperatorSession(settings, Actor("ann", "to see"), Watch())
    yield one
    one.close()


@pytest.fixture
def dead(bench: Callable[..., Bench], mail: Mail) -> Envelope:
    """An event whose message, written by version 0.1, lies in a DLQ."""
    event = cancelled()
    body = body_of_version_0_1(event).encode()
    payment = bench("payment")

    def fail(events, tx):
        for one in events:
            tx.fail(one, UnexpectedEvent("not now"))

    payment.batch(CANCELLED, handle=fail).handle_batch([Delivery(1, body, event.type, str(event.message_id), {})])
    until(lambda: mail.waiting(dead_letter_queue(CANCELLED)) == 1)
    return event


def consume(bench: Callable[..., Bench], mail: Mail) -> None:
    """Handle the next message of the queue as its service does."""
    message = mail.take(CANCELLED)
    assert "customer_id" not in body_of(message)["payload"]
    body, message_id = bytes(message.body), str(message.properties["message_id"])
    bench("payment").batch(CANCELLED).handle_batch([Delivery(1, body, CANCELLED, message_id, message.headers or {})])


def test_a_message_in_a_queue_is_handled(bench: Callable[..., Bench], database: Databases) -> None:
    event = emitted(order_created())

    body = body_of_version_0_1(event).encode()
    bench("inventory").batch(CREATED).handle_batch([Delivery(1, body, event.type, str(event.message_id), {})])

    (row,) = database.rows("inventory", "SELECT event_type, aggregate_id FROM outbox")
    assert (row["event_type"], row["aggregate_id"]) == ("inventory.failed", event.payload.order_id)


def test_a_row_in_the_outbox_is_published_as_it_is_and_handled(
    bench: Callable[..., Bench], database: Databases, mail: Mail, connection: Connection, publisher: Publisher
) -> None:
    event = cancelled()
    with bench("order").sessions.begin() as session:
        session.execute(
            insert(OutboxRow).values(
                message_id=event.message_id,
                aggregate_id=event.payload.order_id,
                event_type=event.type,
                traceparent=traceparent(event.trace_id),
                body=body_of_version_0_1(event),
            )
        )
    assert publish_once(connection, publisher) == 1

    consume(bench, mail)

    assert payments(database) == [event.payload.order_id]


def test_a_message_in_a_dlq_is_replayed_and_handled(
    bench: Callable[..., Bench], database: Databases, mail: Mail, operator: OperatorSession, dead: Envelope
) -> None:
    consumer = eventlet.spawn(consume, bench, mail)

    assert replay(operator, CANCELLED, REPLAY_ALL).tally.as_dict() == {
        "chosen": 1,
        "applied": 1,
    }

    consumer.wait()
    assert payments(database) == [dead.payload.order_id]


def test_a_message_in_an_export_file_is_imported_replayed_and_handled(
    bench: Callable[..., Bench],
    database: Databases,
    mail: Mail,
    operator: OperatorSession,
    dead: Envelope,
    tmp_path: Path,
) -> None:
    file = tmp_path / "dead.jsonl"
    files.discard(operator, CANCELLED, file, Filter(), None)
    assert mail.waiting(dead_letter_queue(CANCELLED)) == 0

    (back,) = files.put_back(operator, file)
    assert back.tally.as_dict() == {"chosen": 1, "imported": 1}
    consumer = eventlet.spawn(consume, bench, mail)
    assert replay(operator, CANCELLED, REPLAY_ALL).tally.as_dict() == {
        "chosen": 1,
        "applied": 1,
    }

    consumer.wait()
    assert payments(database) == [dead.payload.order_id]


def test_an_event_of_now_is_stored_with_its_owner(bench: Callable[..., Bench], database: Databases) -> None:
    with bench("order").sessions.begin() as session:
        outbox.emit(session, [emitted(OrderCancelled(uuid4(), "deadline", customer_id="ann"))])

    (row,) = database.rows("order", "SELECT body FROM outbox")
    assert json.loads(row["body"])["payload"]["customer_id"] == "ann"
