"""Running one method of a service in a worker of its own, and waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from nameko.extensions import Entrypoint

from shared.edge.green import Event, Timeout

# How often a waiting entrypoint looks whether the service has stopped waiting for its workers.
LOOK_EVERY_S = 1.0

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


class Abandoned(Exception):
    """The service stops and has no time left for the worker; it was killed."""


def run_in_worker(
    entrypoint: Entrypoint, args: tuple[Any, ...] = (), give_up_at: Callable[[], float] = lambda: float("inf")
) -> Any:
    """Run the entrypoint's method in a worker; its result. Raises what the method raised.

    `give_up_at` is the moment, by the monotonic clock, after which the worker is killed: it may come to be known
    while the worker runs. Raises Abandoned then, and nameko's ContainerBeingKilled when no worker can be started.
    """
    done = Event()

    def handle_result(_worker: Any, result: Any, exc_info: ExcInfo | None) -> tuple[Any, ExcInfo | None]:
        done.send(result, exc_info)
        return result, exc_info

    worker = entrypoint.container.spawn_worker(entrypoint, args, {}, handle_result=handle_result)
    while True:
        with Timeout(LOOK_EVERY_S, False):
            return done.wait()
        if time.monotonic() > give_up_at():
            entrypoint.container._worker_threads[worker].kill()
            raise Abandoned
