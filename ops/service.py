"""The operators' service: replays over HTTP, a census of the DLQs, and a witness of the release audit."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from ops import domain, models
from ops.audit import ledger
from ops.audit.witness import Witness
from ops.dlq import overview, replay
from ops.dlq.census import Census
from ops.dlq.dlq_reader import QueueCounter
from ops.dlq.operator_session import Actor, OperatorSession, Watch
from ops.dlq.replay_request import read_filters, read_replay
from ops.dlq.service_databases import ServiceDatabases
from ops.domain import Kind, dlq_of
from ops.queues import measure, working_queues
from shared.edge.background import Background
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.green import Event
from shared.edge.http import Probes
from shared.edge.resources import ProcessResource
from shared.edge.rpc import rpc
from shared.edge.settings import Setting
from shared.edge.timer import every
from shared.errors import EcomError, NotFound, ValidationFailed
from shared.times import timestamp

log = logging.getLogger(__name__)

CENSUS_EVERY_S = 10
MEASURE_EVERY_S = 10
WITNESS_EVERY_S = 1
CENSUS = Actor("system:census", command="census", gives_way=True)

# Each client that follows an order asks for its dead messages: this many short queries may run at one time.
READERS = 5

# The fields of a dead message for a caller who may see its order. Error texts may reveal more and are left out.
STEP_FIELDS = ("message_id", "queue", "event_type", "reason", "died_at")
QUEUE_FIELDS = ("queue", "dlq", "service", "messages", "recorded", "copies", "reasons", "busy", "holder")
REPLAY_FIELDS = (
    "queue", "status", "outcome", "counts", "actor", "why", "filter", "options", "started_at", "finished_at"
)  # fmt: skip
VERIFICATION_FIELDS = ("actor", "intact", "seals", "rows", "outcome", "finished_at")


class OpsService(Probes):
    """Shows, replays and counts dead messages, and witnesses the release audit.

    Every call is made by a user whom a rule of domain.py allows it; to anybody else it raises RoleMissing.
    """

    name = "ops_service"

    settings = Setting()
    db = Database()
    context = Context()
    background = Background()
    databases = ProcessResource(lambda settings: ServiceDatabases(settings, "ecom ops", pool_size=READERS))
    # Kept open: connections and statements made anew for each count cost more than the count.
    census_session = ProcessResource(lambda settings: OperatorSession(settings, CENSUS))
    counter = ProcessResource(lambda settings: QueueCounter(settings.amqp_uri_of("ops"), settings.heartbeat_s))
    census = Census()  # of this process
    witness = Witness()  # of this process

    @rpc
    def queues(self) -> list[dict[str, Any]]:
        """Every working queue with its messages, retries and consumers, and its DLQ. Raises CannotWork.

        Of the DLQ: its count, oldest, newest and reasons, and who works on it.
        """
        self.context.require(domain.may_read_queues)
        with self._operator(self._actor()) as operator:
            working = {one["queue"]: one for one in working_queues(operator.counter)}
            found = overview.overview(operator)
        return [{**_working(working[one["queue"]]), **_queue(one)} for one in found]

    @rpc
    def dead_letters(
        self, queue: str, filters: dict[str, Any], limit: int, cursor: str | None = None
    ) -> dict[str, Any]:
        """A page of what lies in a DLQ, last dead first: {items, next_cursor}.

        `filters`: reason, event_type, order_id, trace_id. Raises NotFound, ValidationFailed, InvalidCursor, CannotWork.
        """
        self.context.require(domain.may_read_queues)
        main, chosen = _known(queue), read_filters(filters)
        items, next_cursor = self.databases.page(main, chosen, limit, cursor)
        return {"items": items, "next_cursor": next_cursor}

    @rpc
    def dead_of_order(self, order_id: str) -> list[dict[str, Any]]:
        """The messages of an order that lie in a DLQ, and why; the caller may see the order. Raises CannotWork."""
        self.context.require(domain.may_read_deaths_of_order)
        return [{name: row[name] for name in STEP_FIELDS} for row in self.databases.of_order(UUID(order_id))]

    @rpc
    def start_replay(self, queue: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Begin a replay; the same as `get_replay`, as soon as it is recorded.

        `wanted`: ids, reasons, error, types, order_id, trace_id, since, until; max or all; rate, ramp; force,
        stop_on_redeath; why. Raises NotFound, ValidationFailed, Conflict, CannotWork.
        """
        self.context.require(domain.may_replay)
        main, asked = _known(queue), read_replay(wanted)
        actor, begun = self._actor(asked.why, f"replay of {main} over HTTP"), Event()

        def job() -> None:
            watch = Watch(
                begun=begun.send,
                stopping=self.background.stopping,
                stopped_by="its service was stopped",
                report_for_s=math.inf,  # the service goes on anyway
            )
            try:
                with self._operator(actor, watch) as operator:
                    replay.replay(operator, main, asked)
            except Exception as error:
                if not begun.ready():
                    begun.send_exception(error)
                elif isinstance(error, EcomError):
                    log.warning("the replay of %s ended: %s", main, error)
                else:
                    log.exception("the replay of %s ended", main)

        self.background.spawn(job, f"replay of {main}")
        return self.get_replay(str(begun.wait()))

    @rpc
    def get_replay(self, replay_id: str) -> dict[str, Any]:
        """A replay as it is now. Raises NotFound."""
        self.context.require(domain.may_replay)
        try:
            operation_id = UUID(replay_id)
        except (ValueError, AttributeError, TypeError):
            raise NotFound(f"There is no replay {replay_id}.") from None
        with self.db.read() as session:
            found = models.operation_now(session.connection(), operation_id)
        if found["kind"] != Kind.REPLAY:
            raise NotFound(f"There is no replay {replay_id}.")
        return {"replay_id": found["operation_id"], **{name: found[name] for name in REPLAY_FIELDS}}

    @rpc
    def operations_of(self, order_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
        """The operators' replays and imports for these orders, oldest first, by order_id; only orders that have any.

        Each {operation_id, kind, queue, actor, why, message_id, event_type, at}.
        """
        self.context.require(domain.may_read_audit)
        with self.db.read() as session:
            return models.operations_of(session.connection(), [UUID(order_id) for order_id in order_ids])

    @rpc
    def audit_status(self) -> dict[str, Any]:
        """The release audit in the ledger: {head, verification, trouble}, each None where there is none.

        `head`: the newest seal seen, {seq, mac, total, at}. `verification`: the last one, {actor, intact, seals, rows,
        outcome, finished_at}. `trouble`: the difference between the chain and the ledger, in words.
        """
        self.context.require(domain.may_read_audit)
        with self.db.read() as session:
            head = ledger.newest_head(session.connection())
            verified = ledger.verifications(session.connection(), 1)
        return {
            "head": {**head, "at": timestamp(head["at"])} if head else None,
            "verification": {name: verified[0][name] for name in VERIFICATION_FIELDS} if verified else None,
            "trouble": self.witness.trouble,
        }

    @every(WITNESS_EVERY_S)
    def watch_seals(self) -> None:
        """Copy the heads of the release audit's chain into the ledger."""
        self.witness.run_once(self.db, self.databases)

    @every(CENSUS_EVERY_S)
    def count(self) -> None:
        """Compare the messages in the DLQs with those that are recorded."""
        self.census.run_once(self.census_session)

    @every(MEASURE_EVERY_S)
    def measure_queues(self) -> None:
        """Set the gauges of the working queues."""
        measure(self.counter)

    def _actor(self, why: str = "", command: str = "") -> Actor:
        return Actor(self.context.identity.user_id, why, command)

    @contextmanager
    def _operator(self, actor: Actor, watch: Watch | None = None) -> Iterator[OperatorSession]:
        operator = OperatorSession(self.settings, actor, watch or Watch())
        try:
            yield operator
        finally:
            operator.close()


def _known(queue: str) -> str:
    """The main queue of a queue's or DLQ's name. Raises NotFound."""
    try:
        return dlq_of(str(queue))[0]
    except ValidationFailed as error:
        raise NotFound(str(error)) from error


def _working(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "ready": one["ready"],
        "retrying": sum(level["messages"] for level in one["retrying"]),
        "consumers": one["consumers"],
    }


def _queue(one: Mapping[str, Any]) -> dict[str, Any]:
    times = {name: timestamp(one[name]) if one[name] else None for name in ("oldest", "newest")}
    return {**{name: one[name] for name in QUEUE_FIELDS}, **times}
