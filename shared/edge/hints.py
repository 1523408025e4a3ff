"""Publishes hints that something has changed, for the waiting clients of a gateway (`shared.edge.watch`).

A hint is published once and unconfirmed, to the gateways that listen at that moment. Nothing may depend on it.
"""

from __future__ import annotations

import json

import amqp
from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider

from shared.changes import notify_after_commit
from shared.edge.broker import BrokerConnection
from shared.edge.database import Database
from shared.edge.rpc import TRANSIENT, ConnectedExtension
from shared.edge.wake import Wake
from topology.table import HINTS_EXCHANGE

# How often the connection, on which it only publishes, is read to notice that the broker has gone.
READ_S = 0.5
# Ids in one message. A batch changes at most 50; several batches share a message.
MOST_IDS = 500
# More ids than this wait only after a long outage, when the hints are useless.
MOST_WAITING = 10_000


class Notifier(ConnectedExtension):
    """The connection on which a service publishes its hints."""

    def __init__(self) -> None:
        super().__init__()
        self._ids: set[str] = set()
        self._wake = Wake()

    def not_ready_reason(self) -> str | None:
        """A service is ready without it: no work depends on a hint."""
        return None

    def notify(self, ids: set[str]) -> None:
        """Publish soon that these have changed. Returns at once."""
        if len(self._ids) < MOST_WAITING:
            self._ids |= ids
        self._wake.send()

    def stop(self) -> None:
        self.kill()

    def _serve(self, connection: BrokerConnection) -> None:
        while not self._stopping:
            told = [] if connection.alarm else sorted(self._ids)  # later they would be of no use
            self._ids = set()
            for first in range(0, len(told), MOST_IDS):
                body = json.dumps(told[first : first + MOST_IDS])
                message = amqp.Message(body, content_type="application/json", delivery_mode=TRANSIENT)
                connection.channel.basic_publish(message, HINTS_EXCHANGE, "")
            while connection.read(timeout_s=0):
                pass
            self._wake.wait(READ_S)


class Hints(DependencyProvider):
    """Publishes what the service's transactions report by `shared.changes.changed`."""

    notifier = Notifier()

    def start(self) -> None:
        database = next(item for item in self.container.dependencies if isinstance(item, Database))
        notify_after_commit(database.Session, self.notifier.notify)

    def get_dependency(self, worker_ctx: WorkerContext) -> None:
        return None
