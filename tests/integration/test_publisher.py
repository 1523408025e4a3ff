"""The publisher: many messages with one wait, the outcome of each known."""

import time
from collections.abc import Iterator
from uuid import uuid4

import eventlet
import pytest

from ops.local.servers import Servers
from shared.config import Settings
from shared.edge.publisher import Outgoing, Publisher
from shared.errors import PublishFailed
from tests.integration.support import Mail, until, wire_to_broker
from topology.table import EVENTS_EXCHANGE

QUEUE = "q.inventory.order-created"


@pytest.fixture
def small_queue(mail: Mail) -> Iterator[str]:
    """A queue that takes two messages and refuses the rest."""
    name = f"test.small.{uuid4()}"
    mail.channel.queue_declare(
        name, durable=True, auto_delete=False, arguments={"x-max-length": 2, "x-overflow": "reject-publish"}
    )
    yield name
    mail.channel.queue_delete(name)


def to(queue: str, count: int = 1, exchange: str = "") -> list[Outgoing]:
    return [Outgoing(exchange, queue, "{}", str(uuid4()), "test") for _ in range(count)]


def test_five_hundred_messages_are_confirmed_together(publisher: Publisher, mail: Mail) -> None:
    publisher.publish_all(to(QUEUE))
    mail.take(QUEUE)
    messages = to(QUEUE, 500)
    began = time.monotonic()

    assert publisher.publish_all(messages) == [None] * 500

    took = time.monotonic() - began
    print(f"500 confirmed messages in {took:.2f} s")
    assert took < 3, "one by one they take longer"
    received = [message.properties["message_id"] for message in mail.all(QUEUE)]
    assert received == [message.message_id for message in messages], "in order"


def test_a_message_without_a_queue_is_known_among_those_that_have_one(publisher: Publisher, mail: Mail) -> None:
    lost = to("nobody.listens", exchange=EVENTS_EXCHANGE)
    unheard = [Outgoing(EVENTS_EXCHANGE, "nobody.listens", "{}", str(uuid4()), mandatory=False)]
    outcomes = publisher.publish_all(to(QUEUE, 2) + lost + unheard + to(QUEUE, 2))

    assert outcomes[2] == "unroutable: no queue for ecom.events nobody.listens"
    assert outcomes[:2] + outcomes[3:] == [None] * 5
    assert len(mail.all(QUEUE)) == 4


def test_a_message_that_the_broker_refuses_is_known(publisher: Publisher, mail: Mail, small_queue: str) -> None:
    outcomes = publisher.publish_all(to(small_queue, 3) + to(QUEUE, 1))

    assert outcomes == [None, None, "nacked by the broker", None]
    assert publisher.publish_all(to(QUEUE, 1)) == [None], "what was refused before is not said again"
    assert len(mail.all(small_queue)) == 2


def test_a_message_to_an_exchange_that_is_not_there_fails_and_the_next_one_passes(
    publisher: Publisher, mail: Mail
) -> None:
    with pytest.raises(PublishFailed):
        publisher.publish_all(to(QUEUE, exchange="not.there"))

    assert publisher.publish_all(to(QUEUE)) == [None]


def test_a_frozen_broker_is_known_at_the_deadline_and_publishing_goes_on_after_it(
    publisher: Publisher, mail: Mail, servers_of_this_run: Servers
) -> None:
    assert publisher.publish_all(to(QUEUE)) == [None]
    broker = servers_of_this_run.broker
    assert broker
    broker.pause()
    try:
        for _ in range(2):  # with the old connection, then with one that gets no handshake
            began = time.monotonic()
            with pytest.raises(PublishFailed):
                publisher.publish_all(to(QUEUE, 10), deadline_s=0.5)
            assert time.monotonic() - began < 4
    finally:
        broker.resume()

    until(lambda: publishes(publisher))


def publishes(publisher: Publisher) -> bool:
    try:
        return publisher.publish_all(to(QUEUE)) == [None]
    except PublishFailed:
        return False


def test_a_connection_that_was_cut_is_opened_again(settings: Settings, mail: Mail) -> None:
    wire = wire_to_broker(settings)
    publisher = Publisher(wire.amqp_uri(settings.amqp_uri), heartbeat_s=10)
    assert publisher.publish_all(to(QUEUE)) == [None]
    wire.cut()
    with pytest.raises(PublishFailed):
        publisher.publish_all(to(QUEUE))

    assert publisher.publish_all(to(QUEUE)) == [None]
    publisher.close()
    wire.close()


def test_a_publisher_that_rested_longer_than_the_heartbeat_still_publishes(settings: Settings, mail: Mail) -> None:
    publisher = Publisher(settings.amqp_uri, heartbeat_s=1)
    assert publisher.publish_all(to(QUEUE)) == [None]
    eventlet.sleep(3.2)  # nothing to wait for: three heartbeats of silence are the test

    assert publisher.publish_all(to(QUEUE)) == [None]
    publisher.close()
