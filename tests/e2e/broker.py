"""The broker for tests: listening to events, repeating them, counting and emptying queues."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

from shared.envelope import Envelope
from topology.services import publisher_of
from topology.table import EVENTS_EXCHANGE, UNHEARD, queue_arguments
from topology.users import broker_user, service_of


@dataclass(frozen=True)
class Heard:
    """One message as it crossed the exchange."""

    routing_key: str
    body: bytes
    properties: pika.BasicProperties
    event: dict[str, Any] = field(hash=False, compare=False)

    @property
    def order_id(self) -> str | None:
        """The order that the event is about; None if it is about none."""
        found: str | None = self.event.get("payload", self.event).get("order_id")
        return found

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


class Publishers:
    """Publishes events as the services do: each on a connection of the user who publishes it.

    Where the services have no users of their own, all is published by `amqp_uri`, and says nothing of its sender.
    """

    def __init__(self, amqp_uri: str) -> None:
        self._amqp_uri = amqp_uri
        self._stack = ExitStack()
        self._channels: dict[str, BlockingChannel] = {}

    def __enter__(self) -> Publishers:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def publish(self, type_: str, body: bytes, message_id: str | None = None) -> None:
        """Publish a message as an event of this type."""
        user = broker_user(str(publisher_of(type_)))
        properties = pika.BasicProperties(message_id=message_id, type=type_, user_id=user if _uri_of(user) else None)
        self._send(type_, body, properties)

    def repeat(self, heard: Heard) -> None:
        """Publish a message again as it was, as the user who published it."""
        self._send(heard.routing_key, heard.body, heard.properties)

    def _send(self, type_: str, body: bytes, properties: pika.BasicProperties) -> None:
        uri = _uri_of(properties.user_id or "") or self._amqp_uri
        if uri not in self._channels:
            self._channels[uri] = self._stack.enter_context(channel(uri))
        self._channels[uri].basic_publish(EVENTS_EXCHANGE, type_, body, properties, mandatory=type_ not in UNHEARD)


def _uri_of(user: str) -> str:
    """The URI of a service's user; empty where it has none, or this is no service's user."""
    return os.environ.get(f"{(service_of(user) or '').upper()}_AMQP_URI", "")


def publish_by_hand(amqp_uri: str, type_: str, payload: dict[str, Any]) -> None:
    """Publish a bare payload, as a stock nameko shell does."""
    with channel(amqp_uri) as opened:
        opened.basic_publish(EVENTS_EXCHANGE, type_, json.dumps(payload).encode(), mandatory=True)


def publish(amqp_uri: str, event: Envelope) -> None:
    """Publish an event as its service does."""
    with Publishers(amqp_uri) as publishers:
        publishers.publish(event.type, event.to_json().encode(), str(event.message_id))


def depths(amqp_uri: str, queues: Iterable[str]) -> dict[str, int]:
    """How many messages wait in each queue."""
    with channel(amqp_uri) as opened:
        return {name: opened.queue_declare(name, passive=True).method.message_count for name in queues}


def consumers(amqp_uri: str, queues: Iterable[str]) -> dict[str, int]:
    """How many consumers each queue has."""
    with channel(amqp_uri) as opened:
        return {name: opened.queue_declare(name, passive=True).method.consumer_count for name in queues}


def purge_all(amqp_uri: str) -> None:
    """Empty every queue of the topology."""
    with channel(amqp_uri) as opened:
        for name in queue_arguments():
            opened.queue_purge(name)
