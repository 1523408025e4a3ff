"""Customers who post so many orders a second whatever the answers are, and never post one twice."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import requests

from ops.cli.flow import Flow
from tests.upgrade.fleet import Fleet

AT_ONCE = 60  # at 20 orders a second, so many are under way when each takes 3 s


@dataclass(frozen=True)
class Kind:
    """What a customer does beside posting an order, and how it ends."""

    ends: str
    payment: str = "mock_ok"
    goes_on: Callable[[Flow, str], object] = lambda flow, order_id: None


def _cancel_paid(flow: Flow, order_id: str) -> None:
    assert flow.at_rest(order_id)["status"] == "PAID"
    flow.cancel(order_id)


PLAIN = Kind("PAID")
DECLINED = Kind("CANCELLED", payment="mock_declined")
CANCELLED = Kind("CANCELLED", goes_on=Flow.cancel)
REFUNDED = Kind("CANCELLED", goes_on=_cancel_paid)
# Of ten orders, one of each other kind.
KINDS = (PLAIN, CANCELLED, PLAIN, PLAIN, REFUNDED, PLAIN, PLAIN, DECLINED, PLAIN, PLAIN)


@dataclass(frozen=True)
class Load:
    """So many orders a second, for so many seconds at least."""

    orders_per_s: float = 20.0
    seconds: float = 0.0


class Customers:
    """They post while the block runs."""

    def __init__(self, fleet: Fleet, load: Load) -> None:
        self.fleet = fleet
        self.load = load
        self.sku = f"upgrade-{uuid.uuid4().hex[:8]}"
        self.kinds: dict[str, Kind] = {}  # by key
        self.began = time.monotonic()
        self.accepted: dict[str, str] = {}  # the order of each key
        self.refused: list[str] = []
        self.slowest_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._come, name="customers")
        self._own = threading.local()

    def __enter__(self) -> Customers:
        self.began = time.monotonic()
        flow = self.fleet.flow()
        flow.stock(self.sku, 1_000_000)
        flow.token("customer")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _come(self) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for n in count():
                if self._stopping.wait(max(0.0, self.began + n / self.load.orders_per_s - time.monotonic())):
                    return
                key, kind = str(uuid.uuid4()), KINDS[n % len(KINDS)]
                self.kinds[key] = kind
                pool.submit(self._buy, key, kind)

    def _buy(self, key: str, kind: Kind) -> None:
        began = time.monotonic()
        try:
            flow = self._flow()
            items = [{"sku": self.sku, "quantity": 1, "unit_price": 1000}]
            body = {"currency": "EUR", "payment_method": kind.payment, "items": items}
            answer = flow.send("POST", "/api/orders", body, Idempotency_Key=key)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            if answer.status_code != 201:
                self.refused.append(f"POST /api/orders: {answer.status_code} {answer.text}")
                return
            self.accepted[key] = answer.json()["order_id"]
            kind.goes_on(flow, self.accepted[key])
        except requests.HTTPError as error:
            self.refused.append(f"{error.request.method} {error.request.path_url}: {error.response.text}")
        except Exception as error:
            self.refused.append(f"{key}: {error!r}")

    def _flow(self) -> Flow:
        if not hasattr(self._own, "flow"):
            self._own.flow = self.fleet.flow()
        return self._own.flow

    @property
    def summary(self) -> str:
        """How much there was, and how long it took."""
        return f"{len(self.accepted)} orders, the slowest post took {self.slowest_s:.2f} s"

    def go_on(self, part: float) -> None:
        """Return when this part of the load's time is over."""
        self._stopping.wait(max(0.0, self.began + part * self.load.seconds - time.monotonic()))

    def check_posts(self) -> None:
        """Every post was answered 201, and everything else as it should be, at the first try."""
        assert not self.refused, f"{len(self.refused)} of {len(self.kinds)}: {self.refused[:5]}"

    def check_orders(self) -> None:
        """Every key has one order, which has ended as its kind does."""
        rows = self.fleet.databases.rows(
            "order",
            "SELECT idempotency_key, order_id, status FROM orders JOIN order_items USING (order_id) WHERE sku = :sku",
            sku=self.sku,
        )
        assert len(rows) == len(self.kinds)
        assert {row["idempotency_key"]: str(row["order_id"]) for row in rows} == self.accepted
        wrong = [row for row in rows if row["status"] != self.kinds[row["idempotency_key"]].ends]
        assert not wrong, wrong[:5]
