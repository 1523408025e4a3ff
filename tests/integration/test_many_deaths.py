"""A DLQ with very many messages: every command goes through all of them, loses none and stays small."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from ops.local.processes import Process, spawn
from shared.config import Settings
from shared.deaths import record_deaths
from shared.edge.publisher import Outgoing
from shared.errors import UnexpectedEvent
from shared.events import OrderCancelled
from shared.failures import FailedDelivery, classify_failure, exchange_of
from tests.commands import ECOM, ROOT, Ended, ecom, ecom_here
from tests.databases import Databases
from tests.integration.support import Bench, Mail, delivery, emitted, until
from topology.table import queue_arguments

QUEUE = "q.payment.order-cancelled"
DLQ = f"{QUEUE}.dlq"

MOST_MEMORY_BYTES = 200 * 1024 * 1024
CHUNK = 1000
TIMEOUT_S = 1500.0

HOW_MANY = [1_100, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])]


@dataclass(frozen=True)
class Dead:
    """The messages in the DLQ: their ids and their orders."""

    messages: set[UUID]
    orders: set[UUID]


def bury(bench: Bench, mail: Mail, count: int) -> Dead:
    """Put cancellations into the DLQ as their consumer does with what it cannot handle."""
    dead = Dead(set(), set())
    while len(dead.messages) < count:
        events = [emitted(OrderCancelled(uuid4(), "deadline")) for _ in range(min(CHUNK, count - len(dead.messages)))]
        apart = [FailedDelivery(delivery(event), event, UnexpectedEvent("not now")) for event in events]
        failures = [classify_failure(item, "payment", QUEUE) for item in apart]
        with bench.sessions.begin() as session:
            record_deaths(session, failures)
        mail.send(
            [
                Outgoing(exchange_of(one), one.target, one.body, str(one.message_id), one.type, one.headers)
                for one in failures
            ]
        )
        dead.messages.update(event.message_id for event in events)
        dead.orders.update(event.payload.order_id for event in events)
    return dead


@contextmanager
def payment_service(log: Path) -> Iterator[None]:
    """A replica of the service that takes what is replayed, as a process of its own."""
    popen = spawn([ECOM, "run", "payment"], log=log, env=os.environ, cwd=ROOT, dies_with_us=signal.SIGKILL)
    process = Process.of(popen.pid)
    try:
        yield
    finally:
        if process:
            process.end()
        popen.wait()


def ids_in(file: Path) -> list[UUID]:
    """The ids of an exported file, line by line."""
    with file.open(encoding="utf-8") as lines:
        return [UUID(json.loads(line)["properties"]["message_id"]) for line in lines]


def left(database: Databases) -> dict[str | None, int]:
    rows = database.rows("payment", "SELECT left_how, count(*) AS times FROM dead_messages GROUP BY 1")
    return {row["left_how"]: row["times"] for row in rows}


class Measured:
    """Runs commands and keeps what they cost: at full size in processes of their own, whose memory can be told."""

    def __init__(self, messages: int, long: bool) -> None:
        self.messages = messages
        self.long = long
        self.lines: list[str] = []
        self.peaks: dict[str, int] = {}

    def __call__(self, name: str, *words: object, code: int = 0) -> Any:
        if not self.long:
            return ecom_here("dlq", *words, "--json", code=code).answer
        ended: Ended = ecom("dlq", *words, "--json", code=code, patience_s=TIMEOUT_S)
        pace = self.messages / ended.seconds
        self.lines.append(f"| {name} | {ended.seconds:.1f} | {pace:,.0f} | {ended.peak_bytes / 2**20:.0f} |")
        self.peaks[name] = ended.peak_bytes
        return ended.answer


@pytest.mark.parametrize("count", HOW_MANY)
def test_many_dead_messages_are_listed_exported_discarded_put_back_and_replayed(
    count: int, settings: Settings, database: Databases, mail: Mail, bench: Any, tmp_path: Path, long: bool
) -> None:
    dead, run = bury(bench("payment"), mail, count), Measured(count, long)
    until(lambda: mail.waiting(DLQ) == count)
    exported, discarded = tmp_path / "exported.jsonl", tmp_path / "discarded.jsonl"

    (listed,) = [one for one in run("ls", "ls", code=1)["queues"] if one["messages"]]
    assert (listed["dlq"], listed["messages"], listed["recorded"]) == (DLQ, count, count)
    assert listed["reasons"] == [{"reason": "unexpected_event", "count": count}]
    (scanned,) = [one for one in run("ls --scan", "ls", "--scan", code=1)["queues"] if one["messages"]]
    assert scanned["reasons"] == listed["reasons"]
    (group,) = run("groups --scan", "groups", QUEUE, "--scan", code=1)["groups"]
    assert (group["count"], group["event_type"]) == (count, "order.cancelled")
    peeked = run("peek", "peek", QUEUE)
    assert (len(peeked["messages"]), peeked["matching"], peeked["in_queue"]) == (20, count, count)
    (diagnosed,) = run("diagnose", "diagnose", QUEUE)["groups"]
    assert (diagnosed["count"], diagnosed["prediction"]) == (count, "will apply")

    run("export", "export", QUEUE, exported)
    assert sorted(ids_in(exported)) == sorted(dead.messages)
    until(lambda: mail.waiting(DLQ) == count, 30)
    assert left(database) == {None: count}

    run("discard", "discard", QUEUE, "--to", discarded, "--all", "--yes")
    assert sorted(ids_in(discarded)) == sorted(dead.messages)
    assert mail.waiting(DLQ) == 0
    assert left(database) == {"discarded": count}

    run("import", "import", discarded, "--yes")
    assert mail.waiting(DLQ) == count
    assert left(database) == {None: count}

    with payment_service(tmp_path / "payment.log"):
        (replayed,) = run("replay", "replay", QUEUE, "--all", "--yes", "--rate", "max")["operations"]
    assert (replayed["status"], replayed["applied"]) == ("done", count)
    inbox = database.rows("payment", "SELECT message_id FROM consumed_messages WHERE consumer = :queue", queue=QUEUE)
    assert {row["message_id"] for row in inbox} == dead.messages
    voided = database.rows("payment", "SELECT order_id, status FROM payments")
    assert {(row["order_id"], row["status"]) for row in voided} == {(order, "VOID") for order in dead.orders}
    assert left(database) == {"replayed": count}
    assert {name: mail.waiting(name) for name in queue_arguments() if mail.waiting(name)} == {}
    if not long:
        return
    print("", "| command | seconds | messages/s | peak MB |", "|---|---|---|---|", *run.lines, sep="\n")
    assert {name: peak for name, peak in run.peaks.items() if peak >= MOST_MEMORY_BYTES} == {}
