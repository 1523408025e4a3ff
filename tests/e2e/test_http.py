"""Guarantees for every request of every client."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.system import ROOT, System
from topology.services import PUBLISHERS, START_ORDER

ORDER = {"currency": "EUR", "items": [{"sku": "http", "quantity": 1, "unit_price": 1000}]}
NOWHERE = "00000000-0000-4000-8000-000000000000"

# Method, path, body, user, status, code.
REFUSED = [
    ("GET", "/api/orders", None, None, 401, "unauthenticated"),
    ("POST", "/api/orders", ORDER, None, 401, "unauthenticated"),
    ("POST", "/api/orders", ORDER, "auditor", 403, "forbidden"),
    ("PUT", "/api/stocks/http", {"on_hand": 1}, "customer", 403, "forbidden"),
    ("GET", "/api/stocks/release-events", None, "customer", 403, "forbidden"),
    ("GET", "/api/stocks/release-events/1", None, "operator", 403, "forbidden"),
    ("GET", "/api/stocks/release-events/export", None, None, 401, "unauthenticated"),
    ("GET", "/api/stocks/release-events/export", None, "service", 403, "forbidden"),
    ("GET", "/api/stocks/release-events/export?from=now", None, "auditor", 400, "bad_request"),
    ("GET", "/api/stocks/release-events/x", None, "auditor", 404, "not_found"),
    ("GET", f"/api/orders/{NOWHERE}", None, "customer", 404, "not_found"),
    ("GET", "/api/orders/no-uuid", None, "customer", 404, "not_found"),
    ("GET", f"/api/orders/{NOWHERE}/timeline", None, "customer", 404, "not_found"),
    ("GET", f"/api/payments/{NOWHERE}", None, "customer", 404, "not_found"),
    ("GET", "/api/stocks/nothing-of-the-kind", None, "customer", 404, "not_found"),
    ("GET", "/no/such/path", None, "customer", 404, "not_found"),
    ("DELETE", "/api/orders", None, "customer", 405, "method_not_allowed"),
    ("POST", "/api/orders", {**ORDER, "currency": "XXX"}, "customer", 422, "validation_failed"),
    ("POST", "/api/orders", {**ORDER, "items": []}, "customer", 422, "validation_failed"),
    ("POST", "/api/orders", {**ORDER, "coupon": "x"}, "customer", 422, "validation_failed"),
    ("GET", "/api/orders?colour=red", None, "customer", 400, "unknown_parameter"),
    ("GET", "/api/orders?limit=0", None, "customer", 400, "bad_request"),
    ("POST", "/api/auth/token", {"username": "customer", "password": "wrong"}, None, 401, "unauthenticated"),
    ("POST", "/api/auth/token", {"username": "nobody", "password": "wrong"}, None, 401, "unauthenticated"),
]


def assert_refused(answer: requests.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/json")
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "details", "traceId"}
    assert error["code"] == code
    assert error["message"]
    assert uuid.UUID(error["traceId"]).hex == answer.headers["traceparent"].split("-")[1]


@pytest.mark.parametrize("prefix", ["/api/", "/api/v1/"])
@pytest.mark.parametrize(("method", "path", "body", "user", "status", "code"), REFUSED)
def test_every_error_has_the_same_shape(
    system: System, prefix: str, method: str, path: str, body: dict | None, user: str | None, status: int, code: str
) -> None:
    path = path.replace("/api/", prefix, 1)
    answer = system.flow().send(method, path, body, user=user, Idempotency_Key=str(uuid.uuid4()))
    assert_refused(answer, status, code)
    if status == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    if status == 405:
        assert answer.headers["Allow"]


def test_a_forged_token_is_refused(system: System) -> None:
    header, payload, signature = system.flow().token("customer").split(".")
    for forged in (f"{header}.{payload}.", f"{header}.{payload}.{signature[::-1]}", "nonsense", ""):
        answer = system.flow().send("GET", "/api/orders", user=None, Authorization=f"Bearer {forged}")
        assert_refused(answer, 401, "unauthenticated")


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({"Content-Type": "application/json"}, b"{", 400, "bad_json"),
        ({"Content-Type": "application/json"}, b'{"a": NaN}', 400, "bad_json"),
        ({"Content-Type": "text/plain"}, b"{}", 415, "unsupported_media_type"),
        ({"Content-Type": "application/json"}, b'{"a": "' + b"x" * 70_000 + b'"}', 413, "payload_too_large"),
        ({"Content-Type": "application/json"}, iter([b"{", b"]"]), 400, "bad_json"),
    ],
)
def test_an_unreadable_body_is_refused(
    system: System, headers: dict[str, str], body: object, status: int, code: str
) -> None:
    flow = system.flow()
    headers |= {"Authorization": f"Bearer {flow.token('customer')}", "Idempotency-Key": "unreadable"}
    answer = requests.post(f"{flow.url}/api/orders", data=body, headers=headers, timeout=10)
    assert_refused(answer, status, code)


def test_both_prefixes_lead_to_the_same_order(system: System) -> None:
    flow = system.flow()
    flow.stock("http", 10)
    key = str(uuid.uuid4())
    first = flow.send("POST", "/api/v1/orders", ORDER, Idempotency_Key=key)
    again = flow.send("POST", "/api/orders", ORDER, Idempotency_Key=key)
    assert (first.status_code, again.status_code, again.content) == (201, 201, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    order_id = first.json()["order_id"]
    flow.timeline(order_id, last="inventory.committed")  # the order does not change after this
    order = flow.get(f"/api/orders/{order_id}")
    assert flow.get(f"/api/v1/orders/{order_id}") == order


def test_setting_stock_checks_the_version_that_was_read(system: System) -> None:
    flow = system.flow()
    sku = f"versioned-{uuid.uuid4().hex[:8]}"
    made = flow.stock(sku, 5)
    assert (made["on_hand"], made["reserved"], made["available"]) == (5, 0, 5)
    moved = flow.send("PUT", f"/api/stocks/{sku}", {"on_hand": 6, "version": made["version"] + 1}, user="admin")
    assert_refused(moved, 409, "version_moved")
    fits = flow.send("PUT", f"/api/stocks/{sku}", {"on_hand": 6, "version": made["version"]}, user="admin")
    assert (fits.status_code, fits.json()["on_hand"]) == (200, 6)


def test_a_request_that_waits_too_long_for_a_lock_is_told_to_retry(system: System) -> None:
    flow = system.flow()
    flow.stock("locked", 5)
    with system.databases.doctored() as holder:
        holder.run("inventory", "UPDATE stock_items SET version = version WHERE sku = 'locked'")
        refused = flow.send("PUT", "/api/stocks/locked", {"on_hand": 6}, user="admin")
    assert_refused(refused, 503, "unavailable")
    assert refused.headers["Retry-After"]
    assert flow.stock("locked", 6)["on_hand"] == 6


def test_a_manual_reservation_holds_stock_until_released_or_committed(system: System) -> None:
    flow = system.flow()
    sku = f"by-hand-{uuid.uuid4().hex[:8]}"
    flow.stock(sku, 10)

    def reserve(quantity: int, user: str = "service") -> requests.Response:
        body = {"order_id": str(uuid.uuid4()), "items": [{"sku": sku, "quantity": quantity}]}
        return flow.send("POST", "/api/stocks/reserve", body, user=user)

    assert_refused(reserve(1, user="customer"), 403, "forbidden")
    assert_refused(reserve(11), 409, "conflict")
    released, committed = reserve(4), reserve(3)
    assert (released.status_code, committed.status_code) == (200, 200)
    stock = flow.get(f"/api/stocks/{sku}")
    assert (stock["on_hand"], stock["reserved"]) == (10, 7)
    for answer, verb in ((released, "release"), (committed, "commit")):
        path = f"/api/stocks/reservations/{answer.json()['reservation_id']}/{verb}"
        assert flow.send("POST", path, user="admin").status_code == 200
    stock = flow.get(f"/api/stocks/{sku}")
    assert (stock["on_hand"], stock["reserved"]) == (7, 0)
    (release,) = flow.get(f"/api/stocks/release-events?sku={sku}", user="admin")["items"]
    assert (release["quantity"], release["reason"], release["requested_by"]) == (4, "manual", "admin")


def test_pages_of_orders_have_each_order_once(system: System) -> None:
    flow = system.flow()
    user = system.become(f"pager-{uuid.uuid4().hex[:8]}", "customer")
    flow.sell({"http": 1000})
    made = set()
    for _ in range(5):
        answer = flow.send("POST", "/api/orders", ORDER, user=user, Idempotency_Key=str(uuid.uuid4()))
        made.add(answer.json()["order_id"])
    seen, cursor = [], ""
    while cursor is not None:
        page = flow.get(f"/api/orders?limit=2{cursor and '&cursor='}{cursor}", user=user)
        seen += [order["order_id"] for order in page["items"]]
        cursor = page["next_cursor"]
    assert sorted(seen) == sorted(made)
    assert seen == sorted(seen, reverse=True)  # newest first


@pytest.mark.parametrize("service", START_ORDER)
def test_every_replica_of_a_service_answers_its_probes(system: System, service: str) -> None:
    for replica in range(system.replicas):
        url = system.probe_url(service, replica)
        assert requests.get(f"{url}/healthz", timeout=5).json() == {"status": "ok"}
        ready = requests.get(f"{url}/readyz", timeout=5)
        assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": [], "warnings": []})
        metrics = requests.get(f"{url}/metrics", timeout=5)
        assert metrics.headers["Content-Type"].startswith("text/plain")
        assert {family.name for family in text_string_to_metric_families(metrics.text)} >= {"ecom_http_requests"}


def test_metrics_count_the_work(system: System) -> None:
    flow = system.flow()
    flow.stock("http", 10)

    def posted() -> float:
        labels = {"service": "gateway", "method": "POST", "route": "/api/orders", "status": "201"}
        return sum(measured(system, "gateway", "ecom_http_requests_total", labels))

    def reserved() -> float:
        labels = {"queue": "q.inventory.order-created", "outcome": "done"}
        return sum(measured(system, "inventory", "ecom_events_total", labels))

    before = posted(), reserved()
    flow.at_rest(flow.order("http")["order_id"])
    assert (posted(), reserved()) == (before[0] + 1, before[1] + 1)
    for service in PUBLISHERS:
        assert sum(measured(system, service, "ecom_outbox_leader", {})) == 1, service
        assert sum(measured(system, service, "ecom_outbox_held", {})) == 0, service


def measured(system: System, service: str, name: str, labels: dict[str, str]) -> list[float]:
    """The values of a metric in all replicas of a service."""
    values = []
    for replica in range(system.replicas):
        text = requests.get(f"{system.probe_url(service, replica)}/metrics", timeout=5).text
        values += [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
    return values


def test_the_demo_shows_orders_and_a_changed_price_and_ends_well(system: System) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "ops.local.demo"],
        cwd=ROOT,
        env={**os.environ, "GATEWAY_URL": system.url("gateway")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    plain = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout)
    shown = ("PAID after", "CANCELLED (out_of_stock) after", "CANCELLED (payment_failed) after", "409 price_changed")
    for words in shown:
        assert words in plain
