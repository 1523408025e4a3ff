"""What customers and operators do, to the end: each fails the test if anything is not as it should be."""

from __future__ import annotations

import uuid

from shared.envelope import envelope
from shared.events import CommitRequested, Identity
from shared.ids import new_trace_id
from tests.e2e.broker import publish
from tests.e2e.system import System, eventually
from topology.table import dead_letter_queue

SKU = "journey"
COMMITS = "q.inventory.commit-requested"
DLQ = dead_letter_queue(COMMITS)


def checkout(system: System) -> str:
    """An order that is paid, and whose stock is sold."""
    flow = system.flow()
    flow.stock(SKU, 1_000)
    order_id = str(flow.order(SKU)["order_id"])
    assert flow.at_rest(order_id)["status"] == "PAID"
    flow.timeline(order_id, last="inventory.committed")
    return order_id


def cancel(system: System) -> None:
    """An order that its customer cancels at once."""
    flow = system.flow()
    flow.stock(SKU, 1_000)
    order_id = str(flow.order(SKU)["order_id"])
    flow.cancel(order_id)
    assert flow.at_rest(order_id)["status"] == "CANCELLED"
    flow.timeline(order_id, last="inventory.released")


def refund(system: System) -> None:
    """A paid order that its customer cancels."""
    flow, order_id = system.flow(), checkout(system)
    flow.cancel(order_id)
    assert flow.at_rest(order_id)["status"] == "CANCELLED"
    flow.timeline(order_id, last="payment.refunded")


def die(system: System) -> str:
    """Let the commit of an order die, for want of a reservation; the order."""
    order_id = uuid.uuid4()
    publish(
        system.amqp_uri, envelope("order_service", CommitRequested(order_id), new_trace_id(), Identity("alice", ()))
    )
    eventually(lambda: system.dead_letters()[DLQ], lambda messages: messages == 1)
    return str(order_id)


def replay(system: System, order_id: str) -> None:
    """Make what the commit of this order lacked, and replay it."""
    flow = system.flow()
    flow.stock(SKU, 1_000)
    body = {"order_id": order_id, "items": [{"sku": SKU, "quantity": 1}]}
    flow.send("POST", "/api/stocks/reserve", body, "admin").raise_for_status()
    begun = flow.send("POST", f"/api/ops/dlq/{COMMITS}/replays", {"all": True, "why": "reserved now"}, "operator")
    assert begun.status_code == 202, begun.text
    ended = eventually(
        lambda: flow.get(begun.headers["Location"], "operator"), lambda replay: replay["status"] != "started"
    )
    assert (ended["status"], ended["counts"].get("applied")) == ("done", 1), ended
    states = "SELECT state FROM reservations WHERE order_id = :id"
    eventually(
        lambda: system.databases.rows("inventory", states, id=order_id), lambda rows: rows == [{"state": "COMMITTED"}]
    )
    assert system.dead_letters()[DLQ] == 0
