"""A broker with a memory or disk alarm takes no message: all who publish name it, and go on when it is over."""

import logging
from collections.abc import Iterator
from uuid import uuid4

import pytest
from nameko.containers import ServiceContainer

from ops.local.servers import Servers
from shared import outbox
from shared.config import Settings
from shared.edge import amqp_client
from shared.edge.database import Database
from shared.edge.publisher import Outgoing, Publisher
from shared.edge.rpc_proxy import Replies, RpcProxy
from shared.errors import BrokerInAlarm, ServiceUnavailable
from shared.events import OrderPaid
from shared.relay import Relay
from tests.databases import Databases
from tests.integration.support import Mail, container_of, emitted, extension, memory_alarm, throughout, until

QUEUE = "q.inventory.order-created"
ALARM = "the broker is in alarm: memory"
SHORT_S = 2.0


class Caller:
    """A service that calls another one."""

    name = "inventory_service"
    orders = RpcProxy("order_service")


@pytest.fixture
def containers(settings: Settings, database: Databases, mail: Mail) -> Iterator[dict[str, ServiceContainer]]:
    """The order service and one that calls it, both ready."""
    made = {"order": container_of(settings, "order"), "caller": container_of(settings, Caller)}
    for container in made.values():
        container.start()
    until(lambda: not extension(made["order"], Relay).not_ready_reason())
    until(lambda: not extension(made["caller"], Replies).not_ready_reason())
    yield made
    for container in made.values():
        container.kill()


def test_a_memory_alarm_is_named_by_all_who_publish_and_costs_one_copy_of_a_message(
    settings: Settings,
    containers: dict[str, ServiceContainer],
    mail: Mail,
    servers_of_this_run: Servers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert servers_of_this_run.broker
    relay, replies = extension(containers["order"], Relay), extension(containers["caller"], Replies)
    publisher = Publisher(settings.amqp_uri, heartbeat_s=1)
    refused: list[str] = []

    def publish() -> str:
        message_id = str(uuid4())
        try:
            publisher.publish_all([Outgoing("", QUEUE, "{}", message_id)])
        except BrokerInAlarm as alarm:
            refused.append(message_id)
            return str(alarm)
        return ""

    def call() -> str:
        try:
            replies.call("order_service.list_orders", (1,), {}, {}, SHORT_S)
        except ServiceUnavailable as away:
            return str(away)
        return ""

    assert call() == ""
    amqp_client._alarms.forget()
    caplog.set_level(logging.INFO)
    with memory_alarm(servers_of_this_run.broker):
        until(lambda: publish() == ALARM)
        connection = publisher._connection
        throughout(lambda: publish() == ALARM, for_s=2.5)  # it must stay open for longer than two heartbeats
        assert publisher._connection is connection
        with extension(containers["order"], Database).sessions.begin() as session:
            outbox.emit(session, [emitted(OrderPaid(uuid4(), 100, "EUR"))])
        until(lambda: relay.not_ready_reason() == f"the relay cannot work: {ALARM}")
        until(lambda: call() == ALARM)
        assert replies.not_ready_reason() == f"Replies of inventory_service: {ALARM}"

    until(lambda: publish() == "")
    until(lambda: not relay.not_ready_reason() and not replies.not_ready_reason() and call() == "")
    received = [message.properties["message_id"] for message in mail.all(QUEUE)]
    assert [message_id for message_id in refused if message_id in received] == refused[:1]
    said = [record.message for record in caplog.records if record.name == amqp_client.__name__]
    assert said == [f"{ALARM}; it takes no message until it has more", "the alarm of the broker is over"]
    publisher.close()
