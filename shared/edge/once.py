"""`@once`: the method runs when its service starts, and again until it succeeds."""

from __future__ import annotations

import logging
from typing import Any

from nameko.extensions import Entrypoint

from shared.edge import green
from shared.edge.worker import run_in_worker
from shared.errors import CannotWork
from shared.logs import Reminder

log = logging.getLogger(__name__)

AGAIN_S = 2.0


class Once(Entrypoint):
    """The entrypoint. Until the method has succeeded, /readyz says so."""

    def __init__(self) -> None:
        # An outage is expected: services may start before their servers.
        super().__init__(expected_exceptions=(CannotWork,))
        self._done = False
        self._thread: Any = None
        self._reminder = Reminder()

    def not_ready_reason(self) -> str | None:
        """The method that has not succeeded yet, or None."""
        return None if self._done else f"{self.method_name} has not succeeded yet"

    def start(self) -> None:
        self._thread = self.container.spawn_managed_thread(self.run, identifier=f"once {self.method_name}")

    def run(self) -> None:
        """Run until it has succeeded."""
        while not self.run_once():
            green.sleep(AGAIN_S)

    def run_once(self) -> bool:
        """One run, in a worker of its own; whether it succeeded. Nameko logs what it raises."""
        try:
            run_in_worker(self)
            self._done = True
        except CannotWork as error:
            if self._reminder.due(str(error)):
                log.warning("%s waits: %s", self.method_name, error)
        except Exception:
            log.debug("%s failed; Nameko has logged why", self.method_name, exc_info=True)
        return self._done

    def stop(self) -> None:
        if self._thread is not None:
            self._thread.kill()

    kill = stop


once = Once.decorator
