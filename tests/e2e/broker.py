"""The broker for tests: listening to events, repeating them, counting and emptying queues."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

from shared.envelope import Envelope
from topology.table import EVENTS_EXCHANGE, queue_arguments


@dataclass(frozen=True)
class Heard:
    """One message as it crossed the exchange."""

    routing_key: str
    body: bytes
    properties: pika.BasicProperties
    event: dict[str, Any] = field(hash=False, compare=False)

    @property
    def order_id(self) -> str:
        """The order that the event is about."""
        return str(self.event.get("payload", self.event)["order_id"])

    @property
    def key(self) -> str:
        """By what it is known again; a bare payload, sent by hand, by its words."""
        return str(self.event.get("message_id") or self.body)


@contextmanager
def channel(amqp_uri: str) -> Iterator[BlockingChannel]:
    """A channel on a connection without heartbeats: a test does not serve them while it does other things.

    What is published is confirmed: a quorum queue may lose what came right before the channel was closed.
    """
    parameters = pika.URLParameters(amqp_uri)
    parameters.heartbeat = 0
    connection = pika.BlockingConnection(parameters)
    try:
        opened = connection.channel()
        opened.confirm_delivery()
        yield opened
    finally:
        if connection.is_open:
            connection.close()


class Tap:
    """A queue that gets every event from now on."""

    def __init__(self, amqp_uri: str) -> None:
        self._open = channel(amqp_uri)
        self.channel = self._open.__enter__()
        self.queue = self.channel.queue_declare("", exclusive=True).method.queue
        self.channel.queue_bind(self.queue, EVENTS_EXCHANGE, "#")
        self.heard: list[Heard] = []

    def new(self) -> list[Heard]:
        """The events since the last call; they are also added to `heard`."""
        fresh = []
        while True:
            method, properties, body = self.channel.basic_get(self.queue, auto_ack=True)
            if method is None:
                break
            fresh.append(Heard(method.routing_key, body, properties, json.loads(body)))
        self.heard += fresh
        return fresh

    def of(self, order_id: str) -> list[Heard]:
        """All events of one order so far."""
        self.new()
        return [item for item in self.heard if item.order_id == order_id]

    def close(self) -> None:
        """Take the queue away."""
        self._open.__exit__(None, None, None)


def repeat(into: BlockingChannel, heard: Heard) -> None:
    """Publish a message again as it was."""
    into.basic_publish(EVENTS_EXCHANGE, heard.routing_key, heard.body, heard.properties)


def publish_by_hand(amqp_uri: str, type_: str, payload: dict[str, Any]) -> None:
    """Publish a bare payload, as a stock nameko shell does."""
    with channel(amqp_uri) as opened:
        opened.basic_publish(EVENTS_EXCHANGE, type_, json.dumps(payload).encode(), mandatory=True)


def publish(amqp_uri: str, event: Envelope) -> None:
    """Publish an event as a service does."""
    properties = pika.BasicProperties(message_id=str(event.message_id), type=event.type)
    with channel(amqp_uri) as opened:
        opened.basic_publish(EVENTS_EXCHANGE, event.type, event.to_json().encode(), properties, mandatory=True)


def depths(amqp_uri: str, queues: Iterable[str]) -> dict[str, int]:
    """How many messages wait in each queue."""
    with channel(amqp_uri) as opened:
        return {name: opened.queue_declare(name, passive=True).method.message_count for name in queues}


def purge_all(amqp_uri: str) -> None:
    """Empty every queue of the topology."""
    with channel(amqp_uri) as opened:
        for name in queue_arguments():
            opened.queue_purge(name)
