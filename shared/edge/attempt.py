"""One transaction over some events of a batch: claim the new ones, handle them, emit events, commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

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


@dataclass
class Attempt:
    """One try to handle events together. It may run again after a conflict or an outage."""

    queue: str
    source: str
    sessions: Callable[[], Sessions]
    handle: Callable[[Events, Tx], None]
    events: Sequence[Envelope]
    answers: dict[UUID, Any]
    in_work: Envelope | None = None  # the event that the handler was at when it raised, if it is known

    def run(self) -> Handled:
        """Commit the effects of all events but those that the handler failed. Raises what the handler raised."""
        self.in_work = None  # what an earlier run was at when it met a conflict is not to blame now
        with self.sessions().begin() as session:
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


def log_failure(queue: str, event: Envelope, error: Exception) -> None:
    """Log that a message could not be handled, with its trace; a defect with its traceback."""
    log.warning(
        "%s could not handle %s %s (trace %s): %s: %s",
        queue,
        event.type,
        event.message_id,
        event.trace_id,
        type(error).__name__,
        error,
        exc_info=None if isinstance(error, DeadMessage) else error,
    )
