"""`ecom dlq` commands that are killed in the middle of their work: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ops.local.processes import wait_until
from tests.commands import Ended, ecom, started
from tests.e2e.broker import depths
from tests.e2e.system import System, eventually
from topology.table import dead_letter_queue, queue_arguments

pytestmark = pytest.mark.timeout(900)

ORDERS = "q.inventory.order-created"
CANCELLATIONS = "q.payment.order-cancelled"
ON_HAND = 100_000
AGAIN_WITHIN_S = 60.0  # the census works on a DLQ whose count differs, as it does after a kill
CUSTOMERS = 4


def post(system: System, sku: str, count: int) -> set[str]:
    """Post orders side by side; their ids."""
    system.flow().stock(sku, ON_HAND)
    accepted: set[str] = set()

    def shop(customer: int) -> None:
        flow = system.flow(customer % system.replicas)
        accepted.update(flow.order(sku)["order_id"] for _ in range(customer, count, CUSTOMERS))

    system.flow().token("customer")
    threads = [threading.Thread(target=shop, args=(customer,)) for customer in range(CUSTOMERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accepted) == count
    return accepted


@contextmanager
def no_reservation_can_be_made(system: System) -> Iterator[None]:
    """A fault in the database of inventory_service, mended at the end of the block."""
    system.databases.run("inventory", "ALTER TABLE reservations ADD CONSTRAINT test_fault CHECK (false) NOT VALID")
    try:
        yield
    finally:
        system.databases.run("inventory", "ALTER TABLE reservations DROP CONSTRAINT test_fault")


def operations(system: System, queue: str, kind: str) -> dict[str, int]:
    """How many operations on a DLQ ended in which way."""
    rows = system.databases.rows(
        "ops",
        "SELECT status, count(*) AS times FROM operations WHERE queue = :queue AND kind = :kind GROUP BY 1",
        queue=dead_letter_queue(queue),
        kind=kind,
    )
    return {row["status"]: row["times"] for row in rows}


def done(*words: object) -> Ended:
    """Run `ecom dlq` to its end; repeat it while the census holds the DLQ."""
    ended: Ended = eventually(
        lambda: ecom("dlq", *words, code=None), lambda ended: "worked on" not in ended.err, AGAIN_WITHIN_S
    )
    assert ended.code == 0, f"{words}: exit {ended.code}\n{ended.out}{ended.err}"
    return ended


def kill_after(system: System, wait_s: float, *words: object) -> bool:
    """SIGKILL `ecom dlq` so long after it has written down that it began; False when it had ended by then."""
    statement = "SELECT count(*) AS times FROM operations"

    def begun() -> int:
        return int(system.databases.rows("ops", statement)[0]["times"])

    before, deadline = begun(), time.monotonic() + AGAIN_WITHIN_S
    while time.monotonic() < deadline:
        with started("dlq", *words) as command:
            assert wait_until(lambda: begun() > before or not command.running(), AGAIN_WITHIN_S, pause_s=0.01)
            if begun() > before:
                at = time.monotonic() + wait_s
                return not wait_until(lambda: not command.running(), at - time.monotonic(), pause_s=0.005)
    raise AssertionError(f"{words} never begins")


def test_a_replay_that_is_killed_again_and_again_applies_every_message_once(system: System, long: bool) -> None:
    chance, kills = random.Random(20260114), 20 if long else 3
    count, rate = (1500, 100) if long else (90, 30)
    sku = f"replay-{uuid.uuid4().hex[:8]}"
    dlq = dead_letter_queue(ORDERS)
    with no_reservation_can_be_made(system):
        orders = post(system, sku, count)
        eventually(system.dead_letters, lambda found: found[dlq] == count, 180, "not dead")
    (reason,) = {row["reason"] for row in system.deaths() if row["queue"] == ORDERS}
    assert reason == "exhausted"

    for _ in range(kills):
        assert kill_after(system, chance.uniform(0, 0.8), "replay", ORDERS, "--all", "--yes", "--rate", f"{rate}/s"), (
            "it was through before it was killed"
        )
    assert eventually(system.dead_letters, lambda found: found[dlq] > 0, 5), "nothing was left to be done"
    done("replay", ORDERS, "--all", "--yes", "--rate", "max")

    system.wait_quiet(60)
    everywhere = depths(system.amqp_uri, queue_arguments())
    assert {name: waiting for name, waiting in everywhere.items() if waiting} == {}
    told = system.databases.rows(
        "order", "SELECT message_id, aggregate_id FROM outbox WHERE event_type = 'order.created'"
    )
    ours = {row["message_id"] for row in told if str(row["aggregate_id"]) in orders}
    inbox = system.databases.rows(
        "inventory", "SELECT message_id FROM consumed_messages WHERE consumer = :queue", queue=ORDERS
    )
    assert len(ours) == count
    assert ours <= {row["message_id"] for row in inbox}
    # One piece for each order, and one sale: a message that acted twice would have taken two.
    (stock,) = system.databases.rows("inventory", "SELECT on_hand, reserved FROM stock_items WHERE sku = :sku", sku=sku)
    assert stock == {"on_hand": ON_HAND - count, "reserved": 0}
    paid = system.databases.rows("order", "SELECT order_id FROM orders WHERE status = 'PAID'")
    assert orders <= {str(row["order_id"]) for row in paid}
    assert operations(system, ORDERS, "replay") == {"interrupted": kills, "done": 1}


def dead_cancellations(file: Path, count: int) -> set[str]:
    """Write a file that `ecom dlq import` takes; the ids in it."""
    ids = {str(uuid.uuid4()) for _ in range(count)}
    moment = datetime.now(UTC).isoformat()
    with file.open("x", encoding="utf-8") as lines:
        for message_id in ids:
            line = {
                "queue": dead_letter_queue(CANCELLATIONS),
                "exchange": "ecom.failed.payment",
                "routing_key": dead_letter_queue(CANCELLATIONS),
                "properties": {"message_id": message_id, "type": "order.cancelled"},
                "headers": {"x-reason": "exhausted", "x-first-failed-at": moment, "x-last-failed-at": moment},
                "body": json.dumps({"order_id": str(uuid.uuid4()), "reason": "deadline"}),
            }
            lines.write(json.dumps(line) + "\n")
    return ids


def ids_in(file: Path) -> list[str]:
    """The ids in a file of dead messages, line by line; none where there is no file."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line)["properties"]["message_id"] for line in lines]


def test_a_discard_or_an_import_that_is_killed_leaves_every_message_in_the_dlq_or_in_the_file(
    system: System, long: bool, tmp_path: Path
) -> None:
    chance, rounds, count = random.Random(20260115), 10 if long else 2, 10_000 if long else 1_000
    numbers = iter(range(1000))
    everything = tmp_path / "everything.jsonl"
    ids = dead_cancellations(everything, count)
    void = "SELECT FROM payments WHERE status = 'VOID'"
    consumed = len(system.databases.rows("payment", void))
    done("import", everything, "--yes")

    def new_file() -> Path:
        return tmp_path / f"{next(numbers)}.jsonl"

    def in_dlq() -> set[str]:
        done("export", CANCELLATIONS, file := new_file())
        return set(ids_in(file))

    def takes(kind: str) -> float:
        statement = "SELECT extract(epoch FROM finished_at - started_at)::float AS s FROM operations WHERE kind = :kind"
        newest = " AND status = 'done' ORDER BY started_at DESC LIMIT 1"
        return float(system.databases.rows("ops", statement + newest, kind=kind)[0]["s"])

    assert in_dlq() == ids
    killed: dict[str, int] = {"discard": 0, "import": 0}

    def kill(kind: str, *words: object) -> None:
        killed[kind] += kill_after(system, chance.uniform(0.1, 1.2) * takes("export"), kind, *words, "--yes")

    for _ in range(rounds):
        file = new_file()
        kill("discard", CANCELLATIONS, "--to", file, "--all")
        there, filed = in_dlq(), set(ids_in(file))
        assert there | filed == ids
        assert filed in (set(), ids), "a file is there whole or not at all"
        if filed:
            kill("import", file)
            assert in_dlq() >= there, "an import takes nothing away"
            done("import", file, "--yes")
            assert in_dlq() == ids

    file = new_file()
    done("discard", CANCELLATIONS, "--to", file, "--all", "--yes")
    assert set(ids_in(file)) == ids
    print(f"\nkilled {killed}, {len(ids_in(file)) - count} second copies")
    assert eventually(lambda: system.dead_letters(), lambda found: not any(found.values()), 10)
    assert killed["discard"] > 0
    assert len(system.databases.rows("payment", void)) == consumed, "none was consumed"
