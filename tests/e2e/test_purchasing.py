"""Buying over HTTP: who may do what, what a receipt does to stock, and what is refused."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from ops.cli.flow import Flow
from tests.e2e.system import System

BASE = "/api/inventory"


@pytest.fixture
def flow(system: System) -> Flow:
    return system.flow()


@pytest.fixture
def sku(flow: Flow) -> str:
    made = f"buy-{uuid.uuid4().hex[:10]}"
    flow.send("PUT", f"/api/stocks/{made}", {"on_hand": 1}, user="admin").raise_for_status()
    return made


def key() -> str:
    return str(uuid.uuid4())


def post(flow: Flow, path: str, body: Any = None, user: str = "operator", with_key: str = "") -> requests.Response:
    return flow.send("POST", f"{BASE}/{path}", body, user=user, Idempotency_Key=with_key or key())


def put(flow: Flow, path: str, body: Any, user: str = "operator") -> requests.Response:
    return flow.send("PUT", f"{BASE}/{path}", body, user=user)


def get(flow: Flow, path: str, user: str = "operator") -> dict[str, Any]:
    return dict(flow.get(f"{BASE}/{path}", user=user))


def refusal(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture
def supplier(flow: Flow) -> str:
    given = {"name": f"Lamps {key()}", "email": "a@lamps.example", "phone": "+49 30 1", "lead_days": 3}
    made = post(flow, "suppliers", given, user="admin")
    assert (made.status_code, made.headers["Location"]) == (201, f"{BASE}/suppliers/{made.json()['supplier_id']}")
    return str(made.json()["supplier_id"])


def proposed(flow: Flow, supplier: str, **quantities: int) -> dict[str, Any]:
    lines = [{"sku": sku, "quantity": quantity} for sku, quantity in quantities.items()]
    made = post(flow, "purchase-orders", {"supplier_id": supplier, "lines": lines})
    assert made.status_code == 201, made.text
    assert made.headers["Location"] == f"{BASE}/purchase-orders/{made.json()['purchase_order_id']}"
    return dict(made.json())


def test_what_is_proposed_ordered_and_received_in_parts_is_on_hand(flow: Flow, supplier: str, sku: str) -> None:
    order = proposed(flow, supplier, **{sku: 10})
    path = f"purchase-orders/{order['purchase_order_id']}"
    lines = [{"sku": sku, "quantity": 12, "unit_cost": 1250, "currency": "EUR"}]
    rewritten = put(flow, path, {"lines": lines, "version": 1, "note": "for the fair"})
    assert (rewritten.status_code, rewritten.json()["version"]) == (200, 2)

    assert refusal(post(flow, f"{path}/order")) == (403, "forbidden")
    assert refusal(post(flow, f"{path}/order?version=1", user="admin")) == (409, "version_moved")
    ordered = post(flow, f"{path}/order?version=2", user="admin")
    assert (ordered.status_code, ordered.json()["status"]) == (200, "ORDERED")

    part = post(flow, f"{path}/receive", {"lines": [{"sku": sku, "quantity": 5}]})
    assert (part.json()["status"], part.json()["lines"][0]["open"]) == ("ORDERED", 7)
    too_much = post(flow, f"{path}/receive", {"lines": [{"sku": sku, "quantity": 8}]})
    assert refusal(too_much) == (409, "over_received")
    assert too_much.json()["error"]["details"] == {"lines": [{"sku": sku, "quantity": 8, "open": 7}]}
    rest = post(flow, f"{path}/receive", {"lines": [{"sku": sku, "quantity": 7, "unit_cost": 1300}]})
    assert rest.json()["status"] == "RECEIVED"
    assert get(flow, path) == rest.json()
    assert flow.get(f"/api/stocks/{sku}")["on_hand"] == 13
    assert refusal(post(flow, f"{path}/close")) == (409, "conflict")
    assert [one["purchase_order_id"] for one in get(flow, f"purchase-orders?supplier={supplier}")["items"]] == [
        order["purchase_order_id"]
    ]


def test_a_receipt_that_twenty_send_at_once_is_booked_once(flow: Flow, supplier: str, sku: str) -> None:
    path = f"purchase-orders/{proposed(flow, supplier, **{sku: 100})['purchase_order_id']}"
    post(flow, f"{path}/order", user="admin").raise_for_status()
    body, one_key = {"lines": [{"sku": sku, "quantity": 4}]}, key()
    flow.token("operator")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: post(flow, f"{path}/receive", body, with_key=one_key), range(20)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1
    assert flow.get(f"/api/stocks/{sku}")["on_hand"] == 5


def test_a_rule_is_set_by_admins_and_read_by_staff(flow: Flow, supplier: str, sku: str) -> None:
    assert get(flow, f"rules/{sku}", user="auditor")["version"] == 0
    rule = {"unit": "g", "low_at": 3, "reorder_at": 0, "reorder_to": 20, "supplier_id": supplier, "pack_size": 12}
    assert refusal(put(flow, f"rules/{sku}", rule)) == (403, "forbidden")
    assert put(flow, f"rules/{sku}", rule, user="admin").json() == {
        "sku": sku, **rule, "snoozed_until": None, "version": 1
    }  # fmt: skip
    assert refusal(put(flow, f"rules/{sku}", {**rule, "version": 0}, user="admin")) == (409, "version_moved")
    wrong = put(flow, f"rules/{sku}", {**rule, "reorder_to": 0}, user="admin")
    assert (refusal(wrong), [*wrong.json()["error"]["details"]]) == ((422, "validation_failed"), ["reorder_to"])
    assert refusal(put(flow, f"rules/{sku}-x", rule, user="admin")) == (404, "not_found")
    assert put(flow, f"rules/{sku}", {}, user="admin").json()["reorder_at"] is None
    assert flow.send("GET", f"{BASE}/rules/{sku}").status_code == 403


def test_a_supplier_has_one_proposal_and_one_name(flow: Flow, supplier: str, sku: str) -> None:
    order = proposed(flow, supplier, **{sku: 1})
    second = post(flow, "purchase-orders", {"supplier_id": supplier, "lines": [{"sku": sku, "quantity": 1}]})
    assert refusal(second) == (409, "conflict")
    assert second.json()["error"]["details"] == {"purchase_order_id": order["purchase_order_id"]}

    before = get(flow, f"suppliers/{supplier}")
    name = before["name"]
    assert refusal(post(flow, "suppliers", {"name": name, "lead_days": 1}, user="admin")) == (409, "conflict")
    change = {"name": name, "lead_days": 0, "active": False, "version": 1}
    assert refusal(put(flow, f"suppliers/{supplier}", change)) == (403, "forbidden")
    changed = put(flow, f"suppliers/{supplier}", change, user="admin").json()
    assert changed == {**before, "email": None, "phone": None, "lead_days": 0, "active": False, "version": 2}
    cancelled = post(flow, f"purchase-orders/{order['purchase_order_id']}/cancel")
    assert cancelled.json()["status"] == "CANCELLED"
    none = post(flow, "purchase-orders", {"supplier_id": supplier, "lines": [{"sku": sku, "quantity": 1}]})
    assert (refusal(none), [*none.json()["error"]["details"]]) == ((422, "validation_failed"), ["supplier_id"])
