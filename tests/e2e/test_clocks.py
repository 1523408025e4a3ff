"""Facts that only a timer finds out. All of them begin before any is awaited, so that they wait at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.system import System, eventually
from tests.e2e.test_cancel import money_of, stock_of
from tests.e2e.test_ops_api import die, listed, mend, queue_of, replayed

CHARGES = "q.payment.inventory-reserved"


@pytest.fixture(scope="module")
def unanswered(system: System) -> str:
    """An order whose payment is never answered."""
    flow = system.flow()
    flow.stock("no-answer", 5)
    return str(flow.order("no-answer", 2, payment="mock_timeout")["order_id"])


@pytest.fixture(scope="module")
def unwritten(system: System) -> list[str]:
    """The order of a message that lies in a DLQ and is written nowhere.

    As the broker leaves it there, when a process dies with it again and again.
    """
    orders = die(system, 1)
    assert system.databases.run("inventory", "DELETE FROM dead_messages WHERE left_at IS NULL") == 1
    assert queue_of(system)["recorded"] == 0
    return orders


@pytest.fixture(scope="module", autouse=True)
def agreement(unwritten: list[str], unanswered: str, system: System) -> Iterator[None]:
    """Both begin before the first test; after the last one all orders are at rest and all books agree."""
    yield
    system.wait_quiet()


def test_a_dead_message_without_a_record_is_counted_within_a_minute(system: System, unwritten: list[str]) -> None:
    told = eventually(lambda: queue_of(system), lambda told: told["recorded"] == told["messages"] == 1, 60)
    assert told["reasons"] == [{"reason": "unknown_order", "count": 1}]
    assert [letter["order_id"] for letter in listed(system)] == unwritten
    mend(system, unwritten)
    assert replayed(system, all=True)["counts"] == {"chosen": 1, "vouched": 1, "applied": 1}


def test_an_order_whose_payment_is_never_answered_ends_by_the_clock_and_costs_nothing(
    system: System, unanswered: str
) -> None:
    flow, order_id = system.flow(), unanswered
    eventually(lambda: system.dead_letters()[f"{CHARGES}.dlq"], lambda count: count == 1, 60, "no charge has died")
    assert flow.get(f"/api/orders/{order_id}")["status"] == "RESERVED"
    # What the clock would do in a quarter of an hour.
    grow_old = "UPDATE orders SET created_at = created_at - interval '1 day' WHERE order_id = :id"
    assert system.databases.run("order", grow_old, id=order_id) == 1
    order = flow.at_rest(order_id)
    assert (order["status"], order["reason"]) == ("CANCELLED", "deadline")
    (step,) = [step for step in flow.timeline(order_id)["steps"] if step["event"] == "deadline"]
    assert (step["by"], step["from"]) == ("system:deadline", "RESERVED")
    eventually(lambda: stock_of(flow, "no-answer"), lambda stock: stock == (5, 0))

    def payment() -> dict[str, Any]:
        (row,) = system.databases.rows("payment", "SELECT * FROM payments WHERE order_id = :id", id=order_id)
        return row

    eventually(payment, lambda row: row["cancelled"])
    grow_old = "UPDATE payments SET updated_at = updated_at - interval '1 minute' WHERE order_id = :id"
    assert system.databases.run("payment", grow_old, id=order_id) == 1
    eventually(payment, lambda row: row["status"] == "VOID")
    assert money_of(system, order_id) == []
    # The dead message may come back: it makes no charge any more.
    replay = ("dlq", "replay", CHARGES, "--all", "--order-id", order_id, "--yes", "--reason-text", "a test")
    ended = system.ecom(*replay)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    system.wait_quiet()
    assert money_of(system, order_id) == []
    assert payment()["status"] == "VOID"
