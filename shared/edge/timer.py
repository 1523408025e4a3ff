"""`@every(seconds)`: a method that one replica runs, again and again: the one whose relay leads.

In a service that tells no events, and so has no relay, every replica runs it.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import eventlet
from eventlet.event import Event
from nameko.extensions import Entrypoint

from shared.edge.consumer import FINISH_S
from shared.errors import CannotWork
from shared.logs import Reminder
from shared.relay import Relay

log = logging.getLogger(__name__)


class Every(Entrypoint):
    """The timer entrypoint. A run that fails is logged and the next one comes as planned; runs never overlap."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # An outage is no surprise to a timer: it is said in one line now and then, and the next run comes as planned.
        super().__init__(expected_exceptions=(CannotWork,))

    def setup(self) -> None:
        self._relay = next((item for item in self.container.dependencies if isinstance(item, Relay)), None)
        self._stopping = Event()
        self._reminder = Reminder()

    def start(self) -> None:
        self._thread = self.container.spawn_managed_thread(self.run, identifier=f"timer {self.method_name}")

    def run(self) -> None:
        """Run until stopped: at once, so that what cannot be done is said soon, and again after each pause."""
        while not self._stopping.ready():
            if self._relay is None or self._relay.leading:
                self.run_once()
            with eventlet.Timeout(self.seconds, False):
                self._stopping.wait()

    def run_once(self) -> None:
        """One run, in a worker of its own."""
        done = Event()

        def handle_result(worker: Any, result: Any, exc_info: Any) -> tuple[Any, Any]:
            if not exc_info:
                self._reminder.forget()
            elif isinstance(exc_info[1], CannotWork) and self._reminder.due(str(exc_info[1])):
                log.warning("%s did not run: %s", self.method_name, exc_info[1])
            done.send()
            return result, exc_info

        worker = self.container.spawn_worker(self, (), {}, handle_result=handle_result)
        while True:
            with eventlet.Timeout(1.0, False):
                done.wait()
                return
            if self._stopping.ready() and time.monotonic() > self._stop_by:
                # What it waits for is outside: the next leader's run does what this one leaves.
                self.container._worker_threads[worker].kill()
                return

    def stop(self) -> None:
        self._stop_by = time.monotonic() + FINISH_S
        if not self._stopping.ready():
            self._stopping.send()
        self._thread.wait()

    def kill(self) -> None:
        self._thread.kill()


every = Every.decorator
