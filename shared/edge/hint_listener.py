"""Hears the hints that something has changed, once for all of a process that waits for them."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Sequence

import amqp

from shared.edge.broker import BrokerConnection
from shared.edge.rpc import ConnectedExtension
from shared.edge.settings import own_name
from topology.table import HINTS_EXCHANGE
from topology.users import hints_queue

log = logging.getLogger(__name__)


class HintListener(ConnectedExtension):
    """Hands each hint to everybody in `callbacks`, as a list of ids. Its connection and its queue are its own.

    Nothing may depend on a hint: the broker keeps none for a listener who is away.
    """

    def __init__(self) -> None:
        super().__init__()
        self.callbacks: list[Callable[[Sequence[str]], None]] = []

    def not_ready_reason(self) -> str | None:
        """A service is ready without it: nothing depends on a hint."""
        return None

    def stop(self) -> None:
        self.kill()

    def _serve(self, connection: BrokerConnection) -> None:
        channel = connection.channel
        queue = hints_queue(own_name(self.container), str(uuid.uuid4()))
        with connection.bounded():
            channel.queue_declare(queue, exclusive=True, auto_delete=True)
            channel.queue_bind(queue, HINTS_EXCHANGE)
            channel.basic_consume(queue, callback=self.receive, no_ack=True)
        while not self._stopping:
            connection.read(timeout_s=0.5)

    def receive(self, message: amqp.Message) -> None:
        """Hand on one hint. A message that is none is ignored."""
        try:
            ids = json.loads(message.body)
        except ValueError:
            log.warning("a hint that is no JSON was ignored")
            return
        if isinstance(ids, list):
            hinted = [id_ for id_ in ids if isinstance(id_, str)]
            for callback in self.callbacks:
                callback(hinted)
