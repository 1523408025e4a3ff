"""What a system of one replica of each service does for its clients."""

from __future__ import annotations

import uuid

from tests.e2e.system import System


def stock_of(system: System, sku: str) -> tuple[int, int]:
    stock = system.flow().get(f"/api/stocks/{sku}")
    return stock["on_hand"], stock["reserved"]


def test_stock_is_set_and_seen(system: System) -> None:
    flow = system.flow()
    for on_hand in (5, 8):
        assert flow.stock("counted", on_hand)["on_hand"] == on_hand
        assert stock_of(system, "counted") == (on_hand, 0)


def test_an_order_is_paid_and_its_timeline_tells_how(system: System) -> None:
    flow = system.flow()
    flow.stock("sold", 3)
    order = flow.at_rest(flow.order("sold", 2)["order_id"])
    assert (order["status"], order["total"]) == ("PAID", 2000)
    steps = flow.timeline(order["order_id"], last="inventory.committed")["steps"]
    events = [step["event"] for step in steps]
    assert (events[0], events[-1]) == ("order.created", "inventory.committed")
    assert sorted(events[1:-1]) == ["inventory.reserved", "payment.succeeded"]
    assert stock_of(system, "sold") == (1, 0)


def test_an_order_for_more_than_there_is_is_cancelled(system: System) -> None:
    flow = system.flow()
    flow.stock("scarce", 1)
    order = flow.at_rest(flow.order("scarce", 2)["order_id"])
    assert (order["status"], order["reason"]) == ("CANCELLED", "out_of_stock")
    assert stock_of(system, "scarce") == (1, 0)


def test_an_order_that_is_not_paid_gives_its_stock_back(system: System) -> None:
    flow = system.flow()
    flow.stock("returned", 1)
    order = flow.at_rest(flow.order("returned", payment="mock_declined")["order_id"])
    assert (order["status"], order["reason"]) == ("CANCELLED", "payment_failed")
    flow.timeline(order["order_id"], last="inventory.released")
    assert stock_of(system, "returned") == (1, 0)


def test_a_repeated_post_makes_one_order(system: System) -> None:
    flow = system.flow()
    flow.stock("once", 5)
    key = str(uuid.uuid4())
    first, again = (flow.order("once", key=key) for _ in range(2))
    assert again["order_id"] == first["order_id"]
    flow.at_rest(first["order_id"])
    flow.timeline(first["order_id"], last="inventory.committed")
    assert stock_of(system, "once") == (4, 0)
