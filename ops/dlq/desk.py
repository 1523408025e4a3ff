"""An operator's desk: whose it is, what it is connected to, and how each operation begins and ends.

A message is safe at every moment: it is confirmed where it goes before it is taken from where it lay. Whatever dies
in between leaves it in both places, and the inbox of its consumer absorbs the second one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from ops import models
from ops.dlq.books import Books, database_faults
from ops.dlq.mailbox import Mailbox
from ops.dlq.selection import Selection
from ops.domain import Fate, Filter, Kind, Letter, Status, Tally, dlq_of
from shared.config import Settings
from shared.edge import green
from shared.edge.database import quietly
from shared.edge.postgres import connect
from shared.edge.publisher import Outgoing, Publisher
from shared.errors import CannotWork, Conflict, EcomError

# Confirmed together. At most so many are in both queues if the process dies.
CHUNK = 500
# Who only looks has it for a moment: that is waited for. Who works on it is not.
LOCK_PATIENCE_S = 2.0
LOCK_AGAIN_S = 0.1
# The ledger hears so often how far an operation is.
PROGRESS_EVERY_S = 1.0
# PostgreSQL cuts longer names of sessions; this one is shown to whoever finds a DLQ taken.
SESSION_NAME = 63


@dataclass(frozen=True)
class Actor:
    """Who does something, and why he says he does."""

    name: str
    why: str = ""


@dataclass
class Run:
    """One operation under way."""

    operation_id: UUID
    kind: Kind
    queue: str
    ledger: Connection
    tally: Tally
    watch: Watch
    status: Status = Status.DONE
    outcome: str = ""
    sha256: str = ""
    written: float = 0.0  # when the ledger heard last

    def count(self, fate: Fate, letters: Sequence[Letter], reason: str = "") -> None:
        """What became of these messages, for the ledger and whoever watches."""
        models.write_fates(self.ledger, self.operation_id, fate, letters, reason)
        if not letters or fate == Fate.STARTED:
            return
        self.tally.fates[fate] += len(letters)
        if fate in (Fate.APPLIED, Fate.DEAD_AGAIN):
            self.tally.fates[Fate.SENT] -= len(letters)
        if reason:
            self.tally.reasons[reason] += len(letters)
        self.tell()

    def tell(self) -> None:
        """Say how far it is."""
        if time.monotonic() - self.written > PROGRESS_EVERY_S:
            self.write()
        self.watch.told(self)

    def write(self) -> None:
        """Write down how far it is, and the checksum of its file."""
        models.progress(self.ledger, self.operation_id, self.tally, self.sha256)
        self.written = time.monotonic()

    def stop(self, status: Status, outcome: str) -> None:
        """End it before it is through."""
        self.status, self.outcome = status, outcome

    def must_stop(self) -> bool:
        """Whether it must not go on: its operator says so, or it has stopped by itself."""
        if self.watch.stopping() and self.status == Status.DONE:
            self.stop(Status.STOPPED, self.watch.stopped_by)
        return self.status != Status.DONE

    def sentence(self) -> str:
        """What it did, in words."""
        fates = {fate: count for fate, count in self.tally.fates.items() if count}
        if not fates:
            return f"{self.tally.chosen} messages" if self.kind == Kind.EXPORT else "nothing to do"
        return ", ".join(f"{count} {fate.value.replace('_', ' ')}" for fate, count in sorted(fates.items()))


@dataclass(frozen=True)
class Watch:
    """Who looks on: at the reading of a DLQ (so many of so many), at the id of an operation, at its tally; and who
    may say that it must stop, for the reason `stopped_by`."""

    seen: Callable[[int, int], None] = lambda read, total: None
    begun: Callable[[UUID], None] = lambda operation_id: None
    told: Callable[[Run], None] = lambda run: None
    stopping: Callable[[], bool] = lambda: False
    stopped_by: str = "stopped by its operator"


class Stopped(CannotWork):
    """It was asked to stop while it was reading."""


class Desk:
    """The broker, the services' books and the ledger, for one operator. Close it when done."""

    def __init__(self, settings: Settings, actor: Actor, watch: Watch = Watch()) -> None:
        self.settings = settings
        self.actor = actor
        self.watch = watch
        self.books = Books(settings, session_name(actor))
        self.publisher = Publisher(settings.amqp_uri, settings.heartbeat_s)
        # Its sessions hold locks: each is opened for one operation and shared with none.
        engine = connect(settings.database_url("ops"), session_name(actor))
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        """Let go of every connection."""
        self.publisher.close()
        self.books.close()
        self._engine.dispose()

    @contextmanager
    def ledger(self) -> Iterator[Connection]:
        """A connection to the operations ledger. Raises CannotWork."""
        with database_faults("ops"), self._engine.connect() as connection:
            yield connection

    def open(self, dlq: str) -> Mailbox:
        """A DLQ to be read. The caller has its lock. Raises CannotWork."""
        return Mailbox(self.settings.amqp_uri, self.settings.heartbeat_s, dlq)

    def select(self, dlq: str, chosen: Filter) -> Selection:
        """What a filter chooses of a DLQ, held. The caller has its lock. Raises Stopped, CannotWork."""

        def seen(read: int, total: int) -> None:
            if self.watch.stopping():
                raise Stopped
            self.watch.seen(read, total)

        return Selection(lambda: self.open(dlq), chosen, seen)

    def take(self, ledger: Connection, dlq: str) -> None:
        """Lock a DLQ for the session of this connection. Raises Conflict when somebody keeps it."""
        until = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                return models.lock(ledger, dlq)
            except Conflict:
                if time.monotonic() > until:
                    raise
                green.sleep(LOCK_AGAIN_S)

    @contextmanager
    def look_into(self, queue: str, chosen: Filter) -> Iterator[Selection]:
        """The same to be looked at and put back. Raises Conflict when somebody works on the DLQ, CannotWork."""
        _, dlq = dlq_of(queue)
        with self.ledger() as ledger:
            self.take(ledger, dlq)
            with self.select(dlq, chosen) as selection:
                yield selection

    @contextmanager
    def operation(
        self, kind: Kind, dlq: str, chosen: Filter, options: dict[str, Any], file: Path | None = None
    ) -> Iterator[Run]:
        """Written down as started, and then with how it ended, whatever that was; under the lock of the DLQ.

        Raises Conflict when somebody else works on it, CannotWork.
        """
        with self.ledger() as ledger:
            self.take(ledger, dlq)
            operation_id = models.start(
                ledger, kind, dlq, self.actor.name, self.actor.why, chosen, options, str(file or "")
            )
            self.watch.begun(operation_id)
            run = Run(operation_id, kind, dlq, ledger, Tally(), self.watch)
            try:
                yield run
            except BaseException as error:
                if not (isinstance(error, Stopped) and run.must_stop()):
                    run.stop(Status.FAILED, str(error) if isinstance(error, EcomError) else type(error).__name__)
                # If it was the ledger that failed, this stays as started, and whoever comes next calls it interrupted.
                quietly(lambda: models.finish(ledger, operation_id, run.status, run.outcome, run.tally, run.sha256))
                raise
            run.outcome = run.outcome or run.sentence()
            models.finish(ledger, operation_id, run.status, run.outcome, run.tally, run.sha256)

    def publish(self, messages: list[Outgoing]) -> None:
        """Raises CannotWork unless the broker has every one of them."""
        refused = [outcome for outcome in self.publisher.publish_all(messages) if outcome]
        if refused:
            raise CannotWork(f"the broker did not take {len(refused)} of {len(messages)}: {refused[0]}")


def session_name(actor: Actor) -> str:
    """What PostgreSQL calls the sessions of an operator: printable ASCII, as it takes no other."""
    plain = (
        letter if letter.isascii() and letter.isprintable() else "?"
        for letter in f"{models.SESSION_PREFIX}{actor.name}"
    )
    return "".join(plain)[:SESSION_NAME]
