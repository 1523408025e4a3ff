"""Who works on a DLQ: one session at a time.

The lock lives as long as its database session: a dead process holds none.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, func, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, mapped_column

from shared.database_errors import sqlstate
from shared.tables import NOW, Base
from shared.times import timestamp

# The name of a database session that works on dead messages: this prefix, then the name of its operator.
SESSION_PREFIX = "ecom dlq "

LOCK_CLASS = 0x646C71
_LOCK_NOT_AVAILABLE = "55P03"


class DlqHolder(Base):
    """The session that works on a DLQ, or was the last to do so. It still does only if it holds the advisory lock."""

    __tablename__ = "dlq_holders"

    queue: Mapped[str] = mapped_column(primary_key=True)
    pid: Mapped[int]  # of the database session
    actor: Mapped[str]
    command: Mapped[str]
    gives_way: Mapped[bool]
    operation_id: Mapped[uuid.UUID | None]
    since: Mapped[datetime] = mapped_column(server_default=NOW)


@dataclass(frozen=True)
class Holder:
    """Who works on a DLQ now: the command and, if it changes anything, its operation in the ledger.

    An older version of the program says only who it is.
    """

    actor: str
    command: str = ""
    gives_way: bool = False
    operation_id: uuid.UUID | None = None
    since: datetime | None = None

    def as_dict(self) -> dict[str, object]:
        """As plain values: {actor, command, operation_id, since}."""
        return {
            "actor": self.actor,
            "command": self.command,
            "operation_id": str(self.operation_id) if self.operation_id else None,
            "since": timestamp(self.since) if self.since else None,
        }

    def sentence(self) -> str:
        """In words, with the command that shows more."""
        if self.since is None:
            return f"being worked on by {self.actor}"
        work = f"being worked on by {self.actor} since {timestamp(self.since)}: {self.command}"
        shown = f"`ecom dlq history {self.operation_id}` shows it" if self.operation_id else "it only reads"
        return f"{work} ({shown})"


_KEY = {"class": LOCK_CLASS}
_WAIT = text("SELECT pg_advisory_lock(:class, hashtext(:queue))")
_TRY = text("SELECT pg_try_advisory_lock(:class, hashtext(:queue))")
_LOCKS = (
    "pg_locks.locktype = 'advisory' AND pg_locks.classid = CAST(:class AS oid)"
    " AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND pg_locks.objid::bigint = hashtext(asked.queue)::bigint & 4294967295"
)
_WANTED = text(f"SELECT EXISTS (SELECT FROM (SELECT :queue AS queue) asked JOIN pg_locks ON {_LOCKS} AND NOT granted)")
# The row of an earlier holder may still be there: it counts only for the session that wrote it.
_HOLDERS = text(
    "SELECT asked.queue, application_name, actor, command, gives_way, operation_id, since"
    f" FROM unnest(CAST(:queues AS text[])) AS asked(queue) JOIN pg_locks ON {_LOCKS} AND granted"
    " JOIN pg_stat_activity USING (pid)"
    " LEFT JOIN dlq_holders ON dlq_holders.queue = asked.queue AND dlq_holders.pid = pg_locks.pid"
    " AND dlq_holders.since >= backend_start"
)
_NOTE = upsert(DlqHolder).values(
    {
        "queue": bindparam("queue"),
        "pid": func.pg_backend_pid(),
        "actor": bindparam("actor"),
        "command": bindparam("command"),
        "gives_way": bindparam("gives_way"),
        "operation_id": None,
        "since": func.clock_timestamp(),
    }
)
_NOTE = _NOTE.on_conflict_do_update(
    index_elements=["queue"],
    set_={name: _NOTE.excluded[name] for name in ("pid", "actor", "command", "gives_way", "operation_id", "since")},
)


def lock(connection: Connection, queue: str, holder: Holder) -> bool:
    """Whether the session of this connection now has the DLQ; if so, who has it is noted.

    It waits for at most the lock_timeout of the session. One that gives way does not wait.
    """
    if not _is_taken(connection, queue, wait=not holder.gives_way):
        return False
    noted = {"actor": holder.actor, "command": holder.command, "gives_way": holder.gives_way}
    connection.execute(_NOTE, {"queue": queue, **noted})
    return True


def _is_taken(connection: Connection, queue: str, wait: bool) -> bool:
    if not wait:
        return bool(connection.execute(_TRY, {**_KEY, "queue": queue}).scalar())
    try:
        connection.execute(_WAIT, {**_KEY, "queue": queue})
    except DBAPIError as error:
        if sqlstate(error) != _LOCK_NOT_AVAILABLE:
            raise
        return False
    return True


def note_operation(connection: Connection, queue: str, operation_id: uuid.UUID) -> None:
    """Note the operation of the session that holds a DLQ."""
    connection.execute(update(DlqHolder).filter_by(queue=queue).values(operation_id=operation_id))


def is_wanted(connection: Connection, queue: str) -> bool:
    """Whether another session waits for a DLQ."""
    return bool(connection.execute(_WANTED, {**_KEY, "queue": queue}).scalar())


def holders(connection: Connection, queues: Iterable[str]) -> dict[str, Holder]:
    """Who works now on which of these DLQs. One statement."""
    found = {}
    for row in connection.execute(_HOLDERS, {**_KEY, "queues": list(queues)}).mappings():
        known = {name: row[name] for name in ("actor", "command", "gives_way", "operation_id", "since")}
        older = Holder(row["application_name"].removeprefix(SESSION_PREFIX))
        found[row["queue"]] = Holder(**known) if row["since"] else older
    return found


def holder_of(connection: Connection, queue: str) -> Holder | None:
    """Who works on a DLQ now, or None."""
    return holders(connection, [queue]).get(queue)
