"""On the real broker each service's user does what it needs, and every attack with its password is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pika
import pytest
from click.testing import CliRunner
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from ops.cli.main import ecom
from ops.local.servers import Servers
from shared.config import Settings
from shared.events import CATALOGUE
from tests.integration.support import Mail
from topology import declare, definitions, table
from topology.services import BY_NAME, NAMES, publisher_of
from topology.users import SHELL, Rights, broker_user, hints_queue, reply_key

REFUSED, FORGED_USER = 403, 406
UUID = "01a1fd23-2d2f-432b-b195-616d1091d2a3"
LISTENING = ("amq.rabbitmq.trace", "amq.rabbitmq.log", "amq.topic", "amq.fanout")
# One retry level of each queue stands for the others.
QUEUES = (
    *(name for queue in table.QUEUES for name in (queue.name, f"{queue.name}.retry", f"{queue.name}.dlq")),
    *table.rpc_queues(),
)
EXCHANGES = tuple(table.exchanges())
WIDE = Rights(configure=".*", write=".*", read=".*", topics={})

Act = Callable[[BlockingChannel], object]


class Attack(NamedTuple):
    """What a user tries on a channel of its own, and the code with which the broker must refuse it."""

    name: str
    act: Act
    code: int = REFUSED


class User:
    """A connection as one of the broker's users."""

    def __init__(self, uri: str) -> None:
        self.connection = pika.BlockingConnection(declare.parameters(uri))
        self.channel = self._open()

    def _open(self) -> BlockingChannel:
        channel = self.connection.channel()
        channel.confirm_delivery()
        return channel

    def code(self, act: Act) -> int:
        """The code with which the broker refuses it, or 0."""
        if not self.channel.is_open:
            self.channel = self._open()
        try:
            act(self.channel)
        except ChannelClosedByBroker as refusal:
            return int(refusal.reply_code)
        return 0

    def close(self) -> None:
        """Leave, with every queue of its own."""
        self.connection.close()


def publish(exchange: str, key: str, **properties: object) -> Act:
    given = pika.BasicProperties(**properties)  # type: ignore[arg-type]
    return lambda channel: channel.basic_publish(exchange, key, b"{}", given)


def own_queues(service: str) -> list[str]:
    """The queues that a service reads."""
    row = BY_NAME[service]
    found = [queue.name for queue in table.QUEUES if queue.service == service]
    found += [table.rpc_queue(row.rpc_name)] if row.has_rpc else []
    return found + ([table.dead_letter_queue(queue.name) for queue in table.QUEUES] if row.replays else [])


def own_failed(service: str) -> set[str]:
    """The exchanges through which a service sends messages on."""
    served = table.CONSUMERS if BY_NAME[service].replays else {service} & set(table.CONSUMERS)
    return {table.failed_exchange(one) for one in served}


def own_keys(service: str) -> list[str]:
    """The keys of RPC with which a service publishes: of its calls, and of its replies."""
    calls = [f"{BY_NAME[called].rpc_name}.nothing" for called in BY_NAME[service].calls]
    callers = [caller for caller in NAMES if service in BY_NAME[caller].calls]
    return calls + [reply_key(caller, UUID) for caller in callers] + ([UUID] if callers else [])


def attacks(service: str) -> Iterator[Attack]:
    """Everything that a service must not do."""
    yield from forged_messages(service)
    yield from eavesdropping(service)
    yield from changes_of_the_topology(service)


def forged_messages(service: str) -> Iterator[Attack]:
    keys = own_keys(service)
    types = [type_ for type_ in CATALOGUE if publisher_of(type_) != service]
    for type_ in (*types, "order.unknown", "#", ""):
        yield Attack(f"publish {type_!r}", publish(table.EVENTS_EXCHANGE, type_))
    callable_ = [f"{BY_NAME[one].rpc_name}.nothing" for one in NAMES if BY_NAME[one].has_rpc]
    replies = [*(reply_key(one, UUID) for one in NAMES), UUID]
    for key in (*callable_, *replies):
        if key not in keys:
            yield Attack(f"send {key} by RPC", publish(table.RPC_EXCHANGE, key))
    for consumer in table.CONSUMERS:
        exchange = table.failed_exchange(consumer)
        if exchange not in own_failed(service):
            for queue in (queue.name for queue in table.QUEUES if queue.service == consumer):
                yield Attack(f"publish to {queue} by {exchange}", publish(exchange, queue))
    for queue in QUEUES:
        yield Attack(f"publish to {queue} by the default exchange", publish("", queue))
    for exchange in ("amq.direct", "amq.headers", "amq.topic", "amq.rabbitmq.log"):
        yield Attack(f"publish to {exchange}", publish(exchange, "x"))
    if BY_NAME[service].hints != "publishes":
        yield Attack("publish a hint", publish(table.HINTS_EXCHANGE, ""))
    for other in (*NAMES, SHELL):
        if other != service:
            forged = publish(table.RPC_EXCHANGE, keys[0], user_id=broker_user(other))
            yield Attack(f"publish as {other}", forged, FORGED_USER)
    for name in ("ecom", "guest", "nobody"):
        yield Attack(f"publish as {name}", publish(table.RPC_EXCHANGE, keys[0], user_id=name), FORGED_USER)


def eavesdropping(service: str) -> Iterator[Attack]:
    own = own_queues(service)
    for queue in QUEUES:
        if queue not in own:
            yield Attack(f"get from {queue}", lambda channel, queue=queue: channel.basic_get(queue))
            if queue in table.BY_NAME:
                yield Attack(f"consume {queue}", lambda channel, queue=queue: channel.basic_consume(queue, print))
            yield Attack(f"purge {queue}", lambda channel, queue=queue: channel.queue_purge(queue))
    # The best place to listen from is a queue of its own. A service without one tries with the queues that it reads.
    calls = BY_NAME[service].calls
    at = reply_key(service, "attacker") if calls else own[0]

    def bound(exchange: str, key: str) -> Act:
        def act(channel: BlockingChannel) -> None:
            if calls:
                channel.queue_declare(at, exclusive=True, auto_delete=True)
            channel.queue_bind(at, exchange, key)

        return act

    others = [one for one in NAMES if one != service]
    keys = ["#", "*", "*.*", "#.#", UUID, "reply.#", "reply.*.*", *(f"{BY_NAME[one].rpc_name}.*" for one in others)]
    keys += [reply_key(one, UUID) for one in others] + ["auth_service.#", "*.authenticate"]
    for key in keys:
        yield Attack(f"bind {key} of RPC", bound(table.RPC_EXCHANGE, key))
    for key in ("#", "payment.*", "order.created", "*.*", ""):
        yield Attack(f"bind {key!r} of the events", bound(table.EVENTS_EXCHANGE, key))
    for exchange in (*LISTENING, *(table.failed_exchange(one) for one in table.CONSUMERS)):
        yield Attack(f"bind to {exchange}", bound(exchange, "#"))
    if BY_NAME[service].hints != "hears":
        yield Attack("hear hints", bound(table.HINTS_EXCHANGE, ""))


def changes_of_the_topology(service: str) -> Iterator[Attack]:
    others = [one for one in NAMES if one != service]
    named = [
        "",
        "mine",
        "q.mine",
        *(reply_key(one, UUID) for one in others),
        *(hints_queue(one, UUID) for one in others),
    ]
    for name in named:
        yield Attack(
            f"declare the queue {name!r}", lambda channel, name=name: channel.queue_declare(name, exclusive=True)
        )
    for source in (table.EVENTS_EXCHANGE, table.RPC_EXCHANGE):
        for to in (table.EVENTS_EXCHANGE, table.RPC_EXCHANGE, "amq.fanout"):
            for key in ("#", "payment.succeeded"):
                yield Attack(
                    f"bind {to} to {source}",
                    lambda channel, to=to, source=source, key=key: channel.exchange_bind(to, source, key),
                )
    for name in ("mine", "ecom.failed.mine"):
        yield Attack(f"declare the exchange {name}", lambda channel, name=name: channel.exchange_declare(name, "topic"))
    for queue, key in table.rpc_queues().items():
        yield Attack(
            f"unbind {queue}",
            lambda channel, queue=queue, key=key: channel.queue_unbind(queue, table.RPC_EXCHANGE, key),
        )
    for queue in QUEUES:
        arguments = dict(table.queue_arguments().get(queue, {}))
        yield Attack(
            f"declare {queue}",
            lambda channel, queue=queue, arguments=arguments: channel.queue_declare(
                queue, durable=True, arguments=arguments
            ),
        )
        yield Attack(f"delete {queue}", lambda channel, queue=queue: channel.queue_delete(queue))
    for exchange in EXCHANGES:
        yield Attack(f"delete {exchange}", lambda channel, exchange=exchange: channel.exchange_delete(exchange))


def let_through(uri: str, service: str) -> list[str]:
    """The attacks that the broker does not refuse as it must."""
    with closing(User(uri)) as user:
        seen = [(attack, user.code(attack.act)) for attack in attacks(service)]
    return [f"{attack.name}: {code}" for attack, code in seen if code != attack.code]


@pytest.fixture
def users(each_as_its_user: Settings, mail: Mail, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The broker of this run has a user for each service; its queues are empty."""
    monkeypatch.setattr(logging.getLogger("pika"), "level", logging.ERROR)  # it warns of each refusal
    if not each_as_its_user.amqp_uris:
        pytest.skip("AMQP_URI brings a broker with one user for all")
    for name, uri in each_as_its_user.amqp_uris.items():
        monkeypatch.setenv(f"{name.upper()}_AMQP_URI", uri)
    return each_as_its_user


@pytest.mark.parametrize("service", NAMES)
def test_every_attack_with_the_password_of_a_service_is_refused(service: str, users: Settings) -> None:
    assert let_through(users.amqp_uris[service], service) == []


def needs(service: str) -> Iterator[Attack]:
    """What a service does every day; each has the code 0."""
    row, keys = BY_NAME[service], own_keys(service)
    user = broker_user(service)
    for type_ in CATALOGUE:
        if publisher_of(type_) == service:
            yield Attack(f"publish {type_}", publish(table.EVENTS_EXCHANGE, type_, user_id=user), 0)
    for key in keys:
        yield Attack(f"send {key} by RPC", publish(table.RPC_EXCHANGE, key, user_id=user), 0)
    for queue in table.QUEUES:
        exchange = table.failed_exchange(queue.service)
        if exchange in own_failed(service):
            for name in (queue.name, *table.retry_queues(queue.name), table.dead_letter_queue(queue.name)):
                yield Attack(f"send on to {name}", publish(exchange, name, user_id=user), 0)
    for name in own_queues(service):
        yield Attack(f"get from {name}", lambda channel, name=name: channel.basic_get(name, auto_ack=True), 0)
    for name in QUEUES:
        yield Attack(f"count {name}", lambda channel, name=name: channel.queue_declare(name, passive=True), 0)
    if row.hints == "publishes":
        yield Attack("publish a hint", publish(table.HINTS_EXCHANGE, "", user_id=user), 0)
    if row.calls:
        yield Attack("wait for replies", listen(reply_key(service, UUID), table.RPC_EXCHANGE), 0)
    if row.hints == "hears":
        yield Attack("wait for hints", listen(hints_queue(service, UUID), table.HINTS_EXCHANGE), 0)


def listen(queue: str, exchange: str) -> Act:
    """Declare a queue of its own, bind it with its name, and consume it."""

    def act(channel: BlockingChannel) -> None:
        channel.queue_declare(queue, exclusive=True, auto_delete=True)
        channel.queue_bind(queue, exchange, queue)
        channel.basic_consume(queue, print, auto_ack=True)

    return act


@pytest.mark.parametrize("service", NAMES)
def test_the_user_of_a_service_may_do_what_the_service_does(service: str, users: Settings, mail: Mail) -> None:
    with closing(User(users.amqp_uris[service])) as user:
        refused = [(need.name, code) for need in needs(service) if (code := user.code(need.act))]
    assert refused == []
    for queue in table.rpc_queues():
        mail.channel.queue_purge(queue)


def test_a_gateway_gets_the_reply_of_a_service_and_sees_who_sent_it(users: Settings) -> None:
    key = reply_key("gateway", UUID)
    with closing(User(users.amqp_uris["gateway"])) as gateway, closing(User(users.amqp_uris["auth"])) as auth:
        gateway.channel.queue_declare(key, exclusive=True)
        gateway.channel.queue_bind(key, table.RPC_EXCHANGE, key)
        assert auth.code(publish(table.RPC_EXCHANGE, key, user_id="ecom-auth")) == 0
        method, properties, _ = next(gateway.channel.consume(key, auto_ack=True, inactivity_timeout=5))
        assert (method.routing_key, properties.user_id) == (key, "ecom-auth")


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_a_message_that_reaches_other_queues_by_its_headers_still_says_who_sent_it(
    header: str, users: Settings, mail: Mail
) -> None:
    """RabbitMQ 3.10 does not compare these keys with the user's patterns; newer ones refuse the message."""
    with closing(User(users.amqp_uris["inventory"])) as inventory:
        copied = {header: ["payment.succeeded"]}
        code = inventory.code(
            publish(table.EVENTS_EXCHANGE, "inventory.committed", headers=copied, user_id="ecom-inventory")
        )
        assert code in (0, REFUSED)
        forged = publish(table.EVENTS_EXCHANGE, "inventory.committed", headers=copied, user_id="ecom-payment")
        assert inventory.code(forged) == FORGED_USER
    if code == 0:
        assert mail.take("q.order.payment-result").properties["user_id"] == "ecom-inventory"
    mail.empty()


MUTANT = "mutant"


@pytest.fixture
def wide_rights(users: Settings, servers_of_this_run: Servers, tmp_path: Path) -> Iterator[dict[str, str]]:
    """URIs of two services in a vhost of their own, where they may do everything and speak for anybody."""
    broker = servers_of_this_run.broker
    assert broker
    names = {service: f"{MUTANT}-{service}" for service in ("gateway", "order")}
    made = definitions.definitions(MUTANT, dict.fromkeys(names.values(), MUTANT), dict.fromkeys(names.values(), WIDE))
    for row in made["users"]:
        row["tags"] = "impersonator"
    made["permissions"].append(definitions.permission(broker.user, MUTANT, WIDE))
    file = tmp_path / "wide.json"
    file.write_text(json.dumps({"vhosts": [{"name": MUTANT}], **made}))
    broker.rabbitmqctl("import_definitions", str(file))
    declare.apply(broker.amqp_uri_of(MUTANT))
    where = broker.amqp_uri_of(MUTANT).rpartition("@")[2]
    yield {service: f"amqp://{name}:{MUTANT}@{where}" for service, name in names.items()}
    # All in one call, which takes two seconds.
    ends = [f'rabbit_auth_backend_internal:delete_user(<<"{name}">>, <<"test">>)' for name in names.values()]
    broker.rabbitmqctl("eval", f'rabbit_vhost:delete(<<"{MUTANT}">>, <<"test">>), {", ".join(ends)}.')


# The attacks succeed here: they declare and delete queues whose dead letters RabbitMQ 3.10 is about to forward, and now
# and then that ends its forwarder for all other queues. So this is not for a broker on which other tests follow.
@pytest.mark.long
def test_each_attack_is_noticed_where_the_rights_are_too_wide(wide_rights: dict[str, str]) -> None:
    for service, uri in wide_rights.items():
        noticed = {line.rpartition(": ")[0] for line in let_through(uri, service)}
        assert {attack.name for attack in attacks(service)} - noticed == set()


def test_the_users_of_this_run_have_no_drift_and_a_user_of_ours_that_is_not_in_the_table_is_drift(
    users: Settings, servers_of_this_run: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, file = servers_of_this_run.broker, tmp_path / "exported.json"
    assert broker
    broker.rabbitmqctl("export_definitions", str(file))
    said = CliRunner().invoke(ecom, ["topology", "check", "--definitions", str(file)])
    assert (said.exit_code, f"{len(users.amqp_uris)} users" in said.output) == (0, True), said.output
    exported = json.loads(file.read_text())
    exported["users"].append({**exported["users"][0], "name": "guest"})
    file.write_text(json.dumps(exported))
    said = CliRunner().invoke(ecom, ["topology", "check", "--definitions", str(file)])
    assert (said.exit_code, said.output) == (1, "user guest: is not in the table\n")
