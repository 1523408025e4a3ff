"""What is revoked, as a gateway remembers it: versions of users and sessions, for as long as any token may live."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shared.ids import aggregate_of

log = logging.getLogger(__name__)

# The hint that something was revoked, upon which gateways ask at once. It names nobody.
REVOKED = aggregate_of("feed", "revocations")

# No token lives longer than an hour; the rest is for clocks that differ and for an outage of whoever tells.
KEPT_S = 7200.0
# Of users, and of sessions: about 60 MB in all. So many in two hours are an attack or a defect.
MOST = 200_000


class Revocations:
    """The least version of each user whose tokens still count, and the sessions that have ended."""

    def __init__(self, clock: Callable[[], float], most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        # Each with when it was heard last; the oldest first.
        self._versions: dict[str, tuple[int, float]] = {}
        self._sessions: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._versions) + len(self._sessions)

    def take(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Remember revocations: {user_id, version, session_id}. The same one again changes nothing."""
        now = self._clock()
        for item in items:
            user_id, session_id = item.get("user_id"), item.get("session_id")
            if user_id is not None:
                known, _ = self._versions.get(user_id, (0, now))
                if item["version"] > known:
                    self._versions.pop(user_id, None)
                    self._versions[user_id] = item["version"], now
            if session_id is not None:
                self._sessions.setdefault(session_id, now)
        self._forget(now)

    def is_revoked(self, user_id: str, version: int | None, session_id: str | None) -> bool:
        """Whether a token of this user's version and session must be refused. One without a version lives on."""
        if session_id is not None and session_id in self._sessions:
            return True
        return version is not None and version < self._versions.get(user_id, (0, 0.0))[0]

    def _forget(self, now: float) -> None:
        while self._versions and self._is_over(next(iter(self._versions.values()))[1], len(self._versions), now):
            del self._versions[next(iter(self._versions))]
        while self._sessions and self._is_over(next(iter(self._sessions.values())), len(self._sessions), now):
            del self._sessions[next(iter(self._sessions))]

    def _is_over(self, heard_at: float, count: int, now: float) -> bool:
        if now - heard_at > KEPT_S:
            return True
        if count > self._most:
            log.warning("more than %d revocations within %d s: the oldest is forgotten", self._most, int(KEPT_S))
            return True
        return False
