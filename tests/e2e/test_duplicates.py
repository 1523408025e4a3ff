"""Duplicate messages: each consumer acts once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from payment_service.domain import payment_id_of
from shared.events import CATALOGUE
from tests.e2e.broker import Publishers, Tap, depths, publish_by_hand
from tests.e2e.held import held
from tests.e2e.system import System, eventually
from topology.services import PUBLISHERS
from topology.table import QUEUES

COPIES = 3


class Echo:
    """Repeats every event as soon as it arrives, so that copies race with originals."""

    def __init__(self, amqp_uri: str) -> None:
        self.amqp_uri = amqp_uri
        self.repeated: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Echo:
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        tap, seen = Tap(self.amqp_uri), set()
        self._listening.set()
        with Publishers(self.amqp_uri) as publishers:
            while not self._stopping.wait(0.002):
                for item in tap.new():
                    if item.key not in seen:
                        seen.add(item.key)
                        self.repeated[item.routing_key] += 1
                        for _ in range(COPIES - 1):
                            publishers.repeat(item)
        tap.close()


@pytest.fixture
def echo(system: System) -> Iterator[Echo]:
    """Delivers every event three times while the test runs."""
    with Echo(system.amqp_uri) as echo:
        yield echo


def told_of(system: System, order_id: str) -> Counter[str]:
    """The events of an order, by type."""
    statement = "SELECT event_type FROM outbox WHERE aggregate_id = :id"
    rows = [row for name in PUBLISHERS for row in system.databases.rows(name, statement, id=order_id)]
    return Counter(row["event_type"] for row in rows)


def effects_of(system: System, order_ids: list[str]) -> dict[str, list]:
    """Every row of some orders in the services' databases."""
    tables = {
        "order": ("orders", "order_events"),
        "inventory": ("reservations", "reservation_items", "stock_movements", "inventory_release_events"),
        "payment": ("payments", "refunds", "provider_ledger"),
    }
    return {
        table: system.databases.rows(
            name, f"SELECT * FROM {table} WHERE order_id = ANY(cast(:ids AS uuid[])) ORDER BY 1, 2", ids=order_ids
        )
        for name, names in tables.items()
        for table in names
    }


def late_charge(system: System, sku: str, payment: str) -> str:
    """An order that was cancelled while its charge was on the way: the money has to go back."""
    flow = system.flow()
    with held(system.databases, "payment"):
        order_id = flow.order(sku, 2, payment=payment)["order_id"]
        eventually(lambda: told_of(system, order_id), lambda told: told["payment.succeeded"] == 1)
        failed = {"order_id": order_id, "payment_id": str(payment_id_of(order_id)), "reason": "said_by_hand"}
        publish_by_hand(system.amqp_uri, "payment.failed", failed)
        eventually(lambda: flow.get(f"/api/orders/{order_id}"), lambda order: order["status"] == "CANCELLED")
    return order_id


def test_every_event_of_every_saga_delivered_three_times_has_one_effect(system: System, tap: Tap, echo: Echo) -> None:
    flow = system.flow()
    flow.stock("thrice", 100)
    rule = {"low_at": 100, "version": flow.get("/api/inventory/rules/thrice", user="admin")["version"]}
    flow.send("PUT", "/api/inventory/rules/thrice", rule, user="admin").raise_for_status()
    paid = flow.order("thrice", 2)["order_id"]
    declined = flow.order("thrice", 3, payment="mock_declined")["order_id"]
    short = flow.order("thrice", 1000)["order_id"]
    for order_id in (paid, declined, short):
        flow.at_rest(order_id)
    refunded = late_charge(system, "thrice", "mock_ok")
    not_refunded = late_charge(system, "thrice", "mock_refund_declined")
    system.wait_quiet()
    ends = {
        order_id: (flow.get(f"/api/orders/{order_id}")["status"], told_of(system, order_id))
        for order_id in (paid, declined, short, refunded, not_refunded)
    }

    def once(*types: str) -> Counter[str]:
        return Counter(types)

    begun = ("order.created", "inventory.reserved")
    cancelled = (*begun, "order.cancelled", "inventory.release.requested", "inventory.released")
    back = (*cancelled, "payment.succeeded", "payment.refund.requested")
    assert ends == {
        paid: (
            "PAID",
            once(*begun, "payment.succeeded", "order.paid", "inventory.commit.requested", "inventory.committed"),
        ),
        declined: ("CANCELLED", once(*cancelled, "payment.failed")),
        short: ("CANCELLED", once("order.created", "inventory.failed", "order.cancelled")),
        refunded: ("CANCELLED", once(*back, "payment.refunded")),
        not_refunded: ("REFUND_FAILED", once(*back, "payment.refund_failed")),
    }
    of_sagas = {type_ for type_ in CATALOGUE if not type_.startswith("user.")}
    eventually(lambda: set(echo.repeated), lambda heard: heard >= of_sagas)
    stock = flow.get("/api/stocks/thrice")
    assert (stock["on_hand"], stock["reserved"]) == (98, 0)

    # And once more, when everything is long over.
    before = effects_of(system, list(ends))
    tap.new()
    originals = {item.key: item for item in tap.heard}
    with Publishers(system.amqp_uri) as publishers:
        for item in originals.values():
            for _ in range(COPIES):
                publishers.repeat(item)
    eventually(lambda: waiting(system), lambda count: count == 0)
    system.wait_quiet()
    assert effects_of(system, list(ends)) == before
    assert {order_id: told_of(system, order_id) for order_id in ends} == {key: told for key, (_, told) in ends.items()}


def waiting(system: System) -> int:
    """How many messages have not been handed to a consumer yet."""
    return sum(depths(system.amqp_uri, [queue.name for queue in QUEUES]).values())
