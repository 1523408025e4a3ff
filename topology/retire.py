"""Takes a queue out of the broker in two releases, so that no message is lost and no version misses its queue.

The release that takes its bindings out of the table calls `retire` when it runs everywhere: the queue is unbound and
its consumers drain it. The next release takes the queue itself out of the table and calls `retire` again: what is empty
and has no consumer is deleted, with its retry queues and its DLQ.
"""

from __future__ import annotations

from dataclasses import dataclass

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from shared.errors import CannotWork, Conflict
from topology import broker_uri, table
from topology.declare import BROKER_ERRORS, management_of, parameters


@dataclass(frozen=True)
class Retired:
    """What was done: the routing keys that are unbound now, and the queues that are deleted."""

    unbound: tuple[str, ...]
    deleted: tuple[str, ...]


@dataclass(frozen=True)
class _Use:
    """What keeps a queue from being deleted."""

    name: str
    messages: int
    consumers: int

    def __str__(self) -> str:
        return f"{self.name} has {self.messages} messages and {self.consumers} consumers"


def retire(amqp_uri: str, management_url: str, queue: str) -> Retired:
    """Unbind a queue and, if the table does not have it any more, delete it. It may be repeated.

    AMQP cannot read bindings, so the management API is asked for them. Raises Conflict for a queue that the table
    binds, and for one to delete that holds messages or has consumers; CannotWork when the broker is away or refuses.
    """
    known = table.BY_NAME.get(queue)
    if known is not None and known.bindings:
        raise Conflict(
            f"the table binds {queue} to {', '.join(known.bindings)}: only a queue that it does not bind can be retired"
        )
    seen = management_of(management_url, amqp_uri).bindings(broker_uri.parse(amqp_uri).vhost)
    keys = sorted(key for exchange, name, key in seen if (exchange, name) == (table.EVENTS_EXCHANGE, queue))
    try:
        connection = pika.BlockingConnection(parameters(amqp_uri))
        try:
            for key in keys:
                connection.channel().queue_unbind(queue, table.EVENTS_EXCHANGE, key)
            return Retired(tuple(keys), () if known else _delete(connection, queue))
        finally:
            connection.close()
    except BROKER_ERRORS as error:
        raise CannotWork(f"the broker at {broker_uri.parse(amqp_uri)} cannot be used: {error}") from error


def _delete(connection: pika.BlockingConnection, queue: str) -> tuple[str, ...]:
    """Delete a queue with its retry queues and its DLQ, unless one of them is in use; those that were there."""
    names = (queue, *table.retry_queues(queue), table.dead_letter_queue(queue))
    uses = [use for name in names if (use := _use(connection.channel(), name))]
    busy = [use for use in uses if use.messages or use.consumers]
    if busy:
        raise Conflict(f"nothing is deleted: {'; '.join(map(str, busy))}")
    for use in uses:
        connection.channel().queue_delete(use.name)
    return tuple(use.name for use in uses)


def _use(channel: BlockingChannel, name: str) -> _Use | None:
    try:
        answer = channel.queue_declare(name, passive=True).method
    except ChannelClosedByBroker as refusal:
        if refusal.reply_code != 404:
            raise
        return None
    return _Use(name, int(answer.message_count), int(answer.consumer_count))
