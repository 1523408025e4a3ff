"""Cancelled orders: at any moment of the saga the customer gets the money back and the shop its stock."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from ops.cli.flow import Flow
from tests.e2e.held import held
from tests.e2e.system import System, eventually


def cancelling(flow: Flow, order_id: str, key: str = "", user: str = "customer") -> requests.Response:
    path = f"/api/orders/{order_id}/cancel"
    return flow.send("POST", path, user=user, Idempotency_Key=key or str(uuid.uuid4()))


def retry(flow: Flow, order_id: str, user: str = "operator") -> requests.Response:
    return flow.send("POST", f"/api/orders/{order_id}/refund/retry", user=user)


def code_of(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def money_of(system: System, order_id: str) -> list[tuple[str, int]]:
    """The provider's transfers for an order."""
    statement = "SELECT kind, amount FROM provider_ledger WHERE order_id = :id AND done ORDER BY at"
    return [(row["kind"], row["amount"]) for row in system.databases.rows("payment", statement, id=order_id)]


def stock_of(flow: Flow, sku: str) -> tuple[int, int]:
    stock = flow.get(f"/api/stocks/{sku}")
    return stock["on_hand"], stock["reserved"]


def events_of(flow: Flow, order_id: str) -> list[tuple[str, str]]:
    return [(step["event"], step["to"]) for step in flow.timeline(order_id)["steps"]]


def paid(flow: Flow, sku: str, quantity: int = 2, payment: str = "mock_ok") -> str:
    """An order that is paid and whose stock is sold."""
    order_id = str(flow.order(sku, quantity, payment=payment)["order_id"])
    assert flow.at_rest(order_id)["status"] == "PAID"
    flow.timeline(order_id, last="inventory.committed")
    return order_id


@pytest.mark.parametrize(
    ("keeps_silent", "money"),
    [
        ("order", []),  # no service has consumed it
        ("inventory", []),  # its stock is held, and no other service knows it
        ("payment", [("charge", 2000), ("refund", 2000)]),  # it is charged, and the order does not know it yet
    ],
)
def test_an_order_cancelled_before_its_payment_is_known_costs_nothing(
    system: System, keeps_silent: str, money: list[tuple[str, int]]
) -> None:
    flow = system.flow()
    sku = f"early-{keeps_silent}"
    flow.stock(sku, 5)
    with held(system.databases, keeps_silent):
        order_id = flow.order(sku, 2)["order_id"]
        if keeps_silent == "inventory":
            eventually(lambda: stock_of(flow, sku), lambda stock: stock == (5, 2))
        if keeps_silent == "payment":
            eventually(lambda: money_of(system, order_id), bool)
            Flow.until(lambda: flow.get(f"/api/orders/{order_id}"), lambda order: order["status"] == "RESERVED")
        cancelled = flow.cancel(order_id)
        assert (cancelled["status"], cancelled["reason"]) == ("CANCELLED", "order_cancelled")
    system.wait_quiet()
    order = flow.at_rest(order_id)
    assert (order["status"], order["reason"]) == ("CANCELLED", "order_cancelled")
    assert money_of(system, order_id) == money
    assert stock_of(flow, sku) == (5, 0)


def test_a_paid_order_that_is_cancelled_is_given_back(system: System) -> None:
    flow = system.flow()
    flow.stock("paid-back", 5)
    order_id = paid(flow, "paid-back")
    assert stock_of(flow, "paid-back") == (3, 0)
    cancelled = flow.cancel(order_id)
    assert (cancelled["status"], cancelled["reason"]) == ("REFUND_PENDING", "order_cancelled")
    assert flow.at_rest(order_id)["status"] == "CANCELLED"
    assert money_of(system, order_id) == [("charge", 2000), ("refund", 2000)]
    eventually(lambda: stock_of(flow, "paid-back"), lambda stock: stock == (5, 0))
    steps = flow.timeline(order_id, last="inventory.released")["steps"]
    (step,) = [step for step in steps if step["event"] == "cancel"]
    assert (step["from"], step["to"], step["by"], step["source"]) == (
        "PAID",
        "REFUND_PENDING",
        "customer",
        "order_service",
    )
    (release,) = flow.get(f"/api/stocks/release-events?order_id={order_id}", user="auditor")["items"]
    assert (release["quantity"], release["reason"], release["requested_by"]) == (2, "order_cancelled", "customer")


def test_a_refund_that_is_declined_waits_for_an_operator(system: System) -> None:
    flow = system.flow()
    flow.stock("declined-back", 5)
    order_id = paid(flow, "declined-back", payment="mock_refund_declined")
    flow.cancel(order_id)
    assert flow.at_rest(order_id)["status"] == "REFUND_FAILED"
    awaits = flow.timeline(order_id)["awaits"]
    assert (awaits["from"], awaits["events"]) == ("operator", ["refund.retry"])
    assert cancelling(flow, order_id).json()["status"] == "REFUND_FAILED"
    # Declined once more: another refund_id, since the provider remembers its answer to the first.
    assert retry(flow, order_id).json()["status"] == "REFUND_PENDING"
    assert flow.at_rest(order_id)["status"] == "REFUND_FAILED"
    made_good = "UPDATE payments SET method = 'mock_ok' WHERE order_id = :id"
    assert system.databases.run("payment", made_good, id=order_id) == 1
    assert retry(flow, order_id).status_code == 202
    assert flow.at_rest(order_id)["status"] == "CANCELLED"
    assert money_of(system, order_id) == [("charge", 2000), ("refund", 2000)]
    refunds = system.databases.rows("payment", "SELECT status FROM refunds WHERE order_id = :id", id=order_id)
    assert Counter(row["status"] for row in refunds) == {"FAILED": 2, "COMPLETED": 1}
    (by,) = {step["by"] for step in flow.timeline(order_id)["steps"] if step["event"] == "refund.retry"}
    assert by == "operator"


def test_a_refund_message_that_was_thrown_away_is_made_good_by_the_operators_retry(system: System) -> None:
    flow = system.flow()
    flow.stock("thrown-away", 5)
    order_id = paid(flow, "thrown-away")
    lost = "DELETE FROM outbox WHERE aggregate_id = :id AND event_type = 'payment.refund.requested'"
    with held(system.databases, "order"):
        flow.cancel(order_id)
        assert system.databases.run("order", lost, id=order_id) == 1
    order = flow.get(f"/api/orders/{order_id}")
    assert order["status"] == "REFUND_PENDING"
    before = system.databases.rows("order", "SELECT refund_id FROM orders WHERE order_id = :id", id=order_id)
    assert retry(flow, order_id).json()["status"] == "REFUND_PENDING"
    assert flow.at_rest(order_id)["status"] == "CANCELLED"
    assert money_of(system, order_id) == [("charge", 2000), ("refund", 2000)]
    # The same refund: had the first message not been lost after all, the provider would have known it again.
    assert system.databases.rows("payment", "SELECT refund_id FROM refunds WHERE order_id = :id", id=order_id) == before


def test_a_repeat_of_a_key_has_the_first_answer_and_another_key_the_order_as_it_is(system: System) -> None:
    flow, other = system.flow(0), system.flow(1)
    flow.stock("again-cancelled", 5)
    order_id = paid(flow, "again-cancelled")
    first = cancelling(flow, order_id, "cancel-once")
    assert (first.status_code, first.json()["status"]) == (202, "REFUND_PENDING")
    assert "Idempotent-Replayed" not in first.headers
    assert first.headers["Location"] == f"/api/orders/{order_id}"
    assert flow.at_rest(order_id)["status"] == "CANCELLED"
    again = cancelling(other, order_id, "cancel-once")
    assert (again.status_code, again.content) == (202, first.content)
    assert (again.headers["Idempotent-Replayed"], again.headers["Location"]) == ("true", first.headers["Location"])
    another = cancelling(other, order_id, "cancel-twice")
    assert (another.status_code, another.json()["status"]) == (202, "CANCELLED")
    assert "Idempotent-Replayed" not in another.headers
    assert money_of(system, order_id) == [("charge", 2000), ("refund", 2000)]
    assert events_of(flow, order_id).count(("cancel", "REFUND_PENDING")) == 1
    # A key is for one order.
    second = paid(flow, "again-cancelled")
    assert code_of(cancelling(flow, second, "cancel-once")) == (422, "idempotency_key_reused")
    assert flow.get(f"/api/orders/{second}")["status"] == "PAID"


def test_twenty_concurrent_cancels_cancel_once(system: System) -> None:
    flow = system.flow()
    flow.stock("twenty", 50)
    for keys in (["one-key"] * 20, [f"key-{n}" for n in range(20)]):
        order_id = paid(flow, "twenty")
        flows = [system.flow(n % system.replicas) for n in range(20)]
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda flow, key, id_=order_id: cancelling(flow, id_, key), flows, keys))
        assert {answer.status_code for answer in answers} == {202}
        if len(set(keys)) == 1:
            assert len({answer.content for answer in answers}) == 1
        assert flow.at_rest(order_id)["status"] == "CANCELLED"
        assert money_of(system, order_id) == [("charge", 2000), ("refund", 2000)]
        assert [event for event, _ in events_of(flow, order_id)].count("cancel") == 1


def test_an_order_is_cancelled_by_its_owner_or_an_admin_and_by_nobody_else(system: System) -> None:
    flow = system.flow()
    flow.stock("whose", 5)
    order_id = paid(flow, "whose")
    stranger = system.become("mallory", "customer")
    assert code_of(cancelling(flow, order_id, user=stranger)) == (404, "not_found")
    for user in ("operator", "auditor", "service"):
        assert code_of(cancelling(flow, order_id, user=user)) == (403, "forbidden")
    assert code_of(cancelling(flow, str(uuid.uuid4()))) == (404, "not_found")
    assert code_of(retry(flow, order_id, user="customer")) == (403, "forbidden")
    assert flow.get(f"/api/orders/{order_id}")["status"] == "PAID"
    assert cancelling(flow, order_id, user="admin").status_code == 202
    assert flow.at_rest(order_id)["status"] == "CANCELLED"
    (release,) = eventually(
        lambda: flow.get(f"/api/stocks/release-events?order_id={order_id}", user="auditor")["items"], bool
    )
    assert release["requested_by"] == "admin"


def test_only_what_has_a_refund_can_have_it_retried(system: System) -> None:
    flow = system.flow()
    flow.stock("no-refund", 5)
    order_id = paid(flow, "no-refund")
    assert code_of(retry(flow, order_id)) == (409, "conflict")
    flow.cancel(order_id)
    assert flow.at_rest(order_id)["status"] == "CANCELLED"
    assert code_of(retry(flow, order_id)) == (409, "conflict")
    assert code_of(retry(flow, str(uuid.uuid4()))) == (404, "not_found")


@pytest.mark.timeout(600)
def test_cancels_that_race_with_payment_leave_all_databases_in_agreement(system: System, long: bool) -> None:
    sku, count, price = "raced", 200 if long else 20, 250
    system.flow().stock(sku, 10_000, price)
    chance = random.Random(20260114)
    delays = [chance.uniform(0, 1.5 if n % 2 else 0.3) if n % 5 else None for n in range(count)]

    def race(n: int, delay: float | None) -> tuple[str, str | None]:
        """The order, and what it was right after its cancel."""
        flow = system.flow(n % system.replicas)
        order_id = flow.order(sku, 2, unit_price=price)["order_id"]
        if delay is None:
            return order_id, None
        time.sleep(delay)
        other, key = system.flow((n + 1) % system.replicas), str(uuid.uuid4())
        answer = eventually(lambda: cancelling(other, order_id, key), lambda answer: answer.status_code != 503)
        assert answer.status_code == 202, answer.text
        return order_id, answer.json()["status"]

    with ThreadPoolExecutor(8) as threads:
        ended = list(threads.map(race, range(count), delays))
    system.wait_quiet(120)
    found: dict[str, dict[str, Any]] = {
        str(row["order_id"]): row
        for row in system.databases.rows(
            "order", "SELECT o.* FROM orders o JOIN order_items USING (order_id) WHERE sku = :sku", sku=sku
        )
    }
    print(f"\n{count} orders; right after the cancel: {dict(Counter(status for _, status in ended))}")
    assert len(found) == count
    for order_id, cancelled in ended:
        assert found[order_id]["status"] == ("CANCELLED" if cancelled else "PAID")
    uncancelled = sum(1 for _, status in ended if status is None)
    net = Counter[str]()
    statement = "SELECT order_id, kind, amount FROM provider_ledger WHERE done"
    for row in system.databases.rows("payment", statement):
        if str(row["order_id"]) in found:
            net[str(row["order_id"])] += row["amount"] if row["kind"] == "charge" else -row["amount"]
    assert {order_id: amount for order_id, amount in net.items() if amount} == {
        order_id: 2 * price for order_id, status in ended if status is None
    }
    assert stock_of(system.flow(), sku) == (10_000 - 2 * uncancelled, 0)
    # Of both kinds there were some, else it was no race.
    assert {"CANCELLED", "REFUND_PENDING"} <= {status for _, status in ended}
