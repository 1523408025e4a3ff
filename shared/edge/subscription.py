"""A consumer's subscription to its queue: how many messages it may hold, and which replica gets them first."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import amqp

from shared.edge.broker import BrokerConnection

# Two batches: one in work, one on its way. A new process starts with 1, so that a message which kills it is
# charged alone; it opens after the first that passed.
PREFETCH = 100
PREFETCH_CAREFUL = 1

# RabbitMQ delivers to the consumer of the highest priority that has room. Each draws its own: so one replica gets full
# batches of a queue, and the others what it has no room for (docs/decisions/0026).
PRIORITIES = 1_000_000


class Subscription:
    """At most one at a time on the connection's channel. `prefetch` is that of the last one, 0 before the first.

    `in_turn`: the replicas get messages in turn, because what takes long is calls, and each has places for some.
    """

    def __init__(self, queue: str, receive: Callable[[amqp.Message], None], in_turn: bool = False) -> None:
        self.queue, self.receive = queue, receive
        self.prefetch = 0
        self._arguments = {} if in_turn else {"x-priority": random.randrange(PRIORITIES)}
        self._tag: str | None = None

    def forget(self) -> None:
        """The connection with the subscription on it has gone."""
        self._tag, self.prefetch = None, 0

    def take(self, connection: BrokerConnection, prefetch: int) -> None:
        """Consume with this prefetch, which is fixed when a consumer starts: 4.3 counts a global one per consumer."""
        self.cancel(connection)
        channel = connection.channel
        with connection.bounded():
            channel.basic_qos(0, prefetch, False)
            self._tag = channel.basic_consume(self.queue, callback=self.receive, arguments=self._arguments)
        self.prefetch = prefetch

    def cancel(self, connection: BrokerConnection, until: float = math.inf) -> None:
        """Take no further messages. `until` is a moment of the monotonic clock: the wait for the broker ends then."""
        if self._tag is not None:
            with connection.bounded(until):
                connection.channel.basic_cancel(self._tag)
            self._tag = None
