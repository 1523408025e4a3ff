"""The record of dead messages: `dead_messages` in the database of the service that sends them to a DLQ."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import case, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.failures import Failure
from shared.tables import DeadMessageRow


def record_deaths(session: Session, failures: list[Failure]) -> None:
    """Write dead messages to `dead_messages`: one statement. A message that dies again updates its row."""
    rows = [
        {
            "message_id": failure.message_id,
            "queue": failure.queue,
            "service": failure.headers["x-service"],
            "event_type": failure.type or None,
            "order_id": failure.order_id,
            "trace_id": failure.trace_id,
            "reason": failure.reason,
            "error_class": failure.headers["x-error-class"],
            "error_message": failure.headers["x-error-message"],
            "attempts": failure.headers["x-attempt"],
            "replays": failure.headers["x-replays"],
            "first_failed_at": datetime.fromisoformat(failure.headers["x-first-failed-at"]),
        }
        for failure in {failure.message_id: failure for failure in failures}.values()
    ]
    statement = insert(DeadMessageRow).values(rows)
    again = {
        name: statement.excluded[name]
        for name in ("reason", "error_class", "error_message", "attempts", "replays", "first_failed_at")
    }
    # While the first death is still in the DLQ this may make a copy: the census counts the copies, not the service.
    copies = case((DeadMessageRow.left_at.is_(None), DeadMessageRow.copies), else_=1)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["queue", "message_id"],
            set_={**again, "copies": copies, "died_at": func.now(), "left_at": None, "left_how": None},
        )
    )
