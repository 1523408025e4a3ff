"""The operators' service: what `ecom dlq` does, over HTTP; and a census of the DLQs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from eventlet.event import Event
from nameko.dependency_providers import Config

from ops import models
from ops.dlq import overview, replay
from ops.dlq.census import Census
from ops.dlq.desk import Actor, Desk, Watch
from ops.domain import Filter, Kind, Pace, dlq_of, parse_ramp, parse_rate
from shared.config import Settings
from shared.edge.background import Background
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.http import Probes
from shared.edge.rpc import rpc
from shared.edge.timer import every
from shared.errors import EcomError, NotFound

log = logging.getLogger(__name__)

CENSUS_EVERY_S = 10
CENSUS = Actor("system:census")


class OpsService(Probes):
    """Shows dead messages, replays them, and keeps count of them."""

    name = "ops_service"

    config = Config()
    db = Database()
    context = Context()
    background = Background()
    census = Census()  # of this process

    @rpc
    def queues(self) -> list[dict[str, Any]]:
        """Every DLQ with its count, oldest, newest and reasons. Raises CannotWork."""
        with self._desk(self._actor()) as desk:
            found = overview.overview(desk)
        return [{**one, "oldest": _text(one["oldest"]), "newest": _text(one["newest"])} for one in found]

    @rpc
    def dead_letters(
        self, queue: str, filters: dict[str, Any], limit: int, cursor: str | None = None
    ) -> dict[str, Any]:
        """A page of what lies in a DLQ, last dead first: {items, next_cursor}. Raises NotFound, InvalidCursor."""
        main = _known(queue)
        with self._desk(self._actor()) as desk:
            items, next_cursor = desk.books.page(main, filters, limit, cursor)
        return {"items": items, "next_cursor": next_cursor}

    @rpc
    def start_replay(self, queue: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Begin a replay; the operation as it is written down. Raises NotFound, Conflict, CannotWork.

        `wanted`: ids, reasons, error, types, order_id, trace_id, since, until; max; rate, ramp; force,
        stop_on_redeath; why.
        """
        main = _known(queue)
        chosen = Filter(
            ids=frozenset(map(UUID, wanted.get("ids", ()))),
            reasons=frozenset(wanted.get("reasons", ())),
            error=wanted.get("error", ""),
            types=frozenset(wanted.get("types", ())),
            order_id=UUID(wanted["order_id"]) if wanted.get("order_id") else None,
            trace_id=wanted.get("trace_id", ""),
            since=datetime.fromisoformat(wanted["since"]) if wanted.get("since") else None,
            until=datetime.fromisoformat(wanted["until"]) if wanted.get("until") else None,
        )
        pace = Pace(parse_rate(wanted["rate"]), parse_ramp(wanted["ramp"]) if wanted.get("ramp") else ())
        force, stop = bool(wanted.get("force")), bool(wanted.get("stop_on_redeath"))
        actor, begun = self._actor(wanted.get("why", "")), Event()

        def job() -> None:
            watch = Watch(begun=begun.send, stopping=self.background.stopping)
            try:
                with self._desk(actor, watch) as desk:
                    replay.replay(desk, main, chosen, wanted.get("max"), pace, force, stop)
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
        try:
            operation_id = UUID(replay_id)
        except ValueError:
            raise NotFound(f"There is no replay {replay_id}.") from None
        with self.db.read() as session:
            found = models.operation(session.connection(), operation_id)
        if found["kind"] != Kind.REPLAY:
            raise NotFound(f"There is no replay {replay_id}.")
        return found

    @every(CENSUS_EVERY_S)
    def count(self) -> None:
        """Compare what lies in the DLQs with what is written down of it."""
        with self._desk(CENSUS) as desk:
            self.census.run_once(desk)

    def _actor(self, why: str = "") -> Actor:
        return Actor(self.context.identity.user_id, why)

    @contextmanager
    def _desk(self, actor: Actor, watch: Watch | None = None) -> Iterator[Desk]:
        settings: Settings = self.config["settings"]
        desk = Desk(settings, actor, watch or Watch())
        try:
            yield desk
        finally:
            desk.close()


def _known(queue: str) -> str:
    """The main queue of a queue's or DLQ's name. Raises NotFound."""
    try:
        return dlq_of(queue)[0]
    except EcomError as error:
        raise NotFound(str(error)) from error


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z") if moment else None
