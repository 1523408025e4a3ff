"""Waiting for a change: any number of clients, and one question a second for all of them.

A waiter costs a greenlet and a few hundred bytes: no worker, no call and no database connection.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nameko.extensions import SharedExtension

from shared.edge.hint_listener import HintListener
from shared.edge.rpc_proxy import Replies
from shared.edge.wake import Wake
from shared.errors import CannotWork, ServiceUnavailable
from shared.metrics import WAITING
from shared.roles import SYSTEM

log = logging.getLogger(__name__)

# A lost hint costs this.
LOOK_EVERY_S = 1.0
LOOK_TIMEOUT_S = 5.0
# Asked about in one call.
MOST_IDS = 500
# Who asks: one call is for the clients of many users.
ASKER = {"user_id": "system:watch", "roles": [SYSTEM]}


class Waiter:
    """A client that waits for one thing. It holds no worker and no connection of ours."""

    def __init__(self, has_gone: Callable[[], bool]) -> None:
        self.has_gone = has_gone
        self.state: dict[str, Any] = {}
        self.ended = False
        self._wake = Wake()

    @property
    def version(self) -> int:
        """Which of its versions is known here; 0 for none."""
        return int(self.state.get("version", 0))

    def know(self, state: dict[str, Any]) -> bool:
        """Take a state, unless it is no newer than the one known; whether it was taken."""
        newer = bool(state["version"] > self.version)
        if newer:
            self.state = state
        return newer

    def update(self, state: dict[str, Any]) -> None:
        """Take a newer state, and stop waiting."""
        if self.know(state):
            self._wake.send()

    def end(self) -> None:
        """Stop waiting: the service stops, or the client has gone."""
        self.ended = True
        self._wake.send()

    def wait(self, seconds: float) -> bool:
        """Whether it was updated or ended within the time."""
        return self._wake.wait(seconds)


class Watch(SharedExtension):
    """All waiters of a process. `changed` names an RPC: given {id: known version}, it returns the newer states.

    States are dicts with `version` and the field `key`. One call a second asks about all that is waited for. A waiter
    never asks by itself.
    """

    replies = Replies()

    def __init__(self, changed: str, key: str) -> None:
        super().__init__()
        self.changed = changed
        self.key = key
        self.stopped = False
        self._looking: Any = None
        self._all: list[Watch] = []
        self._waiters: dict[str, set[Waiter]] = {}
        self._soon: set[str] = set()
        self._wake = Wake()

    @property
    def sharing_key(self) -> Any:
        return type(self), self.changed

    def start(self) -> None:
        if self._looking is None:
            # Those of this process share one gauge. It may be read when Nameko has let go of the container.
            self._all = [item for item in self.container.extensions if isinstance(item, Watch)]
            WAITING.labels(self.container.service_name).set_function(self._all_waiting)
            self._looking = self.container.spawn_managed_thread(self._look, identifier=f"watch of {self.changed}")

    def waiting(self) -> int:
        """How many know a state and wait for the next."""
        return sum(waiter.version > 0 for waiters in self._waiters.values() for waiter in waiters)

    def _all_waiting(self) -> int:
        return sum(watch.waiting() for watch in self._all)

    def stop(self) -> None:
        self.release()
        self.kill()

    def release(self) -> None:
        """End all waits because the service stops: each answers with the state it has."""
        self.stopped = True
        self._wake.send()
        for waiter in self._everybody():
            waiter.end()

    def _everybody(self) -> Iterator[Waiter]:
        for waiters in self._waiters.values():
            yield from waiters

    @contextmanager
    def waiter(self, id_: str, has_gone: Callable[[], bool] = lambda: False) -> Iterator[Waiter]:
        """A waiter for one thing. Register first, then read, then wait: so that nothing is missed in between.

        `has_gone` is called once a second and says whether the client has hung up.
        """
        waiter = Waiter(has_gone)
        if self.stopped:
            waiter.end()
        self._waiters.setdefault(id_, set()).add(waiter)
        try:
            yield waiter
        finally:
            waiters = self._waiters[id_]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[id_]

    def ask_soon(self, ids: Iterable[str]) -> None:
        """Ask at once about those of these for which somebody waits. Returns before they are asked about."""
        self._soon.update(id_ for id_ in ids if id_ in self._waiters)
        if self._soon:
            self._wake.send()

    def _look(self) -> None:
        due = time.monotonic()
        while not self.stopped:
            self._wake.wait(max(0.0, due - time.monotonic()))
            everything = time.monotonic() >= due
            ids = list(self._waiters) if everything else [id_ for id_ in self._soon if id_ in self._waiters]
            self._soon.clear()
            if everything:
                due = time.monotonic() + LOOK_EVERY_S
                for waiter in self._everybody():
                    if waiter.has_gone():
                        waiter.end()
            for first in range(0, len(ids), MOST_IDS):
                self._ask(ids[first : first + MOST_IDS])

    def _ask(self, ids: list[str]) -> None:
        known = {id_: min(waiter.version for waiter in self._waiters[id_]) for id_ in ids if id_ in self._waiters}
        try:
            states = self.replies.call(self.changed, [known], {}, ASKER, LOOK_TIMEOUT_S)
        except (CannotWork, ServiceUnavailable) as error:
            log.debug("nobody says what has changed: %s", error)
            return
        except Exception:  # theirs, and no reason to stop asking
            log.exception("%s failed", self.changed)
            return
        for state in states:
            for waiter in list(self._waiters.get(state[self.key], ())):
                waiter.update(state)


class HintedWatch(Watch):
    """A watch that also asks at once when a hint says that something it waits for has changed.

    Without hints it still asks once a second.
    """

    hints = HintListener()

    def setup(self) -> None:
        self.hints.callbacks.append(self.ask_soon)


Read = Callable[[], dict[str, Any]]


def wait_for(
    watch: Watch,
    id_: str,
    read: Read,
    good: Callable[[dict[str, Any]], bool],
    seconds: float,
    has_gone: Callable[[], bool] = lambda: False,
) -> Any:
    """The state of a thing once it is good, or as it is when the time is over, the client gone or the service stops.

    `read` gets it the first time, and raises what it raises.
    """
    deadline = time.monotonic() + seconds
    with watch.waiter(id_, has_gone) as waiter:
        waiter.know(read())
        while not good(waiter.state) and not waiter.ended:
            left = deadline - time.monotonic()
            if left <= 0 or not waiter.wait(left):
                break
        return waiter.state
