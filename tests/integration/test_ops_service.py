"""The ops service in its container: its answers, and how a replay ends when the service stops."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import eventlet
import pytest
from eventlet.event import Event
from nameko.containers import ServiceContainer
from nameko.testing.services import entrypoint_hook

from ops import models
from ops.dlq import selection
from ops.dlq.dlq_reader import DlqReader
from ops.dlq.operator_session import Actor, OperatorSession
from ops.domain import Filter, Kind
from ops.service import OpsService
from shared.config import Settings
from shared.edge.background import Background
from shared.edge.broker import BrokerConnection
from shared.errors import CannotWork, Conflict, NotFound, ValidationFailed
from shared.times import timestamp
from tests.databases import Databases
from tests.integration.support import Mail, container_of, extension, until

MAIN = "q.inventory.commit-requested"
DLQ = f"{MAIN}.dlq"
# Slow enough to be under way for as long as a test is.
SLOW = {"all": True, "rate": "1/h"}

Ask = Callable[..., Any]


@pytest.fixture
def container(
    settings: Settings, database: Databases, mail: Mail, connections: list[BrokerConnection]
) -> Iterator[ServiceContainer]:
    container = container_of(settings, OpsService, WEB_SERVER_ADDRESS="127.0.0.1:0")
    container.start()
    yield container
    container.kill()


@pytest.fixture
def ask(container: ServiceContainer) -> Ask:
    """Calls a method of the service as `alice`."""
    return asking(container)


def asking(container: ServiceContainer) -> Ask:
    def ask(method: str, *args: Any) -> Any:
        with entrypoint_hook(container, method, {"user_id": "alice", "roles": ["operator", "auditor"]}) as call:
            return call(*args)

    return ask


def die(mail: Mail, count: int) -> None:
    """Messages lie in the DLQ, of orders that are nowhere."""
    now = timestamp(datetime.now(UTC))
    for _ in range(count):
        headers = {"x-reason": "unknown_order", "x-first-failed-at": now, "x-last-failed-at": now}
        mail.put(DLQ, json.dumps({"order_id": str(uuid.uuid4())}), headers)


def sent(ask: Ask, replay_id: str) -> int:
    return int(ask("get_replay", replay_id)["counts"].get("sent", 0))


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"all": True, "ids": ["7"]},
        {"all": True, "since": "2026-01-14T10:30:00"},
        {"all": True, "rate": "fast"},
        {"all": True, "rate": "9" * 400 + "/s"},
        {"all": True, "order_id": 7},
        {"max": "1"},
        {"all": True, "colour": "red"},
    ],
)
def test_a_replay_that_cannot_be_meant_is_refused_and_nothing_is_written_down(
    ask: Ask, database: Databases, wanted: dict[str, Any]
) -> None:
    with pytest.raises(ValidationFailed):
        ask("start_replay", MAIN, wanted)
    assert database.rows("ops", "SELECT 1 FROM operations") == []


def test_the_working_queues_are_counted_beside_their_dlqs(ask: Ask, mail: Mail) -> None:
    die(mail, 2)
    mail.put(MAIN, "{}", {})
    until(lambda: (mail.waiting(MAIN), mail.waiting(DLQ)) == (1, 2))
    (one,) = [one for one in ask("queues") if one["queue"] == MAIN]
    assert (one["ready"], one["retrying"], one["consumers"], one["messages"]) == (1, 0, 0, 2)


def test_queues_are_shown_over_one_connection_to_the_broker(
    ask: Ask, mail: Mail, connections: list[BrokerConnection]
) -> None:
    until(lambda: len(connections) == 2)  # those of its timers
    ask("queues")
    assert len(connections) == 3


@pytest.mark.parametrize("queue", ["q.nobody", f"{MAIN}.retry", "", 7, None, "a\0b"])
def test_a_queue_that_is_not_in_the_table_is_not_found(ask: Ask, queue: Any) -> None:
    with pytest.raises(NotFound):
        ask("start_replay", queue, {"all": True})
    with pytest.raises(NotFound):
        ask("dead_letters", queue, {}, 50)


def test_filters_that_cannot_be_are_refused(ask: Ask) -> None:
    for filters in ({"order_id": "7"}, {"metadata": "x"}, {"reason": None}):
        with pytest.raises(ValidationFailed):
            ask("dead_letters", MAIN, filters, 50)


@pytest.mark.parametrize("replay_id", ["7", "", 7, None, [], str(uuid.uuid4())])
def test_a_replay_that_is_not_there_is_not_found(ask: Ask, replay_id: Any) -> None:
    with pytest.raises(NotFound):
        ask("get_replay", replay_id)


def test_another_operation_is_no_replay(ask: Ask, settings: Settings) -> None:
    operator = OperatorSession(settings, Actor("bob"))
    with operator.operation(Kind.EXPORT, DLQ, Filter(), {}) as run:
        pass
    operator.close()
    with pytest.raises(NotFound):
        ask("get_replay", str(run.operation_id))


def test_a_second_replay_is_told_who_is_at_it(ask: Ask, mail: Mail) -> None:
    die(mail, 2)
    first = ask("start_replay", MAIN, {**SLOW, "why": "one by one"})
    assert (first["actor"], first["why"], first["queue"], first["finished_at"]) == ("alice", "one by one", DLQ, None)
    with pytest.raises(Conflict, match="alice"):
        ask("start_replay", DLQ, SLOW)
    (busy,) = [one for one in ask("queues") if one["busy"]]
    assert (busy["dlq"], busy["busy"]) == (DLQ, "alice")


def test_an_error_before_the_replay_is_recorded_reaches_the_caller(
    settings: Settings, container: ServiceContainer, database: Databases
) -> None:
    container.config["settings"] = replace(
        settings, database_urls={**settings.database_urls, "ops": "postgresql+psycopg2://nobody:x@127.0.0.1:1/ops"}
    )
    with pytest.raises(CannotWork):
        asking(container)("start_replay", MAIN, {"all": True})
    assert database.rows("ops", "SELECT 1 FROM operations") == []


def test_a_stop_ends_a_slow_replay_within_seconds_as_stopped(
    container: ServiceContainer, ask: Ask, mail: Mail, database: Databases
) -> None:
    die(mail, 3)
    begun = ask("start_replay", MAIN, SLOW)
    until(lambda: sent(ask, begun["replay_id"]) == 1)

    with eventlet.Timeout(10):
        container.stop()

    (row,) = database.rows("ops", "SELECT status, outcome, counts, finished_at FROM operations")
    assert (row["status"], row["outcome"]) == ("stopped", "its service was stopped")
    assert row["counts"] == {"chosen": 3, "sent": 1}
    assert row["finished_at"]
    assert (mail.waiting(MAIN), mail.waiting(DLQ)) == (1, 2)


def test_a_stop_while_the_queue_is_read_ends_it_as_stopped_with_nothing_sent(
    container: ServiceContainer, ask: Ask, mail: Mail, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    die(mail, 3)
    reading, go_on, seen = Event(), Event(), []

    def slowly(self: DlqReader) -> Iterator[Any]:
        for item in read_all(self):
            if not reading.ready():
                reading.send()
            go_on.wait()
            seen.append(item)
            yield item

    read_all = DlqReader.read
    monkeypatch.setattr(DlqReader, "read", slowly)
    monkeypatch.setattr(selection, "REPORT_EVERY", 1)
    ask("start_replay", MAIN, {"all": True})
    reading.wait()
    stopping = eventlet.spawn(container.stop)
    until(extension(container, Background).stopping)
    go_on.send()
    with eventlet.Timeout(10):
        stopping.wait()

    (row,) = database.rows("ops", "SELECT status, outcome, counts FROM operations")
    assert (row["status"], row["outcome"]) == ("stopped", "its service was stopped")
    assert len(seen) == 1
    assert until(lambda: mail.waiting(DLQ)) == 3


def test_a_replay_whose_process_died_says_so_though_nobody_has_come_since(ask: Ask, settings: Settings) -> None:
    operator = OperatorSession(settings, Actor("alice"))
    with operator.ledger() as ledger:
        operator.take(ledger, DLQ)
        replay_id = str(models.start(ledger, models.NewOperation(Kind.REPLAY, DLQ, "alice", "", Filter(), {})))
        assert ask("get_replay", replay_id)["status"] == "started"
    operator.close()  # its sessions end as a dead process's do
    died = until(lambda: (found := ask("get_replay", replay_id))["status"] != "started" and found)
    assert (died["status"], died["outcome"]) == ("interrupted", models.DIED)
