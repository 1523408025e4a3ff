"""Customers who post orders without a pause and, when no answer comes, repeat the same post until one does."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter

import requests

from ops.cli.flow import Flow
from tests.e2e.system import System

PAYMENTS = ("mock_ok", "mock_ok", "mock_ok", "mock_declined", "mock_timeout_charged")
GIVE_UP_S = 240.0  # after an outage as in the quiet
# A customer's pause between two orders: four customers with a short pause keep two processors busy.
PAUSE_S, PAUSE_LONG_S = 0.5, 0.05
# And before they repeat a refused order: in an outage they do nothing else.
AGAIN_S, AGAIN_LONG_S = 0.5, 0.1
# No answer at all is what the client of a killed gateway gets.
GOOD_REFUSALS = {"503 unavailable", "503 cannot_work", "409 idempotency_in_progress", "ConnectionError"}


class Load:
    """Posts while its block runs. Afterwards `accepted` holds the orders by the key they were posted with."""

    def __init__(self, system: System, customers: int = 4, pause_s: float = 0.0, outage_s: float = 0.0) -> None:
        self.system = system
        self.pause_s = pause_s or (PAUSE_LONG_S if system.full_size else PAUSE_S)
        self.again_s = AGAIN_LONG_S if system.full_size else AGAIN_S
        self.give_up_s = GIVE_UP_S + outage_s
        self.sku = f"load-{uuid.uuid4().hex[:8]}"
        self.accepted: dict[str, str] = {}
        self.refused: list[str] = []
        self.given_up: list[str] = []
        self.slowest_s = 0.0  # from a first post to its order
        self.longest_s = 0.0  # one request
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._shop, args=(n,)) for n in range(customers)]

    def __enter__(self) -> Load:
        self.system.flow().stock(self.sku, 100_000)
        self.system.flow().token("customer")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert not self.given_up, self.given_up[:3]

    def wait_for(self, orders: int, patience_s: float = 30.0) -> None:
        """Return when so many more orders were accepted."""
        goal, deadline = len(self.accepted) + orders, time.monotonic() + patience_s
        while len(self.accepted) < goal:
            assert time.monotonic() < deadline, f"{goal - len(self.accepted)} of {orders} orders are not accepted"
            time.sleep(0.02)

    def _shop(self, n: int) -> None:
        chance = random.Random(n)
        gateway = n
        flow = self.system.flow(gateway % self.system.replicas)
        while not self._stopping.wait(self.pause_s):
            key, payment = str(uuid.uuid4()), chance.choice(PAYMENTS)
            began = time.monotonic()
            while key not in self.accepted:
                why = self._post(flow, key, payment)
                if why:
                    self.refused.append(why)
                    gateway += 1
                    flow = self.system.flow(gateway % self.system.replicas)
                    if time.monotonic() - began > self.give_up_s:
                        self.given_up.append(f"{key}: {why}")
                        break
                    time.sleep(self.again_s)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def _post(self, flow: Flow, key: str, payment: str) -> str | None:
        """Why the order was not accepted, or None."""
        began = time.monotonic()
        try:
            self.accepted[key] = flow.order(self.sku, payment=payment, key=key)["order_id"]
        except requests.RequestException as error:
            answer = error.response
            if answer is None:
                return type(error).__name__
            return f"{answer.status_code} {answer.json()['error']['code']}"
        finally:
            self.longest_s = max(self.longest_s, time.monotonic() - began)
        return None

    def check_refusals(self) -> None:
        """Clients that were not served got a 503 with Retry-After in time, and never an internal error."""
        assert set(self.refused) <= GOOD_REFUSALS, Counter(self.refused)

    def check_all_are_there(self) -> None:
        """Every accepted key has made exactly its one order."""
        rows = self.system.databases.rows(
            "order",
            "SELECT idempotency_key, order_id FROM orders JOIN order_items USING (order_id) WHERE sku = :sku",
            sku=self.sku,
        )
        assert {row["idempotency_key"]: str(row["order_id"]) for row in rows} == self.accepted
        assert len(rows) == len(self.accepted)
