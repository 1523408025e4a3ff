"""The outbox: events are saved in the same transaction as the change they report.

Lock the row of the aggregate before emitting its event, so that outbox ids of one aggregate are in commit order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sqlalchemy import event, text
from sqlalchemy.orm import Session, sessionmaker

from shared.bulk import insert_many
from shared.envelope import Envelope
from shared.tables import OutboxRow
from shared.tracing import traceparent

# Long enough to look into an incident; the inboxes of the consumers remember longer.
KEEP_PUBLISHED_DAYS = 7

_EMITTED = "outbox.emitted"


def emit(session: Session, envelopes: Iterable[Envelope]) -> None:
    """Put events into the outbox of this transaction: one statement.

    Raises InvalidSchema when a payload breaks its own schema; no event is saved then.
    """
    rows = [
        {
            "message_id": envelope.message_id,
            "aggregate_id": envelope.payload.aggregate_id,
            "event_type": envelope.type,
            "traceparent": traceparent(envelope.trace_id),
            "body": envelope.to_json(),
        }
        for envelope in envelopes
    ]
    if rows:
        insert_many(session, OutboxRow, rows)
        session.info[_EMITTED] = True


def wake_after_commit(sessions: sessionmaker[Session], wake: Callable[[], None]) -> None:
    """Call `wake` after each commit of these sessions that emitted events, so that the relay need not poll."""

    def committed(session: Session) -> None:
        if session.info.pop(_EMITTED, False):
            wake()

    event.listen(sessions, "after_commit", committed)


PURGE = text("SELECT deleted, ready FROM purge_outbox(:most)")
