"""Many customers and too little stock."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.system import System, eventually

THREADS = 30


@pytest.mark.timeout(600)
def test_three_hundred_orders_for_a_hundred_units_sell_exactly_those(system: System, long: bool) -> None:
    size = 10 if long else 1
    orders, units = 300 * size, 100 * size
    sku = f"scarce-{uuid.uuid4().hex[:8]}"
    system.flow().stock(sku, units)
    system.flow().token("customer")  # or each thread asks for its own, at 0.1 s of argon2
    local = threading.local()

    def post(n: int) -> tuple[str, float]:
        if not hasattr(local, "flow"):
            local.flow = system.flow(n % system.replicas)
        began = time.monotonic()
        return local.flow.order(sku)["order_id"], time.monotonic() - began

    def count() -> Counter[str]:
        rows = system.databases.rows(
            "order",
            "SELECT status, count(*) AS n FROM orders WHERE order_id IN (SELECT order_id FROM order_items"
            " WHERE sku = :sku) GROUP BY 1",
            sku=sku,
        )
        return Counter({row["status"]: row["n"] for row in rows})

    began = time.monotonic()
    with ThreadPoolExecutor(THREADS) as threads:
        posted = list(threads.map(post, range(orders)))
    took_posting = time.monotonic() - began
    ended = {"PAID": units, "CANCELLED": orders - units}
    eventually(count, lambda seen: seen["PAID"] + seen["CANCELLED"] == orders, 30 + orders / 20)
    took = time.monotonic() - began
    latencies = sorted(seconds for _, seconds in posted)
    print(
        f"\n{orders} orders: posted in {took_posting:.1f} s, all ended after {took:.1f} s;"
        f" POST median {latencies[len(latencies) // 2] * 1000:.0f} ms,"
        f" 95 % {latencies[len(latencies) * 95 // 100] * 1000:.0f} ms"
    )
    assert count() == ended
    assert len({order_id for order_id, _ in posted}) == orders

    system.wait_quiet()
    stock = system.flow().get(f"/api/stocks/{sku}")
    assert (stock["on_hand"], stock["reserved"]) == (0, 0)
    (sold,) = system.databases.rows(
        "inventory",
        "SELECT count(*) AS n, sum(change) AS moved FROM stock_movements WHERE sku = :sku AND cause = 'sale'",
        sku=sku,
    )
    assert (sold["n"], sold["moved"]) == (units, -units)


def test_orders_for_several_skus_in_opposite_order_do_not_block_each_other(system: System, long: bool) -> None:
    skus = [f"crossed-{n}" for n in range(5)]
    flow = system.flow()
    for sku in skus:
        flow.stock(sku, 10_000, price=5)

    def post(n: int) -> str:
        turned = skus[n % 5 :] + skus[: n % 5]
        chosen = turned if n % 2 else turned[::-1]
        items = [{"sku": sku, "quantity": 1, "unit_price": 5} for sku in chosen]
        body = {"currency": "EUR", "items": items, "payment_method": "mock_declined" if n % 3 == 0 else "mock_ok"}
        answer = system.flow(n % system.replicas).send("POST", "/api/orders", body, Idempotency_Key=str(uuid.uuid4()))
        answer.raise_for_status()
        return answer.json()["order_id"]

    with ThreadPoolExecutor(10) as threads:
        posted = list(threads.map(post, range(600 if long else 60)))
    system.wait_quiet(60)
    declined = len(range(0, len(posted), 3))
    for sku in skus:
        stock = flow.get(f"/api/stocks/{sku}")
        assert (stock["on_hand"], stock["reserved"]) == (10_000 - len(posted) + declined, 0)


def test_an_order_is_paid_within_a_second_on_a_quiet_system(system: System) -> None:
    flow = system.flow()
    flow.stock("quick", 1000)
    took = []
    for _ in range(20):
        began = time.monotonic()
        flow.at_rest(flow.order("quick")["order_id"])
        took.append(time.monotonic() - began)
    took.sort()
    print(
        f"\nPOST to PAID: best {took[0] * 1000:.0f} ms, median {took[10] * 1000:.0f} ms, worst {took[-1] * 1000:.0f} ms"
    )
    assert took[10] < 1.0
