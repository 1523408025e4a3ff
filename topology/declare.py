"""Declares `topology.table` on the broker, and reports drift: where broker and table differ. No other code declares.

    apply(amqp_uri)   declares what is missing; leaves what exists with other arguments, and raises TopologyDrift for it
    check(amqp_uri)   lists the drift and changes nothing

A queue of calls of another type than RPC_QUEUE_TYPE is drift that `apply` does not raise: calls cross it all the same,
and an upgrade from a version that had classic ones only must not stop there.

`check` cannot see bindings over AMQP alone. The protocol has no passive bind, and the only probe, a message that is
published through the binding, would reach the consumers. (In a transaction that is rolled back the broker routes the
message but returns nothing.) With the URL of a management API `check` compares the bindings as well. Without one, run
`apply`: binding again changes nothing. `check` does not see arguments that the broker itself does not compare: those of
an exchange other than alternate-exchange.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker

from shared.errors import CannotWork, TopologyDrift
from topology import broker_uri, table
from topology.management import Management
from topology.tls import client_context

CONNECT_TIMEOUT_S = 5.0
# A frozen broker neither answers nor closes the connection. pika gives up after four missed heartbeats.
HEARTBEAT_S = 3
# A broker with a memory or disk alarm stops reading from connections that publish.
BLOCKED_TIMEOUT_S = 10.0

# The properties of a declare beside its arguments. The broker compares them too, and names them in the same way.
DURABLE: Mapping[str, table.Argument | bool] = {"durable": True, "auto_delete": False}

NO_AT_LEAST_ONCE = (
    "feature flag stream_queue is off, so at-least-once dead-lettering falls back silently to one that loses "
    "messages; run: rabbitmqctl enable_feature_flag stream_queue"
)

# A handshake that takes too long is not an AMQPError, and pika does not wrap an OSError.
BROKER_ERRORS = (AMQPError, AMQPConnectorException, OSError)

Properties = dict[str, table.Argument | bool]


@dataclass(frozen=True)
class Drift:
    """One difference between broker and table."""

    kind: str  # broker, exchange, queue, binding, user, permission or topic permission
    name: str
    problem: str

    def __str__(self) -> str:
        return f"{f'{self.kind} {self.name}'.strip()}: {self.problem}"


TYPE_OF_CALLS = (
    "{problem}. Calls cross it all the same. To replace it, when few calls come: `rabbitmqctl delete_queue -p VHOST "
    "{name}`, then `ecom topology apply`. To keep it: set RPC_QUEUE_TYPE to its type"
)


@dataclass(frozen=True)
class Thing:
    """An exchange or a queue as the table wants it."""

    kind: str
    name: str
    properties: Properties


def things(rpc_queue_type: str = table.CLASSIC) -> list[Thing]:
    """Every exchange and queue. Targets come before sources, so that a dead letter always finds its target."""
    exchanges = [Thing("exchange", name, {"type": kind, **DURABLE}) for name, kind in table.exchanges().items()]
    arguments = table.queue_arguments()
    dead = [table.dead_letter_queue(queue.name) for queue in table.QUEUES]
    main = [queue.name for queue in table.QUEUES]
    retry = [name for queue in table.QUEUES for name in table.retry_queues(queue.name)]
    of_calls = {**DURABLE, **table.rpc_queue_arguments(rpc_queue_type)}
    calls = [Thing("queue", name, of_calls) for name in table.rpc_queues()]
    return exchanges + [Thing("queue", name, {**DURABLE, **arguments[name]}) for name in (*dead, *main, *retry)] + calls


def apply(amqp_uri: str, rpc_queue_type: str = table.CLASSIC) -> list[Drift]:
    """Declare what the broker lacks. It may be repeated, also by two processes at the same time.

    What exists with other properties than in the table is left as it is, and everything else is declared. Then
    TopologyDrift is raised with the list of differences. Raises CannotWork when the broker is away or refuses.
    Returns the queues of calls that have another type than they should, which is no reason to raise.
    """
    with _broker(amqp_uri) as broker:
        found = [difference for thing in things(rpc_queue_type) for difference in broker.declare(thing)]
        left = [_with_advice(difference) for difference in found if _is_type_of_calls(difference)]
        drift = [difference for difference in found if not _is_type_of_calls(difference)]
        for binding in table.bindings():
            drift += broker.bind(*binding)
        drift += broker.at_least_once_drift()
    if drift:
        raise TopologyDrift(
            f"the broker does not look like the table: {'; '.join(map(str, drift))}",
            {"drift": [vars(difference) for difference in (*drift, *left)]},
        )
    return left


def check(amqp_uri: str, management_url: str = "", rpc_queue_type: str = table.CLASSIC) -> list[Drift]:
    """The differences between broker and table; empty when there are none. Changes nothing.

    Bindings are compared only when `management_url` (http://host:15672) is given; the top of this module says why.
    Raises CannotWork when the broker, or the management API, is away or refuses.
    """
    with _broker(amqp_uri) as broker:
        drift = []
        for thing in things(rpc_queue_type):
            # A declare would create what is missing, so first ask whether it exists.
            drift += broker.declare(thing) if broker.has(thing) else [Drift(thing.kind, thing.name, "is missing")]
        drift = [_with_advice(found) if _is_type_of_calls(found) else found for found in drift]
        drift += broker.at_least_once_drift()
    if management_url:
        vhost = broker_uri.parse(amqp_uri).vhost
        drift += binding_drift(management_of(management_url, amqp_uri).bindings(vhost))
    return drift


def _is_type_of_calls(found: Drift) -> bool:
    return found.name in table.rpc_queues() and found.problem.startswith("x-queue-type is ")


def _with_advice(found: Drift) -> Drift:
    problem = found.problem.replace("not set", table.CLASSIC)  # which is what a broker makes of a queue without a type
    return replace(found, problem=TYPE_OF_CALLS.format(problem=problem, name=found.name))


def management_of(url: str, amqp_uri: str) -> Management:
    """The management API at a URL, whose user is that of the URL or else that of the AMQP URI."""
    address = broker_uri.parse(amqp_uri)
    return Management(url, address.user, address.password, address.tls)


def binding_drift(seen: set[tuple[str, str, str]]) -> list[Drift]:
    """The drift of the bindings that the broker has, as (exchange, queue, routing key).

    Other programs may bind queues of their own to the events exchange. Our queues have the bindings of the table only.
    """
    wanted = set(table.bindings())
    queues = {*table.queue_arguments(), *table.rpc_queues()}
    failed = {table.failed_exchange(service) for service in table.CONSUMERS}
    ours = {found for found in seen if found[0] and (found[1] in queues or found[0] in failed)}
    return [Drift("binding", _arrow(*lost), "is missing") for lost in sorted(wanted - seen)] + [
        Drift("binding", _arrow(*extra), "is not in the table") for extra in sorted(ours - wanted)
    ]


def _arrow(exchange: str, queue: str, routing_key: str) -> str:
    return f"{exchange} -> {queue} ({routing_key})"


class _Broker:
    """A connection. The broker closes a channel to refuse a declare; the next use opens another."""

    def __init__(self, connection: pika.BlockingConnection) -> None:
        self.connection = connection
        self._channel: BlockingChannel | None = None

    @property
    def channel(self) -> BlockingChannel:
        if self._channel is None or not self._channel.is_open:
            self._channel = self.connection.channel()
        return self._channel

    def has(self, thing: Thing) -> bool:
        """Whether an exchange or queue of that name exists."""
        try:
            if thing.kind == "exchange":
                self.channel.exchange_declare(thing.name, passive=True)
            else:
                self.channel.queue_declare(thing.name, passive=True)
        except ChannelClosedByBroker as refusal:
            if refusal.reply_code == 403:
                raise
            # 405: the queue exists, and belongs exclusively to another connection.
            return bool(refusal.reply_code != 404)
        return True

    def declare(self, thing: Thing) -> list[Drift]:
        """Declare it. When it exists with other properties, return each difference.

        The broker names one difference at a time. So each value that it names is taken over and the declare is
        repeated, until the broker agrees.
        """
        asked = dict(thing.properties)
        drift: list[Drift] = []
        while True:
            try:
                self._declare(thing, asked)
                return drift
            except ChannelClosedByBroker as refusal:
                if refusal.reply_code == 403:
                    raise
                difference = _difference(refusal.reply_text)
                if difference is None:
                    return [*drift, Drift(thing.kind, thing.name, refusal.reply_text)]
            name, value = difference
            wanted = thing.properties.get(name)
            if asked.get(name) == value:  # taken over already: the difference is one that we cannot express
                return [*drift, Drift(thing.kind, thing.name, f"{name} differs")]
            drift.append(Drift(thing.kind, thing.name, f"{name} is {_shown(value)}, the table says {_shown(wanted)}"))
            if value is None:
                del asked[name]
            else:
                asked[name] = value

    def _declare(self, thing: Thing, properties: Properties) -> None:
        arguments = {name: value for name, value in properties.items() if name not in ("type", *DURABLE)}
        durable, auto_delete = bool(properties["durable"]), bool(properties["auto_delete"])
        if thing.kind == "exchange":
            self.channel.exchange_declare(
                thing.name,
                exchange_type=str(properties["type"]),
                durable=durable,
                auto_delete=auto_delete,
                arguments=arguments or None,
            )
        else:
            self.channel.queue_declare(thing.name, durable=durable, auto_delete=auto_delete, arguments=arguments)

    def bind(self, exchange: str, queue: str, routing_key: str) -> list[Drift]:
        """Bind the queue. Nothing changes when it is bound already."""
        try:
            self.channel.queue_bind(queue, exchange, routing_key)
        except ChannelClosedByBroker as refusal:
            if refusal.reply_code != 404:
                raise
            # The queue could not be declared, which is in the list already. The other bindings are still to be made.
            return [Drift("binding", _arrow(exchange, queue, routing_key), refusal.reply_text)]
        return []

    def at_least_once_drift(self) -> list[Drift]:
        """Drift when quorum queues do not dead-letter at least once. Call this last: that answer closes the connection.

        The probe is a declare that never succeeds, because a stream cannot be exclusive. A broker without the feature
        flag refuses streams altogether, and closes the connection instead of the channel.
        """
        try:
            self.channel.queue_declare("ecom.probe", durable=True, exclusive=True, arguments={"x-queue-type": "stream"})
        except ChannelClosedByBroker:
            return []
        except ConnectionClosedByBroker as refusal:
            if "feature flag" not in refusal.reply_text:
                raise
            return [Drift("broker", "", NO_AT_LEAST_ONCE)]
        return []


@contextmanager
def _broker(amqp_uri: str) -> Iterator[_Broker]:
    """Open a connection for the block. Any failure of it is raised as CannotWork, in one line."""
    address = broker_uri.parse(amqp_uri)
    connection = None
    try:
        connection = pika.BlockingConnection(parameters(amqp_uri))
        yield _Broker(connection)
    except BROKER_ERRORS as error:
        raise CannotWork(f"the broker at {address} cannot be used: {_reason(error)}") from error
    finally:
        if connection is not None and connection.is_open:
            _close(connection)


def _close(connection: pika.BlockingConnection) -> None:
    # All answers are in, so a failure to close does not matter.
    with suppress(*BROKER_ERRORS):
        connection.close()


def parameters(amqp_uri: str) -> pika.ConnectionParameters:
    """What pika needs to connect. Raises ConfigurationFault for a URI that cannot be read, OSError for a TLS file."""
    address = broker_uri.parse(amqp_uri)
    return pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=pika.PlainCredentials(address.user, address.password),
        ssl_options=pika.SSLOptions(client_context(address.tls), address.host) if address.tls else None,
        connection_attempts=1,
        socket_timeout=CONNECT_TIMEOUT_S,
        stack_timeout=CONNECT_TIMEOUT_S * 2,
        heartbeat=HEARTBEAT_S,
        blocked_connection_timeout=BLOCKED_TIMEOUT_S,
    )


def _reason(error: Exception) -> str:
    """The text of the innermost cause: pika wraps it in up to three exceptions of its own."""
    while len(error.args) == 1 and isinstance(error.args[0], Exception):
        error = error.args[0]
    cause = getattr(error, "exception", None)
    if isinstance(cause, Exception):
        return _reason(cause)
    text = getattr(error, "reply_text", "") or str(error) or repr(error)
    return " ".join(text.split())


# "inequivalent arg 'x-message-ttl' for queue 'q.x' in vhost '/': received '1000' but current is '5000'". When one
# side lacks the argument, its value is "none" and the other one is "the value '5000' of type 'signedint'".
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' for .* but current is (?:the value )?"
    r"(?:(?P<none>none)|'(?P<value>.*?)'(?: of type '(?P<type>\w+)')?)$",
    re.DOTALL,
)


def _difference(refusal: str) -> tuple[str, table.Argument | bool | None] | None:
    """The property that differs and its value at the broker. None when the text names no property."""
    found = _INEQUIVALENT.search(refusal)
    if found is None:
        return None
    name, value = found["name"], found["value"]
    if found["none"]:
        return name, None
    if name in DURABLE or found["type"] == "bool":
        return name, value == "true"
    return name, int(value) if value.isdecimal() and found["type"] != "longstr" else value


def _shown(value: table.Argument | bool | None) -> str:
    if value is None:
        return "not set"
    return json.dumps(value) if value == "" or isinstance(value, bool) else str(value)
