"""The relay: publishes the events in the outbox, in order and with confirms, and then marks them published.

One leader for each database, by a session advisory lock; every replica runs a relay and one of them leads. The
lock, the reading and the marking use one session that the server ends when it falls silent, so a frozen leader
loses the lock. No transaction is open while it publishes. A lost mark only repeats a message, which the inbox of
every consumer absorbs.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.types import BigInteger

from shared import inbox, outbox
from shared.edge import green
from shared.edge.broker import backoff, in_brief
from shared.edge.database import Database, quietly
from shared.edge.extensions import DependencyProvider
from shared.edge.gathering import Gathering
from shared.edge.postgres import connect, wait_for_notice
from shared.edge.publisher import Outgoing, Publisher
from shared.edge.settings import settings_of
from shared.edge.wake import Wake
from shared.envelope import CONTRACT_VERSION
from shared.errors import PublishFailed
from shared.events import CATALOGUE
from shared.logs import Reminder, in_a_line
from shared.metrics import OUTBOX_HELD, OUTBOX_LEADER, OUTBOX_OLDEST, OUTBOX_PENDING
from topology import broker_uri
from topology.services import publisher_of
from topology.table import EVENTS_EXCHANGE, UNHEARD
from topology.users import service_of

log = logging.getLogger(__name__)

# Any constant will do, the same in every replica: the lock lives in the service's own database.
LOCK_ID = 0x6563_6F6D
CHANNEL = "outbox"

BATCH_SIZE = 500

# Finds rows that a crash or a lost NOTIFY left; it also keeps the leader's session alive.
POLL_S = 1.0
# The server ends a leader's session after this silence; another replica then leads.
FROZEN_AFTER_MS = 10_000
# How soon a replica notices that there is no leader.
STANDBY_S = 0.5
# A replica that does not lead notifies the leader at most this often.
NOTIFY_GAP_S = 0.02
# A row that the broker refused holds back the later events of its aggregate, and is tried again after this.
HOLD_S = 5
# On a stop, publishing finishes within this. Rows that are not marked by then are published again.
FINISH_S = 2.0
PURGE_EVERY_S = 60
PURGE_LIMIT = 5000

# Statistics say nothing about a table that fills and empties every moment. Only a plain index scan remembers which
# entries are of rows that have left; any other plan reads these rows again each time until the next vacuum.
BY_INDEX: dict[str, Any] = {"enable_seqscan": "off", "enable_bitmapscan": "off"}

_READ = text(
    "SELECT id, message_id, aggregate_id, event_type, traceparent, body FROM outbox o"
    " WHERE published_at IS NULL AND NOT EXISTS ("
    "  SELECT 1 FROM outbox held WHERE held.published_at IS NULL AND held.aggregate_id = o.aggregate_id"
    "  AND held.id <= o.id AND held.held_until > now())"
    " ORDER BY id LIMIT :limit"
).execution_options(prepared=True)
# A row that is published moves into the partition of its day.
_MARK = (
    text("UPDATE outbox SET published_at = now(), held_until = NULL WHERE id = ANY(:ids) AND published_at IS NULL")
    .bindparams(bindparam("ids", type_=ARRAY(BigInteger)))
    .execution_options(prepared=True)
)
_HOLD = text(
    "UPDATE outbox SET attempts = attempts + 1, last_error = :error,"
    " held_until = now() + make_interval(secs => :seconds) WHERE id = :id AND published_at IS NULL"
)
_COUNT = text(
    "SELECT count(*), count(held_until), coalesce(extract(epoch FROM now() - min(created_at)), 0)"
    " FROM outbox WHERE published_at IS NULL"
)


def publish_once(connection: Connection, publisher: Publisher) -> int:
    """Publish the oldest waiting rows and mark them; how many were published.

    A row that the broker refuses stays, and its aggregate's later rows with it. Raises PublishFailed when the
    broker is away; nothing is then marked.
    """
    rows = connection.execute(_READ, {"limit": BATCH_SIZE}).all()
    user = broker_uri.parse(publisher.uri).user
    # The broker would close the channel for such a row, and no other row would ever go out.
    refusals = {row.id: f"{user} may not publish it" for row in rows if not _may_publish(user, row.event_type)}
    going = [row for row in rows if row.id not in refusals]
    outcomes = publisher.publish_all(
        [
            Outgoing(
                EVENTS_EXCHANGE,
                row.event_type,
                row.body,
                str(row.message_id),
                row.event_type,
                {"event-contract-version": CONTRACT_VERSION, "traceparent": row.traceparent},
                mandatory=row.event_type not in UNHEARD,
            )
            for row in going
        ]
    )
    refusals |= {row.id: reason for row, reason in zip(going, outcomes, strict=True) if reason}
    held: set[UUID] = set()
    published = []
    for row in rows:
        if row.aggregate_id in held:
            continue  # it may be out already; it goes out again after the one before it
        if refused := refusals.get(row.id):
            held.add(row.aggregate_id)
            log.error("event %s %s stays in the outbox: %s", row.event_type, row.message_id, refused)
            connection.execute(_HOLD, {"id": row.id, "error": refused, "seconds": HOLD_S})
        else:
            published.append(row.id)
    if published:
        connection.execute(_MARK, {"ids": published})
    return len(published)


def _may_publish(user: str, type_: str) -> bool:
    """Whether the broker takes events of this type from this user; from one who is not a service's it takes all."""
    service = service_of(user)
    return service is None or (type_ in CATALOGUE and publisher_of(type_) == service)


class Relay(DependencyProvider):
    """Runs in every service that publishes. `leading` also decides where purges and timers run."""

    def setup(self) -> None:
        self.settings = settings_of(self.container)
        self.leading = False
        self.gauges_due: dict[str, float] = defaultdict(float)
        self._stopping = False
        self._wake = Wake()
        self._not_ready_reason: str | None = "the relay has not started"
        self._waits, self._reminder = backoff(), Reminder()
        self._gathering = Gathering(self.settings.batch_wait_ms / 1000)
        self._publisher = Publisher(self.settings.amqp_uri, self.settings.heartbeat_s)
        self._database = next(item for item in self.container.dependencies if isinstance(item, Database))

    def start(self) -> None:
        database = self._database
        outbox.wake_after_commit(database.Session, self.wake)
        # A mark need not wait for the disk: losing one only repeats a message.
        engine = connect(
            database.db_uri,
            f"{self.container.service_name} relay",
            idle_session_timeout=FROZEN_AFTER_MS,
            synchronous_commit="off",
            **BY_INDEX,
        )
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        listener = connect(database.db_uri, f"{self.container.service_name} relay listener")
        self._listener = listener.execution_options(isolation_level="AUTOCOMMIT")
        self._thread = self.container.spawn_managed_thread(self.run, identifier="relay")
        self._ears = self.container.spawn_managed_thread(self._listen, identifier="relay listener")

    def get_dependency(self, worker_ctx: Any) -> Callable[[], None]:
        return self.wake

    def not_ready_reason(self) -> str | None:
        """Why nothing can be published, or None."""
        return self._not_ready_reason

    def wake(self) -> None:
        """Wake the relay: there is something to publish."""
        self._wake.send()

    def run(self) -> None:
        """Lead, or wait to lead, until stopped; over as many sessions and connections as it takes."""
        while not self._stopping:
            try:
                with self._engine.connect() as connection:
                    self._serve(connection)
            except (DBAPIError, InterfaceError, PublishFailed) as error:
                self._not_ready_reason = f"the relay cannot work: {in_brief(getattr(error, 'orig', error))}"
                if self._reminder.due(self._not_ready_reason):
                    log.warning("%s: %s; trying again until it works", self._not_ready_reason, in_a_line(error))
                green.sleep(next(self._waits))
            finally:
                self._lead(False)

    def _recover(self) -> None:
        """Clear the reason after a publish: a database that answers is no use while the broker is away."""
        if self._not_ready_reason is not None:
            self._not_ready_reason = None
            self._waits = backoff()
            self._reminder.forget()

    def _serve(self, connection: Connection) -> None:
        while not self._stopping:
            if self.leading or connection.execute(text("SELECT pg_try_advisory_lock(:id)"), {"id": LOCK_ID}).scalar():
                self._lead(True)
                self._wake.clear()  # it was sent after its commit, so that its rows are read now
                published = publish_once(connection, self._publisher)
                self._gathering.note(published)
                self._recover()
                self._housekeep(connection)
                # Whatever has been committed since the rows were read has sent another wake.
                at_once = self._wake.sent
                if published < BATCH_SIZE and self._wake.wait(POLL_S):
                    green.sleep(self._gathering.wait_s(0, at_once))
            else:
                self._recover()
                if self._wake.wait(STANDBY_S):
                    connection.execute(text(f"NOTIFY {CHANNEL}"))
                    green.sleep(NOTIFY_GAP_S)

    def _lead(self, leading: bool) -> None:
        if leading != self.leading:
            log.info("the relay of this replica %s", "leads" if leading else "does not lead any more")
        self.leading = leading
        OUTBOX_LEADER.labels(self.container.service_name).set(int(leading))

    def _housekeep(self, connection: Connection) -> None:
        now = time.monotonic()
        if now >= self.gauges_due["count"]:
            self.gauges_due["count"] = now + POLL_S
            pending, held, oldest = connection.execute(_COUNT).one()
            for gauge, value in ((OUTBOX_PENDING, pending), (OUTBOX_HELD, held), (OUTBOX_OLDEST, oldest)):
                gauge.labels(self.container.service_name).set(float(value))
        if now >= self.gauges_due["purge"]:
            self.gauges_due["purge"] = now + PURGE_EVERY_S
            purge(connection)

    def _listen(self) -> None:
        """Listen to the replicas that do not lead."""
        waits, reminder = backoff(), Reminder()
        while not self._stopping:
            try:
                with self._listener.connect() as connection:
                    connection.execute(text(f"LISTEN {CHANNEL}"))
                    waits = backoff()
                    reminder.forget()
                    raw = connection.connection.dbapi_connection
                    while not self._stopping:
                        if wait_for_notice(raw, POLL_S) and self.leading:
                            self.wake()
            except Exception as error:
                # Polling finds the rows of a missed notice; the relay itself reports that the database is away.
                words = in_a_line(error)
                if reminder.due(words):
                    log.info("the relay's listener has no connection: %s", words)
                green.sleep(next(waits))

    def stop(self) -> None:
        self._stopping = True
        self.wake()
        with green.Timeout(FINISH_S, False):
            self._thread.wait()
        for thread in (self._thread, self._ears):
            thread.kill()
        self._close()

    def kill(self) -> None:
        self._stopping = True
        for thread in (self._thread, self._ears):
            thread.kill()
        self._close()

    def _close(self) -> None:
        self._publisher.close()
        for engine in (self._engine, self._listener):
            quietly(cast(Engine, engine).dispose)


def purge(connection: Connection) -> int:
    """Forget events published 7 days ago and messages consumed 90 days ago; how many rows were deleted one by one.

    Whole partitions are dropped, and new ones made, unless another session holds a lock on the table: then the next
    call tries again.
    """
    gone = 0
    for table, statement in (("outbox", outbox.PURGE), ("inbox", inbox.PURGE)):
        while True:
            deleted, ready = connection.execute(statement, {"most": PURGE_LIMIT}).one()
            gone += deleted
            if deleted < PURGE_LIMIT:
                break
        if not ready:
            log.warning("the %s has no partition for tomorrow: other sessions hold locks on it", table)
    return gone
