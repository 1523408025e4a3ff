"""The databases of the services: dead messages, inboxes, orders. Read as `ecom_reader`, written as `ecom_operator`.

Only `dead_messages` is written here: messages that left a DLQ, and messages in it that no service recorded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, case, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ops.domain import NEVER, DeadLetter
from ops.roles import url_as
from shared.config import Settings
from shared.edge.postgres import connect
from shared.errors import CannotWork
from shared.paging import decode_cursor, encode_cursor, page_of, row_position, time_position
from shared.rights import OPERATOR, READER
from shared.tables import ConsumedMessage, DeadMessageRow
from shared.times import timestamp
from topology.table import BY_NAME

# The values of `left_how`: where the message of a row went.
REPLAYED, DISCARDED, GONE = "replayed", "discarded", "gone"

_THERE = DeadMessageRow.left_at.is_(None)
_COUNT = func.sum(DeadMessageRow.copies)


@contextmanager
def database_faults(name: str) -> Iterator[None]:
    """Turn errors of a database that is away, or lacks its tables, into CannotWork."""
    try:
        yield
    except DBAPIError as error:
        raise CannotWork(f"the database of {name} cannot be used: {reason_of(error)}") from error


def reason_of(error: DBAPIError) -> str:
    """The first line of what the database said."""
    return str(error.orig or error).strip().splitlines()[0]


class ServiceDatabases:
    """The databases of the services, opened when first needed."""

    def __init__(self, settings: Settings, application: str, pool_size: int = 2) -> None:
        self.settings = settings
        self.pool_size = pool_size
        self.application = application
        self._engines: dict[tuple[str, str], Engine] = {}

    @contextmanager
    def read(self, service: str) -> Iterator[Session]:
        """A session that can only read; each statement sees what is committed. Raises CannotWork."""
        with database_faults(service), Session(self._engine(service, READER)) as session:
            yield session

    @contextmanager
    def write(self, service: str) -> Iterator[Session]:
        """A session that may write; each statement commits itself. Raises CannotWork."""
        with database_faults(service), Session(self._engine(service, OPERATOR)) as session:
            yield session

    def close(self) -> None:
        """Close the connections."""
        for engine in self._engines.values():
            engine.dispose()

    def _engine(self, service: str, role: str) -> Engine:
        if (service, role) not in self._engines:
            url = url_as(self.settings, service, role).render_as_string(hide_password=False)
            limits: dict[str, Any] = {"default_transaction_read_only": "on"} if role == READER else {}
            engine = connect(url, self.application, pool_size=self.pool_size, **limits)
            self._engines[service, role] = engine.execution_options(isolation_level="AUTOCOMMIT")
        return self._engines[service, role]

    def consumed(self, queue: str, message_ids: Collection[UUID]) -> set[UUID]:
        """Those that have taken effect on the consumer of a main queue."""
        query = select(ConsumedMessage.message_id).where(
            ConsumedMessage.consumer == queue, ConsumedMessage.message_id.in_(message_ids)
        )
        with self.read(BY_NAME[queue].service) as session:
            return set(session.scalars(query))

    def deaths(self, service: str) -> list[dict[str, Any]]:
        """The messages in the DLQs of a service by reason: {queue, reason, count, ids, oldest, newest}.

        `count` has the copies in it, `ids` has each message once.
        """
        row = DeadMessageRow
        query = (
            select(row.queue, row.reason, _COUNT, func.count(), func.min(row.first_failed_at), func.max(row.died_at))
            .where(_THERE)
            .group_by(row.queue, row.reason)
            .order_by(row.queue, _COUNT.desc(), row.reason)
        )
        with self.read(service) as session:
            found = session.execute(query).all()
        return [dict(zip(("queue", "reason", "count", "ids", "oldest", "newest"), row, strict=True)) for row in found]

    def groups(self, queue: str) -> list[dict[str, Any]]:
        """The messages in a DLQ by reason, error and event type, the largest group first, each with an example.

        `count` has the copies in it, `ids` has each message once.
        """
        row = DeadMessageRow
        alike = (row.reason, row.error_class, row.event_type)
        example = func.min(func.concat(row.message_id, " ", row.error_message))
        query = (
            select(*alike, _COUNT, func.count(), func.min(row.first_failed_at), func.max(row.died_at), example)
            .where(row.queue == queue, _THERE)
            .group_by(*alike)
            .order_by(_COUNT.desc())
        )
        with self.read(BY_NAME[queue].service) as session:
            found = session.execute(query).all()
        return [
            {
                "reason": reason,
                "error_class": error_class,
                "event_type": event_type or "",
                "count": count,
                "ids": ids,
                "oldest": oldest,
                "newest": newest,
                "example_id": text_.partition(" ")[0],
                "example_error": text_.partition(" ")[2],
            }
            for reason, error_class, event_type, count, ids, oldest, newest, text_ in found
        ]

    def page(
        self, queue: str, filters: Mapping[str, Any], limit: int, cursor: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """A page of what lies in the DLQ of a main queue, last dead first, and the next cursor.

        `filters`: reason, event_type, order_id, trace_id. Raises InvalidCursor.
        """
        row = DeadMessageRow
        query = select(row).where(row.queue == queue, _THERE).order_by(row.died_at.desc(), row.id.desc())
        for name, value in filters.items():
            query = query.where(getattr(row, name) == value)
        if cursor:
            died_at, last = decode_cursor(cursor, {"queue": queue, **filters}, [time_position, row_position])
            query = query.where(tuple_(row.died_at, row.id) < (died_at, last))
        with self.read(BY_NAME[queue].service) as session:
            rows, more = page_of(session.scalars(query.limit(limit + 1)).all(), limit)
        last_seen = [rows[-1].died_at.isoformat(), rows[-1].id] if more else []
        return [_as_dict(row) for row in rows], encode_cursor(last_seen, {"queue": queue, **filters}) if more else None

    def recorded(self, queue: str) -> dict[UUID, int]:
        """All messages that are recorded in the DLQ of a main queue: how many of each id."""
        row = DeadMessageRow
        query = select(row.message_id, row.copies).where(row.queue == queue, _THERE)
        with self.read(BY_NAME[queue].service) as session:
            return {found.message_id: found.copies for found in session.execute(query)}

    def there(self, queue: str, message_ids: Collection[UUID]) -> set[UUID]:
        """Those of them that are recorded in the DLQ of a main queue."""
        row = DeadMessageRow
        query = select(row.message_id).where(row.queue == queue, row.message_id.in_(message_ids), _THERE)
        with self.read(BY_NAME[queue].service) as session:
            return set(session.scalars(query))

    def of_order(self, order_id: UUID) -> list[dict[str, Any]]:
        """Every message of an order that lies in a DLQ."""
        found = []
        for service in services():
            with self.read(service) as session:
                rows = session.scalars(select(DeadMessageRow).where(DeadMessageRow.order_id == order_id, _THERE))
                found += [_as_dict(row) for row in rows]
        return found

    def now(self, queue: str) -> datetime:
        """The clock by which deaths in a queue are dated."""
        with self.read(BY_NAME[queue].service) as session:
            return session.execute(select(func.clock_timestamp())).scalar_one()

    def leave(self, queue: str, message_ids: Collection[UUID], how: str, died_before: datetime) -> int:
        """Record that these left the DLQ with their copies; how many did. One that has died again since then is
        still there, alone.
        """
        row = DeadMessageRow
        is_gone = row.died_at < died_before
        statement = (
            update(row)
            .where(row.queue == queue, row.message_id.in_(message_ids), _THERE)
            .values(copies=1, left_at=case((is_gone, func.now())), left_how=case((is_gone, how)))
            .returning(row.left_at)
            .execution_options(synchronize_session=False)
        )
        with self.write(BY_NAME[queue].service) as session:
            return sum(left_at is not None for left_at in session.scalars(statement))

    def enter(self, queue: str, dead_letters: Sequence[DeadLetter], copies: Mapping[UUID, int] = {}) -> None:
        """Record that these are in the DLQ, also if they were recorded as gone. One statement.

        `copies`: how many messages of an id there are, if it is not one.
        """
        unique = {dead_letter.message_id: dead_letter for dead_letter in dead_letters}
        if not unique:
            return
        with self.write(BY_NAME[queue].service) as session:
            moment = session.execute(select(func.now())).scalar_one()
            rows = [
                {
                    "message_id": dead_letter.message_id,
                    "queue": queue,
                    "service": BY_NAME[queue].service,
                    "event_type": dead_letter.event_type or None,
                    "order_id": dead_letter.order_id,
                    "trace_id": dead_letter.trace_id or None,
                    "reason": dead_letter.reason,
                    "error_class": dead_letter.error_class,
                    "error_message": dead_letter.error_message,
                    "attempts": dead_letter.attempts,
                    "replays": dead_letter.replays,
                    "copies": copies.get(dead_letter.message_id, 1),
                    "first_failed_at": dead_letter.first_failed_at if dead_letter.first_failed_at != NEVER else moment,
                    # Never in the future, whatever a header says: a message that died after it left counts as there.
                    "died_at": min(dead_letter.last_failed_at, moment)
                    if dead_letter.last_failed_at != NEVER
                    else moment,
                }
                for dead_letter in unique.values()
            ]
            statement = upsert(DeadMessageRow).values(rows)
            kept = {name: statement.excluded[name] for name in rows[0] if name not in ("message_id", "queue")}
            session.execute(
                statement.on_conflict_do_update(
                    index_elements=["queue", "message_id"], set_={**kept, "left_at": None, "left_how": None}
                )
            )


def services() -> tuple[str, ...]:
    """The services that have queues, each once."""
    return tuple(dict.fromkeys(queue.service for queue in BY_NAME.values()))


def _as_dict(row: DeadMessageRow) -> dict[str, Any]:
    return {
        "message_id": str(row.message_id),
        "queue": row.queue,
        "event_type": row.event_type,
        "order_id": str(row.order_id) if row.order_id else None,
        "trace_id": row.trace_id,
        "reason": row.reason,
        "error_class": row.error_class,
        "error_message": row.error_message,
        "attempts": row.attempts,
        "replays": row.replays,
        "copies": row.copies,
        "first_failed_at": timestamp(row.first_failed_at),
        "died_at": timestamp(row.died_at),
    }
