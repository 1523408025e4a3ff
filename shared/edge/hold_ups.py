"""Messages that a lock or a slow statement holds up: who holds which row, and since when the messages wait.

Such messages are set aside in a retry level, so that the others of the queue go on. Nothing counts against them.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, literal_column, select, text
from sqlalchemy.orm import Session

from shared.edge import green
from shared.edge.attempt import Attempt
from shared.edge.database import Sessions
from shared.logs import Reminder, in_a_line
from shared.tables import Base

log = logging.getLogger(__name__)

# PostgreSQL is asked who is in the way this long after a try has begun, and again until it knows or the try is over.
LOOK_AFTER_S = 0.05

# It is asked again after so long.
LOOK_EVERY_S = 5.0

# After tries that waited in vain, messages that were held up before are not tried for so many times as long.
REST = 5

# When nothing has passed for so long, a consumer waits after each batch in which all messages were held up.
NOTHING_PASSES_S = 2.0
WAIT_S = 0.5

# A message that is held up returns every few seconds, to any replica: one that stays away so long has been settled.
FORGET_AFTER_S = 30.0

UNKNOWN = "a lock or a slow statement"

# The sessions at the end of the chain of those that wait for one another, and the row that the first one waits for.
_HOLDERS = text(
    """
    WITH RECURSIVE chain(pid) AS (
        SELECT unnest(pg_blocking_pids(:pid))
        UNION SELECT unnest(pg_blocking_pids(chain.pid)) FROM chain
    )
    SELECT holder.pid, holder.usename AS role, holder.application_name AS application, holder.state,
           holder.xact_start AS began, locked.relation, locked.place
    FROM chain
    JOIN pg_stat_activity AS holder ON holder.pid = chain.pid AND cardinality(pg_blocking_pids(chain.pid)) = 0
    LEFT JOIN LATERAL (
        SELECT relation::regclass::text AS relation,
               CASE locktype WHEN 'tuple' THEN format('(%s,%s)', page, tuple) END AS place
        FROM pg_locks
        WHERE pid = :pid AND (locktype = 'tuple' OR locktype = 'relation' AND NOT granted)
        ORDER BY locktype LIMIT 1
    ) AS locked ON true
    ORDER BY holder.xact_start LIMIT 1
    """
)


@dataclass
class HoldUp:
    """One reason for which messages are held up, and since when the oldest of them waits, in Unix seconds.

    Nobody reports that a message is settled. It counts until it has not been seen for FORGET_AFTER_S: of each half of
    that time only the oldest message is kept. `began_at` and `seen_at` are moments of the monotonic clock.
    """

    oldest: float
    began_at: float
    seen_at: float
    oldest_before: float = math.inf  # in the half before

    def see(self, since: float, now: float) -> None:
        """Take note of a message that waits since then."""
        self.seen_at = now
        if now - self.began_at > FORGET_AFTER_S / 2:
            self.oldest_before, self.oldest, self.began_at = self.oldest, since, now
        self.oldest = min(self.oldest, since)

    @property
    def since(self) -> float:
        """Since when the oldest message waits."""
        return min(self.oldest, self.oldest_before)


class HoldUps:
    """What holds up the messages of one queue now. Logs each reason when it is new and once per reminder."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self._found: dict[str, HoldUp] = {}
        self._reminder = Reminder()
        self._named_at = -math.inf
        self._rests_until = -math.inf
        self._passed_at = time.monotonic()

    def note(self, reason: str, since: float) -> None:
        """A message is held up for this reason; it waits since `since`, in Unix seconds."""
        now = time.monotonic()
        found = self._found.setdefault(reason, HoldUp(since, now, now))
        found.see(since, now)
        if reason != UNKNOWN:
            self._named_at = now
        if reason in self._shown() and self._reminder.due(reason):
            log.warning("%s; the others go on", self._sentence(reason, found))

    def look_due(self) -> bool:
        """Whether to find out who holds up messages: it takes longer than a try."""
        return time.monotonic() - self._named_at > LOOK_EVERY_S

    def rest_after(self, waited_s: float) -> None:
        """Tries have waited in vain for so long: the next ones of the same messages come after a rest."""
        self._rests_until = max(self._rests_until, time.monotonic() + REST * waited_s)

    def resting(self) -> bool:
        """Whether messages that were held up before are to be set aside untried, for the sake of the others."""
        return time.monotonic() < self._rests_until

    def settle(self, passed: int, held_up: int) -> float:
        """Count the messages of a batch; returns how many seconds to wait before the next one.

        The others of the queue go on, so nobody waits. But when nothing passes for a while, as behind a lock on a whole
        table, the whole queue would wander through its retry level: then it is better to leave it where it is.
        """
        if passed:
            self._passed_at = time.monotonic()
        nothing_passes = held_up and time.monotonic() - self._passed_at > NOTHING_PASSES_S
        return WAIT_S if nothing_passes else 0.0

    def any(self) -> bool:
        """Whether something holds up messages now."""
        return bool(self._current())

    def sentences(self) -> list[str]:
        """What holds up messages now, for people."""
        return [self._sentence(reason, found) for reason, found in self._shown().items()]

    def oldest(self) -> float | None:
        """Since when the oldest message is held up, in Unix seconds."""
        return min((found.since for found in self._current().values()), default=None)

    def _sentence(self, reason: str, found: HoldUp) -> str:
        return f"{self.queue}: messages are held up for {time.time() - found.since:.0f} s by {reason}"

    def _shown(self) -> dict[str, HoldUp]:
        """The reasons that say most: that there is an unknown one is no news beside a known one."""
        current = self._current()
        return {reason: found for reason, found in current.items() if reason != UNKNOWN} or current

    def _current(self) -> dict[str, HoldUp]:
        earliest = time.monotonic() - FORGET_AFTER_S
        self._found = {reason: found for reason, found in self._found.items() if found.seen_at > earliest}
        return self._found


class Look:
    """Looks on a second connection for who holds what a session waits for; `found` says it, for people."""

    def __init__(self, sessions: Sessions, attempt: Attempt) -> None:
        self._sessions = sessions
        self._attempt = attempt
        self.found: str | None = None

    def __enter__(self) -> Look:
        self._ended = False
        green.spawn_n(self._look)
        return self

    def __exit__(self, *error: object) -> None:
        # It is not killed: a query that is cut off costs its connection.
        self._ended = True

    def _look(self) -> None:
        while True:
            green.sleep(LOOK_AFTER_S)
            if self._ended or self.found is not None:
                return
            if self._attempt.backend_pid is None:
                continue
            try:
                with self._sessions.read() as session:
                    self.found = who_holds(session, self._attempt.backend_pid)
            except Exception as error:  # it is a help for people: the try goes on without it
                log.info("PostgreSQL did not say who holds a lock: %s", in_a_line(error))
                return


def who_holds(session: Session, pid: int) -> str | None:
    """The row that a backend waits for and the session that holds it, for people; None if it waits for nobody."""
    holder = session.execute(_HOLDERS, {"pid": pid}).first()
    if holder is None:
        return None
    return f"{_locked(session, holder.relation, holder.place)}, held by {_session(holder)}"


def _session(holder: Row[Any]) -> str:
    """Role and application are shown to everybody, the state and the time only to the role's members."""
    words = f"PostgreSQL session {holder.pid} of {holder.role} ({holder.application or 'no application name'})"
    if holder.state:
        words += f", {holder.state}"
    return f"{words}, its transaction began at {holder.began:%Y-%m-%dT%H:%M:%SZ}" if holder.began else words


def _locked(session: Session, relation: str | None, place: str | None) -> str:
    """What is locked: a row named by its primary key (stock_items sku=lamp), a whole table, or something else."""
    table = Base.metadata.tables.get(relation or "")
    if table is None or place is None:
        return relation or "a lock"
    statement: Select[Any] = select(*table.primary_key.columns).where(literal_column("ctid") == _tid(place))
    key = session.execute(statement).mappings().first()
    return " ".join([table.name, *(f"{name}={value}" for name, value in (key or {}).items())])


def _tid(place: str) -> Any:
    return text("CAST(:place AS tid)").bindparams(place=place)
