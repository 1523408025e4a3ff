"""The books of stock stay right while their service is killed: every balance follows from the one before."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from inventory_service.books.checks import MISCOUNTED, UNCHAINED
from tests.e2e.system import System

pytestmark = pytest.mark.timeout(600)

ORDERS, CUSTOMERS, STAFF, KILLS = 300, 6, 2, 4
GIVE_UP_S = 120.0
# So many orders ago is mostly long enough for an order to be paid.
EARLIER = 15
# A killed replica answers nobody, and a request may come while its first try is still at work.
AGAIN = {429, 503}
AGAIN_CODES = {"idempotency_in_progress"}
AGAIN_S = 0.2


class People:
    """Customers and staff, who repeat each request with its key until it is answered."""

    def __init__(self, system: System, skus: list[str]) -> None:
        self.system = system
        self.skus = skus
        self.orders: list[str] = []
        self.booked: list[tuple[str, str, int]] = []  # route, sku, quantity
        self.again = 0
        self.done = threading.Event()

    def shop(self, number: int, orders: int) -> None:
        """Post orders; some are declined, and some cancelled: at once, or when they are paid and sold."""
        flow, chance = self.system.flow(number % self.system.replicas), random.Random(number)
        mine: list[str] = []
        for _ in range(orders):
            sku, payment = chance.choice(self.skus), chance.choice(("mock_ok", "mock_ok", "mock_declined"))
            key = str(uuid.uuid4())
            order = self._until_answered(
                lambda sku=sku, payment=payment, key=key: flow.post_order(sku, 1, payment, unit_price=1000, key=key)
            )
            assert order.status_code == 201, order.text
            order_id = order.json()["order_id"]
            self.orders.append(order_id)
            mine.append(order_id)
            if chance.random() < 0.4:
                unwanted = mine.pop(max(0, len(mine) - chance.choice((1, EARLIER))))
                path, key = f"/api/orders/{unwanted}/cancel", str(uuid.uuid4())
                answer = self._until_answered(lambda path=path, key=key: flow.send("POST", path, Idempotency_Key=key))
                assert answer.status_code in (202, 409), answer.text  # some have ended before

    def tend(self, number: int) -> None:
        """Take in, take out and count until the customers are done."""
        flow, chance = self.system.flow(number % self.system.replicas), random.Random(-number)
        while not self.done.is_set():
            route = chance.choice(("stock-in", "stock-out", "adjust"))
            quantities = {sku: chance.randrange(1, 5) for sku in self.skus}
            if route == "adjust":
                body = {
                    "lines": [{"sku": sku, "counted": 900 + of} for sku, of in quantities.items()],
                    "reason": "count",
                }
            else:
                lines = [{"sku": sku, "quantity": quantity} for sku, quantity in quantities.items()]
                body = {"lines": lines, "reason": "correction"}
            key = str(uuid.uuid4())
            answer = self._until_answered(
                lambda route=route, body=body, key=key: flow.send(
                    "POST", f"/api/inventory/{route}", body, user="admin", Idempotency_Key=key
                )
            )
            assert answer.status_code == 200, answer.text
            self.booked += [(route, sku, quantity) for sku, quantity in quantities.items()]

    def _until_answered(self, send: Callable[[], requests.Response]) -> requests.Response:
        deadline = time.monotonic() + GIVE_UP_S
        while True:
            try:
                answer = send()
                if answer.status_code not in AGAIN and not (
                    answer.status_code == 409 and answer.json()["error"]["code"] in AGAIN_CODES
                ):
                    return answer
                why = answer.text
            except requests.RequestException as error:
                why = type(error).__name__
            self.again += 1
            assert time.monotonic() < deadline, why
            time.sleep(AGAIN_S)


def moved(system: System, sku: str) -> dict[str, tuple[int, int]]:
    """How many movements a sku has of each cause, and their sum."""
    rows = system.databases.rows(
        "inventory",
        "SELECT cause, count(*) AS many, sum(change) AS change FROM stock_movements WHERE sku = :sku GROUP BY cause",
        sku=sku,
    )
    return {row["cause"]: (row["many"], int(row["change"])) for row in rows}


def test_balances_chain_through_300_orders_at_once_while_inventory_is_killed(system: System) -> None:
    skus = [f"books-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    flow = system.flow()
    flow.sell(dict.fromkeys(skus, 1000))
    lines = [{"sku": sku, "quantity": 1000} for sku in skus]
    body = {"lines": lines, "reason": "delivery"}
    flow.send(
        "POST", "/api/inventory/stock-in", body, user="admin", Idempotency_Key=str(uuid.uuid4())
    ).raise_for_status()
    flow.token("customer")
    people = People(system, skus)
    with ThreadPoolExecutor(CUSTOMERS + STAFF) as pool:
        shops = [pool.submit(people.shop, number, ORDERS // CUSTOMERS) for number in range(CUSTOMERS)]
        tending = [pool.submit(people.tend, number) for number in range(STAFF)]
        try:
            killed = 0
            while not all(shop.done() for shop in shops):
                if killed < KILLS and len(people.orders) >= (killed + 1) * ORDERS // (KILLS + 1):
                    system.kill(random.Random(killed).choice(sorted(system.replicas_of("inventory"))))
                    killed += 1
                time.sleep(0.02)
        finally:
            people.done.set()
        for one in (*shops, *tending):
            one.result()
    system.wait_ready()
    system.wait_quiet(120)
    print(f"\n{killed} kills, {len(people.orders)} orders, {len(people.booked)} bookings, {people.again} repeats")

    assert killed == KILLS
    assert len(set(people.orders)) == ORDERS
    found = {sku: moved(system, sku) for sku in skus}
    for sku in skus:
        assert {"sale", "return", "stock_in", "stock_out", "counted"} <= found[sku].keys()
        for cause, route, sign in (("stock_in", "stock-in", 1), ("stock_out", "stock-out", -1)):
            quantities = [quantity for of, which, quantity in people.booked if (of, which) == (route, sku)]
            quantities += [1000] if cause == "stock_in" else []
            assert found[sku][cause] == (len(quantities), sign * sum(quantities)), "each request is booked once"
    assert system.databases.rows("inventory", UNCHAINED) == []
    assert system.databases.rows("inventory", MISCOUNTED) == []
