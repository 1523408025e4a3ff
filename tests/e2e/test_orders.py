"""Three ways of an order, from the client's POST to its end."""

from __future__ import annotations

import pytest

from tests.e2e.system import System, eventually


def steps_of(timeline: dict) -> list[tuple[str, str | None, str]]:
    return [(step["event"], step["from"], step["to"]) for step in timeline["steps"]]


def stock_of(system: System, sku: str) -> tuple[int, int]:
    stock = system.flow().get(f"/api/stocks/{sku}")
    return stock["on_hand"], stock["reserved"]


def test_an_order_with_stock_and_money_is_paid_and_its_stock_is_sold(system: System) -> None:
    flow = system.flow()
    flow.stock("paid", 10, price=250)
    posted = flow.order("paid", quantity=3, unit_price=250)
    assert (posted["status"], posted["total"], posted["currency"]) == ("PENDING", 750, "EUR")
    order = flow.at_rest(posted["order_id"])
    assert (order["status"], order["reason"]) == ("PAID", None)
    timeline = flow.timeline(order["order_id"], last="inventory.committed")
    events = steps_of(timeline)
    assert events[0] == ("order.created", None, "PENDING")
    assert events[-1] == ("inventory.committed", "PAID", "PAID")
    # Two queues bring the two results: either may come first.
    assert sorted(event for event, *_ in events[1:-1]) == ["inventory.reserved", "payment.succeeded"]
    assert stock_of(system, "paid") == (7, 0)
    payment = flow.get(f"/api/payments?order_id={order['order_id']}")
    assert (payment["payment_id"], payment["status"], payment["amount"]) == (order["payment_id"], "COMPLETED", 750)


def test_the_largest_amount_is_paid_and_given_back_exactly_and_a_larger_one_is_refused(system: System) -> None:
    flow = system.flow()
    largest = 2**53 - 1
    flow.stock("dear", 10, price=largest)
    posted = flow.order("dear", unit_price=largest)
    order = flow.at_rest(posted["order_id"])
    assert (order["status"], order["total"], order["items"][0]["unit_price"]) == ("PAID", largest, largest)
    flow.cancel(order["order_id"])
    assert flow.at_rest(order["order_id"])["status"] == "CANCELLED"
    payment = flow.get(f"/api/payments?order_id={order['order_id']}")
    assert (payment["status"], payment["amount"]) == ("REFUNDED", largest)
    statement = "SELECT kind, amount FROM provider_ledger WHERE order_id = :id ORDER BY at"
    asked = system.databases.rows("payment", statement, id=order["order_id"])
    assert asked == [{"kind": "charge", "amount": largest}, {"kind": "refund", "amount": largest}]

    prices = {"dear": largest, "cheap": 1}
    flow.sell(prices)
    dear, cheap = ({"sku": sku, "quantity": 1, "unit_price": price} for sku, price in prices.items())
    for items, where in (
        ([cheap, dear | {"quantity": 2}], {"1"}),
        ([dear | {"unit_price": largest + 1}], {"0"}),
        ([dear, dear], None),
    ):
        body = {"currency": "EUR", "items": items}
        answer = flow.send("POST", "/api/orders", body, Idempotency_Key="too-dear")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "validation_failed")
        assert str(largest) in str(error["details"])
        assert where is None or set(error["details"]["items"]) == where


def test_an_order_with_nothing_to_pay_is_paid_and_cancelled_without_the_provider(system: System) -> None:
    flow = system.flow()
    flow.stock("gift", 5, price=0)
    order = flow.at_rest(flow.order("gift", quantity=2, payment="mock_declined", unit_price=0)["order_id"])
    assert (order["status"], order["total"]) == ("PAID", 0)
    payment = flow.get(f"/api/payments?order_id={order['order_id']}")
    assert (payment["status"], payment["amount"], payment["provider_reference"]) == ("COMPLETED", 0, "nothing_to_pay")
    flow.cancel(order["order_id"])
    assert flow.at_rest(order["order_id"])["status"] == "CANCELLED"
    assert flow.get(f"/api/payments?order_id={order['order_id']}")["status"] == "REFUNDED"
    eventually(lambda: stock_of(system, "gift"), lambda stock: stock == (5, 0))
    assert (
        system.databases.rows("payment", "SELECT 1 FROM provider_ledger WHERE order_id = :id", id=order["order_id"])
        == []
    )


def test_an_order_for_more_than_there_is_ends_out_of_stock_and_nobody_is_asked_for_money(system: System) -> None:
    flow = system.flow()
    flow.stock("short", 2)
    order = flow.at_rest(flow.order("short", quantity=3)["order_id"])
    assert (order["status"], order["reason"]) == ("CANCELLED", "out_of_stock")
    timeline = flow.timeline(order["order_id"])
    assert steps_of(timeline) == [
        ("order.created", None, "PENDING"),
        ("inventory.failed", "PENDING", "CANCELLED"),
    ]
    assert timeline["steps"][1]["details"]["shortages"] == [{"sku": "short", "requested": 3, "available": 2}]
    assert stock_of(system, "short") == (2, 0)
    assert (
        system.databases.rows("payment", "SELECT 1 FROM provider_ledger WHERE order_id = :id", id=order["order_id"])
        == []
    )


def test_an_order_for_an_unknown_sku_is_cancelled(system: System) -> None:
    flow = system.flow()
    order = flow.at_rest(flow.order("never-heard-of")["order_id"])
    assert (order["status"], order["reason"]) == ("CANCELLED", "out_of_stock")


@pytest.mark.parametrize("method", ["mock_declined", "no_such_method"])
def test_an_order_whose_payment_fails_gives_its_stock_back_and_the_release_is_audited(
    system: System, method: str
) -> None:
    flow = system.flow()
    flow.stock("declined", 5)
    order = flow.at_rest(flow.order("declined", quantity=4, payment=method)["order_id"])
    assert (order["status"], order["reason"]) == ("CANCELLED", "payment_failed")
    timeline = flow.timeline(order["order_id"], last="inventory.released")
    assert [event for event, *_ in steps_of(timeline)][-1] == "inventory.released"
    assert stock_of(system, "declined") == (5, 0)
    (release,) = flow.get(f"/api/stocks/release-events?order_id={order['order_id']}", user="auditor")["items"]
    told = {name: release[name] for name in ("sku", "quantity", "reason", "requested_by", "roles", "trace_id")}
    assert told == {
        "sku": "declined",
        "quantity": 4,
        "reason": "payment_failed",
        "requested_by": "customer",
        "roles": ["customer"],
        "trace_id": timeline["trace_id"],
    }


def test_lines_of_one_sku_are_reserved_as_their_sum(system: System) -> None:
    flow = system.flow()
    flow.stock("lines", 5, price=7)
    for quantities, status in (((3, 3), "CANCELLED"), ((3, 2), "PAID")):
        body = {
            "currency": "EUR",
            "items": [{"sku": "lines", "quantity": quantity, "unit_price": 7} for quantity in quantities],
        }
        answer = flow.send("POST", "/api/orders", body, Idempotency_Key=f"lines-{quantities[1]}")
        assert answer.status_code == 201
        assert flow.at_rest(answer.json()["order_id"])["status"] == status
    eventually(lambda: stock_of(system, "lines"), lambda stock: stock == (0, 0))


def test_no_customer_sees_the_orders_of_another(system: System) -> None:
    flow = system.flow()
    flow.stock("mine", 5)
    order_id = flow.order("mine")["order_id"]
    stranger = system.become("mallory", "customer")
    for path in (f"/api/orders/{order_id}", f"/api/orders/{order_id}/timeline"):
        assert flow.send("GET", path, user=stranger).status_code == 404
        assert flow.send("GET", path, user="operator").status_code == 200
    assert flow.get("/api/orders", user=stranger)["items"] == []
    flow.at_rest(order_id)
    assert flow.send("GET", f"/api/payments?order_id={order_id}", user=stranger).status_code == 404
