"""Staff keep the books of stock over HTTP: in, out, counted, and what that does to orders and to the menu."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import requests

from ops.cli.flow import Flow
from tests.e2e.system import System, eventually


@pytest.fixture
def flow(system: System) -> Flow:
    return system.flow()


@pytest.fixture
def sku() -> str:
    return f"booked-{uuid.uuid4().hex[:10]}"


def book(flow: Flow, route: str, key: str = "", user: str = "operator", **body: Any) -> requests.Response:
    path = f"/api/inventory/{route}"
    return flow.send("POST", path, body, user=user, Idempotency_Key=key or str(uuid.uuid4()))


def test_what_staff_take_in_is_sold_and_listed_with_its_balance(system: System, flow: Flow, sku: str) -> None:
    flow.sell({sku: 1000})
    key = str(uuid.uuid4())
    first, again = (
        book(flow, "stock-in", key, lines=[{"sku": sku, "quantity": 5}], reason="delivery", note="two boxes")
        for _ in range(2)
    )
    assert (first.status_code, again.status_code) == (200, 200)
    assert (first.content, again.headers["Idempotent-Replayed"]) == (again.content, "true")
    order = flow.order(sku, 2)
    assert flow.at_rest(order["order_id"])["status"] == "PAID"
    spoiled = book(flow, "stock-out", lines=[{"sku": sku, "quantity": 1}], reason="spoiled")
    assert spoiled.json()["stock"][0]["on_hand"] == 2

    listed = flow.get(f"/api/inventory/movements?sku={sku}&limit=2", user="auditor")
    rest = flow.get(f"/api/inventory/movements?sku={sku}&limit=2&cursor={listed['next_cursor']}", user="auditor")
    items = listed["items"] + rest["items"]
    assert [(item["cause"], item["change"], item["on_hand_after"], item["reason"]) for item in items] == [
        ("stock_out", -1, 2, "spoiled"),
        ("sale", -2, 3, None),
        ("stock_in", 5, 5, "delivery"),
    ]
    assert [item["order_id"] for item in items] == [None, order["order_id"], None]
    (level,) = flow.get(f"/api/inventory/items?sku={sku}", user="operator")["items"]
    assert (level["on_hand"], level["available"], level["sold_out"], level["made"]) == (2, 2, False, False)
    assert flow.send("POST", "/api/inventory/batch", {"skus": [sku, "lomp"]}).json() == {
        "items": [{"sku": sku, "available": 2, "sold_out": False}],
        "unknown": ["lomp"],
    }


def test_a_count_to_nothing_shows_in_the_menu(system: System, flow: Flow, sku: str) -> None:
    flow.stock(sku, 5)
    counted = book(flow, "adjust", lines=[{"sku": sku, "counted": 0, "version": 1}], reason="count")
    assert counted.json()["movements"][0]["change"] == -5

    def shown() -> Any:
        return flow.get(f"/api/menu/offers?skus={sku}")["offers"][0]["sold_out"]

    eventually(shown, bool, 10)
    assert sku in {item["sku"] for item in flow.get(f"/api/inventory/levels?sku={sku}&sold_out=true", "admin")["items"]}


def test_below_what_is_reserved_the_answer_names_the_orders_that_hold_it(system: System, flow: Flow, sku: str) -> None:
    flow.stock(sku, 5)
    order_id = str(uuid.uuid4())
    held = {"order_id": order_id, "items": [{"sku": sku, "quantity": 3}]}
    flow.send("POST", "/api/stocks/reserve", held, user="admin").raise_for_status()
    key, lines = str(uuid.uuid4()), [{"sku": sku, "quantity": 3}]

    refused = book(flow, "stock-out", key, lines=lines, reason="theft")
    put = flow.send("PUT", f"/api/stocks/{sku}", {"on_hand": 2}, user="admin")

    for answer in (refused, put):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "below_reserved")
        details = answer.json()["error"]["details"]
        assert (details["reserved"], details["holders"]) == (3, [{"order_id": order_id, "quantity": 3}])
    book(flow, "stock-in", lines=lines, reason="found").raise_for_status()
    assert book(flow, "stock-out", key, lines=lines, reason="theft").status_code == 200, "a refusal uses up no key"


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("stock-in", {"lines": [], "reason": "delivery"}, 422),
        ("stock-in", {"lines": [{"sku": "a", "quantity": 1}], "reason": "theft"}, 422),
        ("stock-in", {"lines": [{"sku": "a", "quantity": 1}, {"sku": "a", "quantity": 1}], "reason": "found"}, 422),
        ("stock-out", {"lines": [{"sku": "nobody-has-it", "quantity": 1}], "reason": "waste"}, 422),
        ("adjust", {"lines": [{"sku": "nobody-has-it", "counted": 1}], "reason": "count"}, 422),
        ("adjust", {"lines": [{"sku": "a", "quantity": 1}], "reason": "count"}, 422),
    ],
)
def test_what_cannot_be_booked_is_refused_in_the_one_shape(
    flow: Flow, route: str, body: dict[str, Any], status: int
) -> None:
    answer = book(flow, route, **body)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"code", "message", "details", "traceId"}


def test_movements_of_orders_are_listed_of_one_sku_alone(flow: Flow) -> None:
    answer = flow.send("GET", "/api/inventory/movements?cause=sale", user="operator")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed")
    assert flow.send("GET", "/api/inventory/movements?cause=put", user="operator").status_code == 200
    assert flow.send("GET", "/api/inventory/movements", user="customer").status_code == 403


def test_a_sku_that_is_made_by_a_recipe_gets_no_stock(system: System, flow: Flow, sku: str) -> None:
    system.databases.run("inventory", "INSERT INTO recipes (sku, changed_by) VALUES (:sku, 'admin')", sku=sku)
    taken = book(flow, "stock-in", lines=[{"sku": sku, "quantity": 1}], reason="found")
    put = flow.send("PUT", f"/api/stocks/{sku}", {"on_hand": 1}, user="admin")
    assert [(a.status_code, a.json()["error"]["code"]) for a in (taken, put)] == [(409, "has_recipe")] * 2
    system.databases.run("inventory", "DELETE FROM recipes WHERE sku = :sku", sku=sku)
