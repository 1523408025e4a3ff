"""Cooperative sleeping, timeouts and greenlets: the one module that imports eventlet, beside `shared.edge.patched`.

Everything else takes these names from here, so that eventlet can be replaced in one place. Importing this module
patches nothing: `shared.edge.patched` does, in the processes that serve.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
from eventlet import Timeout, sleep, spawn, spawn_n, tpool, wsgi  # noqa: E402
from eventlet.event import Event  # noqa: E402
from eventlet.greenio import GreenSocket, shutdown_safe  # noqa: E402
from eventlet.greenthread import GreenThread  # noqa: E402
from eventlet.hubs import trampoline  # noqa: E402
from eventlet.semaphore import Semaphore  # noqa: E402

__all__ = [
    "Event",
    "GreenSocket",
    "GreenThread",
    "Semaphore",
    "Timeout",
    "run_in_thread",
    "shutdown_safe",
    "sleep",
    "spawn",
    "spawn_n",
    "trampoline",
    "wsgi",
]

# In a WSGI environ: 0 sends each piece of a body at once.
MINIMUM_WRITE_CHUNK_SIZE = "eventlet.minimum_write_chunk_size"

P = ParamSpec("P")
R = TypeVar("R")


def run_in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function that computes for long in a real thread, while other greenlets go on."""
    result: R = tpool.execute(function, *args, **kwargs)
    return result
