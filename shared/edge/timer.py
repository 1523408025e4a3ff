"""`@every(seconds)`: the method runs again and again in one replica: the one whose relay leads.

A service that publishes no events has no relay: there every replica runs it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from nameko.extensions import Entrypoint

from shared.database_errors import is_hold_up
from shared.edge import green
from shared.edge.consumer import FINISH_S
from shared.edge.green import Event
from shared.edge.worker import Abandoned, run_in_worker
from shared.errors import CannotWork
from shared.logs import Reminder
from shared.relay import Relay

log = logging.getLogger(__name__)

T = TypeVar("T")


def each_alone(items: Sequence[T], act: Callable[[T], None]) -> CannotWork | None:
    """Act on each item in a transaction of its own: one that waits for a lock in vain keeps no other from its turn.

    Returns the error to raise when all else is done, if a lock held up an item: the timer's next run comes to it again.
    Raises at once what `act` raised for another reason.
    """
    held_up = 0
    for item in items:
        try:
            act(item)
        except CannotWork as error:
            if error.__cause__ is None or not is_hold_up(error.__cause__):
                raise
            held_up += 1
    return CannotWork(f"{held_up} of {len(items)} wait for a lock; the others are done") if held_up else None


class Every(Entrypoint):
    """The timer entrypoint. A run that fails is logged and the next one comes as planned; runs never overlap."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # A timer expects outages: it logs a line now and then, and the next run comes as planned.
        super().__init__(expected_exceptions=(CannotWork,))

    def setup(self) -> None:
        self._relay = next((item for item in self.container.dependencies if isinstance(item, Relay)), None)
        self._stopping = Event()
        self._stop_by = math.inf
        self._reminder = Reminder()

    def start(self) -> None:
        self._thread = self.container.spawn_managed_thread(self.run, identifier=f"timer {self.method_name}")

    def run(self) -> None:
        """Run at once, so that a fault shows early, and again after each pause, until stopped."""
        while not self._stopping.ready():
            if self._relay is None or self._relay.leading:
                self.run_once()
            with green.Timeout(self.seconds, False):
                self._stopping.wait()

    def run_once(self) -> None:
        """One run, in a worker of its own; Nameko logs what it raises."""
        try:
            run_in_worker(self, give_up_at=lambda: self._stop_by)
            self._reminder.forget()
        except CannotWork as error:
            if self._reminder.due(str(error)):
                log.warning("%s did not finish: %s", self.method_name, error)
        except Abandoned:
            log.warning("%s was abandoned because the service stops; the next leader runs it", self.method_name)
        except Exception:
            log.debug("%s failed; Nameko has logged why", self.method_name, exc_info=True)

    def stop(self) -> None:
        self._stop_by = time.monotonic() + FINISH_S
        if not self._stopping.ready():
            self._stopping.send()
        self._thread.wait()

    def kill(self) -> None:
        self._thread.kill()


every = Every.decorator
