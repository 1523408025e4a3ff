"""Customers who post orders at a steady rate while a block runs, and note every answer that is not 201."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import requests

from tests.containers.site import Site, eventually

GIVE_UP_S = 60.0
AGAIN_S = 0.25
AT_ONCE = 32
PAUSE_S = 1 / 20


class Customers:
    """`orders` holds the orders that were answered 201, `repeats` what made a customer repeat a POST, by key."""

    def __init__(self, site: Site, port: int | None = None) -> None:
        """Customers of the gateway, or of the proxy if this is its port."""
        self.site = site
        self.port = port or site.port
        self.sku = f"load-{uuid.uuid4().hex[:8]}"
        self.orders: dict[str, str] = {}
        self.repeats: dict[str, list[str]] = {}
        self.wrong: list[str] = []
        self.unanswered_s = 0.0  # the longest time that no POST was answered
        self._answered_at = 0.0
        self._stopping = threading.Event()
        self._clock = threading.Thread(target=self._tick)
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._local = threading.local()

    def __enter__(self) -> Customers:
        flow = self.site.flow()
        flow.stock(self.sku, 1_000_000)
        self._token = flow.token("customer")
        self._answered_at = time.monotonic()
        self._clock.start()
        eventually(lambda: len(self.orders), lambda n: n >= 20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._clock.join()
        self._pool.shutdown()

    def summary(self) -> str:
        """What happened, in a line."""
        reasons = Counter(why for whys in self.repeats.values() for why in whys)
        return (
            f"{len(self.orders)} orders answered 201, {len(self.repeats)} of them after a repeat {dict(reasons)};"
            f" {len(self.wrong)} never; no POST was answered for at most {self.unanswered_s:.1f} s"
        )

    def check(self) -> None:
        """Every POST was answered 201 in the end, every key made one order, and every order is paid."""
        assert not self.wrong, self.wrong[:3]
        paid = [f"PAID|{len(set(self.orders.values()))}"]
        assert paid == [f"PAID|{len(self.orders)}"]
        eventually(self._states, lambda states: states == paid, patience_s=120)

    def _states(self) -> list[str]:
        """The states of all orders of the sku, with how many are in each."""
        ours = f"orders JOIN order_items USING (order_id) WHERE sku = '{self.sku}'"
        sql = f"SELECT status, count(*) FROM {ours} GROUP BY status"
        return self.site.compose(f'exec -T postgres psql -U postgres -d order -At -c "{sql}"').split()

    def _tick(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            self._pool.submit(self._buy, str(uuid.uuid4()))
            due += PAUSE_S
            self._stopping.wait(max(0.0, due - time.monotonic()))

    def _buy(self, key: str) -> None:
        """Post until the answer is 201: docs/http.md tells clients to repeat a 503, or no answer, with the same key."""
        deadline = time.monotonic() + GIVE_UP_S
        why = self._post(key)
        while why is not None:
            self.repeats.setdefault(key, []).append(why)
            if time.monotonic() > deadline:
                self.wrong.append(f"{key}: {why}")
                return
            time.sleep(AGAIN_S)
            why = self._post(key)

    def _post(self, key: str) -> str | None:
        if not hasattr(self._local, "http"):
            self._local.http = requests.Session()
        body = {
            "currency": "EUR",
            "payment_method": "mock_ok",
            "items": [{"sku": self.sku, "quantity": 1, "unit_price": 1000}],
        }
        headers = {"Authorization": f"Bearer {self._token}", "Idempotency-Key": key}
        try:
            answer = self._local.http.post(
                f"http://127.0.0.1:{self.port}/api/orders", json=body, headers=headers, timeout=30
            )
        except requests.RequestException as error:
            return type(error).__name__
        if answer.status_code == 201:
            now = time.monotonic()
            self.unanswered_s = max(self.unanswered_s, now - self._answered_at)
            self._answered_at = now
            self.orders[key] = answer.json()["order_id"]
            return None
        return f"{answer.status_code} {answer.json()['error']['code']}"
