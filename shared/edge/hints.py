"""Hints that something has changed, from a service to whoever waits for it (`shared.edge.watch`).

A hint is published once, unconfirmed, and to those who listen at that moment. Nothing may rest on its arrival.
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

# How soon it hears, on a connection on which it only speaks, that the broker has gone.
READ_S = 0.5
# In one message; a batch changes at most 50 and several are told together.
MOST_IDS = 500
# What could not be told for so long that it is more than this is of use to nobody.
MOST_WAITING = 10_000


class Notifier(ConnectedExtension):
    """The connection by which a service tells its hints."""

    def __init__(self) -> None:
        super().__init__()
        self._ids: set[str] = set()
        self._wake = Wake()

    def not_ready_reason(self) -> str | None:
        """Nobody's work depends on a hint."""
        return None

    def notify(self, ids: set[str]) -> None:
        """These have changed. Returns at once."""
        if len(self._ids) < MOST_WAITING:
            self._ids |= ids
        self._wake.send()

    def stop(self) -> None:
        self.kill()

    def _serve(self, connection: BrokerConnection) -> None:
        while not self._stopping:
            told = sorted(self._ids)
            self._ids = set()
            for first in range(0, len(told), MOST_IDS):
                body = json.dumps(told[first : first + MOST_IDS])
                message = amqp.Message(body, content_type="application/json", delivery_mode=TRANSIENT)
                connection.channel.basic_publish(message, HINTS_EXCHANGE, "")
            while connection.read(timeout_s=0):
                pass
            self._wake.wait(READ_S)


class Hints(DependencyProvider):
    """Tells what the service's transactions say by `shared.changes.changed`."""

    notifier = Notifier()

    def start(self) -> None:
        database = next(item for item in self.container.dependencies if isinstance(item, Database))
        notify_after_commit(database.Session, self.notifier.notify)

    def get_dependency(self, worker_ctx: WorkerContext) -> None:
        return None
