"""A service that is asked to stop while the outside world does not answer."""

import time
from dataclasses import replace

import pytest

from ops.local.servers import Servers
from payment_service.breaker import NEUTRAL_KEY
from payment_service.mock_provider import MockProvider
from payment_service.service import UNKNOWN_AFTER_S, PaymentService
from shared import outbox
from shared.config import Settings
from shared.edge.consumer import Handles
from shared.edge.database import Database
from shared.edge.http import Health
from shared.edge.rpc import RpcServer
from shared.edge.timer import Every
from tests.databases import Databases
from tests.integration.support import Mail, container_of, emitted, extension, order_created, reserved_event, until

STOPS_WITHIN_S = 10.0
QUEUE = "q.payment.inventory-reserved"


def test_calls_to_the_provider_are_abandoned_and_their_messages_go_back_to_the_queue(
    settings: Settings, database: Databases, mail: Mail
) -> None:
    deaf = replace(settings, payment_mode="timeout", provider_timeout_s=60.0)
    container = container_of(deaf, PaymentService)
    container.start()
    mail.publish([reserved_event()])
    until(lambda: database.rows("payment", "SELECT 1 FROM payments WHERE status = 'PENDING'"))

    began = time.monotonic()
    container.stop()

    assert time.monotonic() - began < STOPS_WITHIN_S
    assert until(lambda: mail.waiting(QUEUE)) == 1
    assert database.rows("payment", "SELECT 1 FROM consumed_messages") == []


def test_a_consumer_that_is_paused_by_an_outage_says_so_and_stops_in_time(
    settings: Settings, database: Databases, mail: Mail
) -> None:
    down = replace(settings, payment_mode="down", provider_timeout_s=0.1)
    container = container_of(down, PaymentService)
    container.start()
    health = extension(container, Health)
    mail.publish([reserved_event()])
    until(lambda: f"{QUEUE} is paused: ProviderAway" in health.reasons())

    began = time.monotonic()
    container.stop()

    assert time.monotonic() - began < STOPS_WITHIN_S
    assert until(lambda: mail.waiting(QUEUE)) == 1
    assert database.rows("payment", "SELECT 1 FROM dead_messages") == []


def test_a_timer_that_waits_for_the_provider_does_not_hold_up_the_stop(
    settings: Settings, database: Databases, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = replace(settings, payment_mode="down", provider_timeout_s=20.0)
    asked = []

    def find(provider: MockProvider, key: object) -> None:
        asked.append(key)
        return silent_find(provider, key)  # type: ignore[arg-type, return-value]

    silent_find = MockProvider.find
    monkeypatch.setattr(MockProvider, "find", find)
    container = container_of(silent, PaymentService)
    extension(container, Every, method_name="recover_unknown").seconds = 0.2
    container.start()
    mail.publish([reserved_event()])
    made_old = f"UPDATE payments SET updated_at = now() - make_interval(secs => {UNKNOWN_AFTER_S + 30})"
    until(lambda: database.run("payment", made_old))
    until(lambda: any(key != NEUTRAL_KEY for key in asked), within_s=20)  # by recover_unknown

    began = time.monotonic()
    container.stop()

    assert time.monotonic() - began < STOPS_WITHIN_S


def test_consumers_and_rpc_servers_close_their_connection_cleanly(
    settings: Settings, database: Databases, mail: Mail, servers_of_this_run: Servers
) -> None:
    broker = servers_of_this_run.broker
    assert broker
    container = container_of(settings, "order")
    container.start()
    until(lambda: not extension(container, Health).reasons())
    logged = broker.log.stat().st_size
    container.stop()

    def left() -> int:
        """How many connections were closed by word; of those that broke off the log says so."""
        said = broker.log.read_bytes()[logged:].decode()
        return said.count("closing AMQP connection") - said.count("client unexpectedly closed TCP connection")

    acking = [item for item in container.extensions if isinstance(item, Handles | RpcServer)]
    assert len(acking) > 1
    until(lambda: left() == len(acking))


def test_a_broker_that_does_not_answer_does_not_hold_up_the_stop(
    settings: Settings, database: Databases, mail: Mail, servers_of_this_run: Servers
) -> None:
    broker = servers_of_this_run.broker
    assert broker
    container = container_of(replace(settings, heartbeat_s=30.0), "order")
    container.start()
    until(lambda: not extension(container, Health).reasons())
    broker.pause()
    try:
        # The relay has something to publish, and waits for a confirm.
        with extension(container, Database).sessions.begin() as session:
            outbox.emit(session, [emitted(order_created())])
        until(lambda: database.rows("order", "SELECT FROM outbox"))

        began = time.monotonic()
        container.stop()

        assert time.monotonic() - began < STOPS_WITHIN_S
    finally:
        broker.resume()
        mail.close()
    assert database.rows("order", "SELECT FROM outbox WHERE published_at IS NULL")
