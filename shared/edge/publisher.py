"""Publishing many messages with pipelined confirms: one wait for all of them, the outcome of each known.

kombu's publisher waits for one confirm at a time; 500 confirmed messages take a fraction of a second here. Every
publish is `mandatory` by default: without it an unroutable message is confirmed and lost.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import amqp

from shared.edge import green
from shared.edge.broker import BROKER_ERRORS, BrokerConnection
from shared.edge.frames import any_properties, publish_method, usual_properties
from shared.errors import BrokerInAlarm, PublishFailed

CONTENT_TYPE = "application/json"
PERSISTENT = 2

# A broker that is frozen blocks a publisher for ever; this is when we call it an outage.
PUBLISH_DEADLINE_S = 5.0

# How many messages go to the socket at once. They are copied for it, and a body may have more than 64 KiB.
WRITTEN_TOGETHER = 50


@dataclass(frozen=True)
class Outgoing:
    """One message to publish."""

    exchange: str
    routing_key: str
    body: str | bytes
    message_id: str
    type: str = ""
    headers: Mapping[str, Any] = field(default_factory=dict)
    mandatory: bool = True
    properties: Mapping[str, Any] = field(default_factory=dict)  # others, and instead of the ones all have


# Properties and headers travel in one frame, of at most 128 KiB with RabbitMQ's default.
MAX_PROPERTIES_BYTES = 120_000

LEFT_OUT = "x-publishers-left-out"


def fits(message: Outgoing) -> bool:
    """Whether AMQP can carry its properties and headers: each of a type that it knows, and all in one frame."""
    return not unfit(message)


def unfit(message: Outgoing) -> str:
    """Why AMQP cannot carry its properties and headers; nothing if it can."""
    try:
        size = len(amqp.Message(b"", **_properties(message))._serialize_properties())
    except (amqp.AMQPError, struct.error, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as no:
        return str(no) or type(no).__name__
    return "" if size <= MAX_PROPERTIES_BYTES else f"{size} bytes, and one frame holds {MAX_PROPERTIES_BYTES}"


def with_publishers(message: Outgoing, headers: Mapping[str, Any], properties: Mapping[str, Any]) -> Outgoing:
    """A message that is sent on, with what its publisher wrote beside the body; our own headers win.

    If AMQP cannot carry that, all of the publisher's is left out and the header LEFT_OUT says so.
    """
    whole = replace(message, headers={**headers, **message.headers}, properties=properties)
    if fits(whole):
        return whole
    return replace(message, headers={**message.headers, LEFT_OUT: "AMQP cannot carry the publisher's headers"})


def _properties(message: Outgoing) -> dict[str, Any]:
    return {
        "content_type": CONTENT_TYPE,
        "content_encoding": "utf-8",
        "timestamp": int(time.time()),
        **message.properties,
        "delivery_mode": PERSISTENT,
        "message_id": message.message_id,
        "type": message.type,
        "application_headers": dict(message.headers),
    }


class Publisher:
    """A connection of its own for publishing, opened when first used and again after any fault."""

    def __init__(self, uri: str, heartbeat_s: float) -> None:
        self.uri = uri
        self.heartbeat_s = heartbeat_s
        self._connection: BrokerConnection | None = None
        self._next_tag = 1
        self._outcomes: dict[int, str | None] = {}
        self._returned: dict[str, str] = {}
        self._waiting: set[int] = set()

    def publish_all(self, messages: Sequence[Outgoing], deadline_s: float = PUBLISH_DEADLINE_S) -> list[str | None]:
        """Publish in order and wait for every confirm.

        Returns for each message None when the broker has it safe, else the reason why not (nacked, or returned as
        unroutable). Raises PublishFailed when the broker is away or the deadline passed, and BrokerInAlarm, which is
        one, as soon as the broker has an alarm: then any of them may or may not have been taken, and publishing them
        all again is safe for consumers with an inbox.
        """
        if not messages:
            return []
        try:
            with green.Timeout(deadline_s):
                return self._publish(messages)
        except (*BROKER_ERRORS, green.Timeout) as error:
            self.close()
            raise PublishFailed(f"no confirm from the broker: {type(error).__name__} {error}") from error

    def _publish(self, messages: Sequence[Outgoing]) -> list[str | None]:
        connection = self._open()
        connection.reset_silence()
        if connection.alarm:
            # Nothing more is sent: the broker would take in at the end of the alarm whatever is repeated until then.
            while connection.read(timeout_s=0):
                pass
            _check_alarm(connection)
        first = self._next_tag
        self._outcomes.clear()
        self._returned.clear()
        self._waiting = set(range(first, first + len(messages)))
        for start in range(0, len(messages), WRITTEN_TOGETHER):
            with connection.in_one_piece():
                for message in messages[start : start + WRITTEN_TOGETHER]:
                    self._send(connection, message)
        while self._waiting:
            connection.read(timeout_s=1.0)
            _check_alarm(connection)
        return [
            self._outcomes.get(first + place) or self._returned.get(message.message_id)
            for place, message in enumerate(messages)
        ]

    def _send(self, connection: BrokerConnection, message: Outgoing) -> None:
        properties = _properties(message)
        serialize = any_properties if message.properties else usual_properties
        connection.channel.publish(
            publish_method(message.exchange, message.routing_key, message.mandatory),
            serialize(connection.channel.signed(properties)),
            message.body.encode() if isinstance(message.body, str) else message.body,
        )
        self._next_tag += 1

    def _open(self) -> BrokerConnection:
        if self._connection is None:
            connection = BrokerConnection(self.uri, self.heartbeat_s)
            channel = connection.channel
            channel.events["basic_ack"].add(lambda tag, multiple: self._settle(tag, multiple, None))
            channel.events["basic_nack"].add(lambda tag, multiple: self._settle(tag, multiple, "nacked by the broker"))
            # A returned message is confirmed too: the return comes first.
            channel.events["basic_return"].add(self._on_return)
            channel.confirm_select()
            self._next_tag = 1
            self._connection = connection
        return self._connection

    def _settle(self, tag: int, multiple: bool, outcome: str | None) -> None:
        tags = [waiting for waiting in self._waiting if waiting <= tag] if multiple else [tag]
        for settled in tags:
            self._outcomes[settled] = outcome
            self._waiting.discard(settled)

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: amqp.Message) -> None:
        self._returned[message.properties["message_id"]] = f"unroutable: no queue for {exchange} {routing_key}"

    def close(self) -> None:
        """Let go of the connection; the next publish opens a new one."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None


def _check_alarm(connection: BrokerConnection) -> None:
    if connection.alarm:
        raise BrokerInAlarm(connection.alarm)
