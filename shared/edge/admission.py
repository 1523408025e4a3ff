"""Admission: a service refuses new work while too much is under way, so that what it has accepted ends in time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider
from sqlalchemy.orm import Session

from shared.config import Settings
from shared.edge import green
from shared.edge.database import Database
from shared.edge.settings import settings_of
from shared.edge.wake import Wake
from shared.errors import CannotWork
from shared.logs import Reminder

log = logging.getLogger(__name__)

# Between two counts. What is accepted meanwhile is the most by which the limit is exceeded.
COUNT_EVERY_S = 1.0
# A count that is older says nothing: work may have ended since.
BELIEVED_S = 2.5


class Admission(DependencyProvider):
    """Injects itself. It counts once a second while somebody asks, and never in the time of who asks.

    `count(session, most)` returns how much is under way, counted up to `most`. `limit` finds the limit in the settings;
    0 is no limit.
    """

    def __init__(self, count: Callable[[Session, int], int], limit: Callable[[Settings], int]) -> None:
        self.count = count
        self.limit = limit
        self._full_until = 0.0
        self._asked = Wake()
        self._thread: Any = None
        self._reminder = Reminder()

    def setup(self) -> None:
        self._most = self.limit(settings_of(self.container))
        self._database = next(item for item in self.container.dependencies if isinstance(item, Database))

    def start(self) -> None:
        if self._most:
            self._thread = self.container.spawn_managed_thread(self.run, identifier="admission")

    def get_dependency(self, worker_ctx: WorkerContext) -> Admission:
        return self

    def is_full(self) -> bool:
        """Whether more than the limit was under way a moment ago."""
        self._asked.send()
        return time.monotonic() < self._full_until

    def run(self) -> None:
        """Count once a second, while somebody asks."""
        while True:
            if self._asked.wait(COUNT_EVERY_S):
                self.run_once()
                green.sleep(COUNT_EVERY_S)

    def run_once(self) -> None:
        """Count. A count that fails is logged, and nothing is refused because of it."""
        try:
            with self._database.worker_sessions.read() as session:
                is_full = self.count(session, self._most + 1) > self._most
        except CannotWork as error:
            if self._reminder.due(str(error)):
                log.warning("what is under way cannot be counted: %s", error)
            return
        if is_full and self._reminder.due("full"):
            log.warning("new work is refused: more than %s are under way", self._most)
        self._full_until = time.monotonic() + BELIEVED_S if is_full else 0.0

    def stop(self) -> None:
        if self._thread is not None:
            self._thread.kill()

    kill = stop
