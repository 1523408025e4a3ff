"""One transaction over some events of a batch: claim the new ones, handle them, emit events, commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import inbox, outbox
from shared.edge.database import Sessions
from shared.edge.tx import Events, Tx
from shared.envelope import Envelope
from shared.errors import DeadMessage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Handled:
    """What became of events: how many the inbox had seen before, and the errors of those that failed."""

    seen_before: int
    failed: dict[UUID, Exception]

    def __add__(self, other: Handled) -> Handled:
        return Handled(self.seen_before + other.seen_before, self.failed | other.failed)


class Limits(NamedTuple):
    """How long a transaction may wait for one lock, and one statement may take; in milliseconds."""

    lock_ms: int
    statement_ms: int


_SET_LIMITS = text(
    "SELECT set_config('lock_timeout', :lock_ms, true), set_config('statement_timeout', :statement_ms, true)"
)


@dataclass
class Attempt:
    """One try to handle events together. It may run again after a conflict or an outage."""

    queue: str
    source: str
    sessions: Callable[[], Sessions]
    handle: Callable[[Events, Tx], None]
    events: Sequence[Envelope]
    answers: dict[UUID, Any]
    limits: Limits | None = None  # None: those of the connection
    backend_pid: int | None = None  # of its PostgreSQL session, so that another can ask who holds it up; with limits
    in_work: Envelope | None = None  # the event that the handler was at when it raised, if it is known

    def run(self) -> Handled:
        """Commit the effects of all events but those that the handler failed. Raises what the handler raised."""
        self.in_work = None  # what an earlier run was at when it met a conflict is not to blame now
        with self.sessions().begin() as session:
            if self.limits:
                self._set_limits(session, self.limits)
            new = inbox.claim(session, self.queue, [event.message_id for event in self.events])
            events = Events([event for event in self.events if event.message_id in new])
            tx = Tx(session, self.source, self.answers)
            try:
                if events:
                    self.handle(events, tx)
            except Exception:
                self.in_work = events.in_work
                raise
            if tx.failed:
                inbox.forget(session, self.queue, list(tx.failed))
            outbox.emit(session, tx.outgoing_events())
        for event in events:
            if event.message_id in tx.failed:
                log_failure(self.queue, event, tx.failed[event.message_id])
        return Handled(len(self.events) - len(events), tx.failed)

    def _set_limits(self, session: Session, limits: Limits) -> None:
        self.backend_pid = session.connection().connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
        session.execute(_SET_LIMITS, {name: str(value) for name, value in limits._asdict().items()})


def log_failure(queue: str, event: Envelope, error: Exception) -> None:
    """Log that a message could not be handled, with its trace; a defect with its traceback.

    What kills a message is logged with its death.
    """
    if isinstance(error, DeadMessage):
        return
    log.warning(
        "%s could not handle %s %s (trace %s): %s: %s",
        queue,
        event.type,
        event.message_id,
        event.trace_id,
        type(error).__name__,
        error,
        exc_info=error,
    )
