"""An operator's session: its connections, and how each operation begins and ends.

No message is ever lost: the broker confirms it in the new queue before it is removed from the old one. A crash in
between leaves it in both queues, and the inbox of its consumer absorbs the second copy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ops import locks, models
from ops.dlq.dlq_reader import DlqReader, QueueCounter
from ops.dlq.selection import Selection
from ops.dlq.service_databases import ServiceDatabases, database_faults, reason_of
from ops.domain import CONSUMED, DeadLetter, Fate, Filter, Kind, Status, Tally, counted, dlq_of
from ops.locks import SESSION_PREFIX, Holder
from shared.config import Settings
from shared.edge import green
from shared.edge.postgres import connect
from shared.edge.publisher import Outgoing, Publisher
from shared.edge.settings import sender_rules
from shared.errors import CannotWork, Conflict, EcomError

# Messages read, published and confirmed together. If the process dies, at most this many are in both queues.
CHUNK = 500
# A reader holds the lock for a moment, so an operation waits for it. It does not wait for another operation.
LOCK_TIMEOUT_S = 2.0
# A holder that gives way lets go within a chunk, and then puts back what it holds: with a busy broker, some seconds.
GIVE_WAY_TIMEOUT_S = 30.0
# A process that lost the ledger tries for so long to record how its operation ended, and so often. A server that is
# restarted is back sooner.
REPORT_FOR_S = 30.0
REPORT_AGAIN_S = 0.5
# How often the progress of an operation is written to the ledger.
PROGRESS_EVERY_S = 1.0
# PostgreSQL cuts longer names of sessions; this one is shown to an operator who finds a DLQ locked.
SESSION_NAME = 63

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Actor:
    """The person who does something, the reason they give, and their command. What only watches gives way to others."""

    name: str
    why: str = ""
    command: str = ""
    gives_way: bool = False


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
    written: float = 0.0  # when the progress was last written to the ledger

    def count(self, fate: Fate, dead_letters: Sequence[DeadLetter], reason: str = "") -> None:
        """Record what happened to these messages in the ledger, and report the progress."""
        models.write_fates(self.ledger, self.operation_id, fate, dead_letters, reason)
        if not dead_letters or fate == Fate.STARTED:
            return
        self.tally.fates[fate] += len(dead_letters)
        if fate in CONSUMED:
            self.tally.fates[Fate.SENT] -= len(dead_letters)
        if reason:
            self.tally.reasons[reason] += len(dead_letters)
        self.report()

    def report(self) -> None:
        """Report the progress to the watcher, and from time to time to the ledger."""
        if time.monotonic() - self.written > PROGRESS_EVERY_S:
            self.write()
        self.watch.progressed(self)

    def write(self) -> None:
        """Write the progress and the checksum of its file to the ledger."""
        models.progress(self.ledger, self.operation_id, self.tally, self.sha256)
        self.written = time.monotonic()

    def stop(self, status: Status, outcome: str) -> None:
        """End the operation early with this status and outcome."""
        self.status, self.outcome = status, outcome

    def must_stop(self) -> bool:
        """Whether the operation must end: the operator asked for it, or it has stopped itself."""
        if self.watch.stopping() and self.status == Status.DONE:
            self.stop(Status.STOPPED, self.watch.stopped_by)
        return self.status != Status.DONE

    def sentence(self) -> str:
        """The result in words."""
        chosen, copies = self.tally.chosen, self.tally.copies
        if self.kind == Kind.EXPORT:
            return counted(chosen + copies, chosen, "messages")
        fates = {fate: count for fate, count in self.tally.fates.items() if count}
        if not fates:
            return "nothing to do"
        found = ", ".join(f"{count} {fate.value.replace('_', ' ')}" for fate, count in sorted(fates.items()))
        moved = sum(count for fate, count in fates.items() if fate != Fate.REFUSED)
        besides = [counted(moved + copies, moved)] if copies else []
        besides += [f"{self.tally.vouched} do not say who published them"] if self.tally.vouched else []
        return f"{found} ({'; '.join(besides)})" if besides else found


@dataclass(frozen=True)
class Watch:
    """Callbacks of the caller: `seen` while a DLQ is read (messages read, total), `begun` with the id of an operation,
    `progressed` with its tally. If `stopping` returns true the operation stops with the outcome `stopped_by`. If the
    ledger is away at its end, it tries for `report_for_s` seconds to record how the operation ended."""

    seen: Callable[[int, int], None] = lambda read, total: None
    begun: Callable[[UUID], None] = lambda operation_id: None
    progressed: Callable[[Run], None] = lambda run: None
    stopping: Callable[[], bool] = lambda: False
    stopped_by: str = "stopped by its operator"
    report_for_s: float = REPORT_FOR_S


class Stopped(CannotWork):
    """The operator asked to stop while the DLQ was being read."""


class GaveWay(Conflict):
    """Somebody else waited for the DLQ."""


class OperatorSession:
    """The broker, the databases of the services and the ledger, for one operator. Close it when done."""

    def __init__(self, settings: Settings, actor: Actor, watch: Watch = Watch()) -> None:
        self.settings = settings
        self.actor = actor
        self.watch = watch
        self.databases = ServiceDatabases(settings, session_name(actor))
        self.publisher = Publisher(settings.amqp_uri_of("ops"), settings.heartbeat_s)
        # Whether senders are checked follows from the user as whom ops sends: AMQP_URI may name an administrator.
        self.senders = sender_rules(replace(settings, amqp_uri=self.publisher.uri))
        self.counter = QueueCounter(settings.amqp_uri_of("ops"), settings.heartbeat_s)
        # Its sessions hold locks: each is opened for one operation and shared with none.
        lock_timeout_ms = int(LOCK_TIMEOUT_S * 1000)
        engine = connect(settings.database_url("ops"), session_name(actor), lock_timeout=lock_timeout_ms)
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        """Close every connection."""
        self.publisher.close()
        self.counter.close()
        self.databases.close()
        self._engine.dispose()

    @contextmanager
    def ledger(self) -> Iterator[Connection]:
        """A connection to the operations ledger. Raises CannotWork."""
        with database_faults("ops"), self._engine.connect() as connection:
            yield connection

    def open(self, dlq: str) -> DlqReader:
        """Open a DLQ for reading. The caller holds its lock. Raises CannotWork."""
        return DlqReader(self.settings.amqp_uri_of("ops"), self.settings.heartbeat_s, dlq)

    def select(self, dlq: str, chosen: Filter, check: Callable[[], None] = lambda: None) -> Selection:
        """Hold the messages of a DLQ that a filter chooses. The caller has its lock. Raises Stopped, CannotWork, and
        whatever `check` raises between chunks.
        """

        def checked() -> None:
            if self.watch.stopping():
                raise Stopped
            check()

        return Selection(lambda: self.open(dlq), chosen, self.watch.seen, checked)

    def take(self, ledger: Connection, dlq: str) -> None:
        """Lock a DLQ for the session of this connection. Raises Conflict if another session keeps it."""
        holder = Holder(self.actor.name, self.actor.command, self.actor.gives_way)
        until = time.monotonic() + GIVE_WAY_TIMEOUT_S
        while not locks.lock(ledger, dlq, holder):
            other = locks.holder_of(ledger, dlq)
            if holder.gives_way or (other and not other.gives_way) or time.monotonic() > until:
                raise Conflict(f"{dlq} is {(other or Holder('somebody')).sentence()}")
        models.mark_abandoned(ledger, dlq)

    @contextmanager
    def look_into(self, queue: str, chosen: Filter) -> Iterator[Selection]:
        """Lock a DLQ, read the chosen messages, put them back at the end. Raises Conflict if locked, CannotWork.

        An actor who gives way raises GaveWay as soon as another waits for the DLQ.
        """
        _, dlq = dlq_of(queue)
        with self.ledger() as ledger:
            self.take(ledger, dlq)

            def give_way() -> None:
                if self.actor.gives_way and locks.is_wanted(ledger, dlq):
                    raise GaveWay(f"somebody waits for {dlq}")

            with self.select(dlq, chosen, give_way) as selection:
                yield selection

    @contextmanager
    def operation(
        self, kind: Kind, dlq: str, chosen: Filter, options: dict[str, Any], file: Path | None = None
    ) -> Iterator[Run]:
        """Run an operation under the lock of the DLQ. The ledger records its start, and its end even if it fails.

        Raises Conflict if another operator works on the DLQ, CannotWork.
        """
        with self.ledger() as ledger:
            self.take(ledger, dlq)
            new = models.NewOperation(kind, dlq, self.actor.name, self.actor.why, chosen, options, str(file or ""))
            operation_id = models.start(ledger, new)
            locks.note_operation(ledger, dlq, operation_id)
            self.watch.begun(operation_id)
            run = Run(operation_id, kind, dlq, ledger, Tally(), self.watch)
            try:
                yield run
            except BaseException as error:
                if not (isinstance(error, Stopped) and run.must_stop()):
                    run.stop(Status.FAILED, in_words(error))
                try:
                    self._write_end(run)
                except CannotWork as away:
                    # The next session to lock this DLQ marks the operation as interrupted.
                    log.warning("the end of operation %s is not recorded: %s", operation_id, away)
                raise
            run.outcome = run.outcome or run.sentence()
            self._write_end(run)

    def _write_end(self, run: Run) -> None:
        """Record how an operation ended. Raises CannotWork if the ledger stays away for too long."""

        def write(ledger: Connection) -> None:
            models.finish(ledger, run.operation_id, run.status, run.outcome, run.tally, run.sha256)

        try:
            return write(run.ledger)
        except SQLAlchemyError:  # no DBAPIError where an earlier statement has broken the connection
            log.warning("the ledger was cut off before operation %s ended", run.operation_id)
        until = time.monotonic() + self.watch.report_for_s
        while True:
            try:
                with self.ledger() as again:
                    return write(again)
            except CannotWork:
                if time.monotonic() > until or self.watch.stopping():
                    raise
                green.sleep(REPORT_AGAIN_S)

    def publish(self, messages: list[Outgoing]) -> None:
        """Raises CannotWork unless the broker has every one of them."""
        refused = [outcome for outcome in self.publisher.publish_all(messages) if outcome]
        if refused:
            raise CannotWork(f"the broker did not take {len(refused)} of {len(messages)}: {refused[0]}")


def in_words(error: BaseException) -> str:
    """Why an operation failed, for its operator."""
    if isinstance(error, EcomError):
        return str(error)
    if isinstance(error, DBAPIError):
        return f"the ledger cannot be used: {reason_of(error)}"
    if isinstance(error, KeyboardInterrupt):
        return "its operator ended it at once"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def session_name(actor: Actor) -> str:
    """The name of an operator's database sessions: printable ASCII, because PostgreSQL accepts nothing else."""
    plain = (
        character if character.isascii() and character.isprintable() else "?"
        for character in f"{SESSION_PREFIX}{actor.name}"
    )
    return "".join(plain)[:SESSION_NAME]
