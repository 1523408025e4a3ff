"""The arguments of a batch handler: its events, and the transaction in which it works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from shared.envelope import Envelope
from shared.events import Payload


class Events(Sequence[Envelope]):
    """The events of a batch. It knows which event the handler's loop has reached."""

    def __init__(self, events: Sequence[Envelope]) -> None:
        self._events = events
        self.in_work: Envelope | None = None

    def __iter__(self) -> Iterator[Envelope]:
        for event in self._events:
            self.in_work = event
            yield event
        self.in_work = None

    def __len__(self) -> int:
        return len(self._events)

    def __getitem__(self, place: Any) -> Any:
        return self._events[place]


class Tx:
    """The one transaction of a batch: its session, the events to emit, and the messages that failed."""

    def __init__(self, session: Session, source: str, answers: dict[UUID, Any]) -> None:
        self.session = session
        self.answers = answers
        self.failed: dict[UUID, Exception] = {}
        self._source = source
        self._emitted: list[Envelope] = []

    def emit(self, cause: Envelope, *payloads: Payload) -> None:
        """Emit events caused by `cause`, with its trace and identity. They are published if the transaction commits."""
        self._emitted += [cause.caused(self._source, payload) for payload in payloads]

    def fail(self, event: Envelope, error: Exception) -> None:
        """Fail one message: it takes no effect here and goes to retry or, for a DeadMessage, to the DLQ."""
        self.failed[event.message_id] = error

    def outgoing_events(self) -> list[Envelope]:
        """The events to publish: all that were emitted, except those caused by failed messages."""
        return [envelope for envelope in self._emitted if envelope.causation_id not in self.failed]
