"""`@once`: a method that runs when its service starts, again until it succeeds."""

from __future__ import annotations

from typing import Any

import eventlet
from eventlet.event import Event
from nameko.extensions import Entrypoint

AGAIN_S = 2.0


class Once(Entrypoint):
    """The entrypoint. Until the method has succeeded, /readyz says so."""

    def __init__(self) -> None:
        super().__init__()
        self._done = False
        self._thread: Any = None

    def trouble(self) -> str | None:
        """What has not been done yet, or None."""
        return None if self._done else f"{self.method_name} has not succeeded yet"

    def start(self) -> None:
        self._thread = self.container.spawn_managed_thread(self.run, identifier=f"once {self.method_name}")

    def run(self) -> None:
        """Run until it has succeeded."""
        while not self.run_once():
            eventlet.sleep(AGAIN_S)

    def run_once(self) -> bool:
        """One run, in a worker of its own; Nameko logs what it raises."""
        succeeded = Event()

        def handle_result(worker: Any, result: Any, exc_info: Any) -> tuple[Any, Any]:
            succeeded.send(exc_info is None)
            return result, exc_info

        self.container.spawn_worker(self, (), {}, handle_result=handle_result)
        self._done = bool(succeeded.wait())
        return self._done

    def stop(self) -> None:
        if self._thread is not None:
            self._thread.kill()

    kill = stop


once = Once.decorator
