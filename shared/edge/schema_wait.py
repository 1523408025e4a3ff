"""A process waits for the schema that its version needs, before anything of its service is there to work.

A consumer on tables of an older version would fail on good messages. So none is made: while the database lacks
something, or is away, the process answers probes and does nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from nameko.containers import ServiceContainer
from nameko.extensions import DependencyProvider

from shared.edge import green
from shared.edge.database import Database
from shared.edge.green import Event
from shared.edge.http import Probes, ProbesApart
from shared.logs import Reminder
from topology.services import BY_NAME

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


class _NotStarted(DependencyProvider):
    """Keeps /readyz from answering 200 in the moment between the schema's arrival and the service's start."""

    def not_ready_reason(self) -> str:
        return "the service has not started"


def wait_for_schema(service: str, started: type, config: Mapping[str, Any], stop_asked: Event) -> bool:
    """Answer the probes of a service until its database has the schema that it needs.

    Returns whether it has. False: the process was asked to stop meanwhile. `started` is the Nameko class that starts
    afterwards, `config` its container's. Raises ConfigurationFault when the port of the probes is taken.
    """

    class Waiting(ProbesApart if issubclass(started, ProbesApart) else Probes):  # type: ignore[misc]
        name = BY_NAME[service].rpc_name
        db = Database()
        not_started = _NotStarted()

    container, reminder = ServiceContainer(Waiting, config), Reminder()
    container.start()
    try:
        database = next(item for item in container.dependencies if isinstance(item, Database))
        while not stop_asked.ready():
            lack = database.not_ready_reason()
            if lack is None:
                return True
            if reminder.due(lack):
                log.warning("%s does nothing yet: %s", service, lack)
            with green.Timeout(LOOK_EVERY_S, False):
                stop_asked.wait()
        return False
    finally:
        container.stop()
