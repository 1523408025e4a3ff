"""Work that outlives the call that asked for it: `self.background.spawn(job, name)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider


class Background(DependencyProvider):
    """Injects itself. A stop asks every job to end, by `stopping`, and waits for them."""

    def setup(self) -> None:
        self._stopping = False
        self._threads: set[Any] = set()

    def get_dependency(self, worker_ctx: WorkerContext) -> Background:
        return self

    def stopping(self) -> bool:
        """Whether the service is being stopped: a job must then come to an end."""
        return self._stopping

    def spawn(self, job: Callable[[], None], name: str) -> None:
        """Run a job. It must handle what it raises: anything else ends the container."""
        thread = self.container.spawn_managed_thread(job, identifier=name)
        self._threads.add(thread)
        thread.link(lambda ended: self._threads.discard(ended))

    def stop(self) -> None:
        self._stopping = True
        for thread in list(self._threads):
            thread.wait()

    def kill(self) -> None:
        self._stopping = True
