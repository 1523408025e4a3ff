"""The checker of the books finds what is wrong with them: every disagreement is planted once, and then undone."""

from __future__ import annotations

import pytest

from tests.e2e.system import System
from tests.ledger import disagreements, under_way

SOME_ID = "00000000-0000-4000-8000-000000000001"
CHARGE = (
    "INSERT INTO provider_ledger (key, kind, order_id, amount, currency, done, reference, reason)"
    f" VALUES ('{SOME_ID}', 'charge', :order, 2000, 'EUR', true, 'again', '')"
)
RELEASE = (
    "INSERT INTO inventory_release_events"
    " (order_id, reservation_id, sku, quantity, reason, requested_by, roles, trace_id)"
    " SELECT order_id, reservation_id, 'books', 2, 'manual', 'nobody', '{}', '' FROM reservations"
    " WHERE order_id = :order"
)
UNPUBLISHED = (
    "INSERT INTO outbox (message_id, aggregate_id, event_type, traceparent, body)"
    f" VALUES ('{SOME_ID}', :order, 'order.paid', '', '')"
)
OF_ORDER = "WHERE order_id = :order"

# A planted fault: the order (by how it ended), the database, the statement, and the checker's finding.
PLANTED = {
    "more on hand than was moved": ("PAID", "inventory", "UPDATE stock_items SET on_hand = on_hand + 1", "on hand"),
    "more reserved than is held": ("PAID", "inventory", "UPDATE stock_items SET reserved = reserved + 1", "reserved"),
    "a movement too many": (
        "PAID",
        "inventory",
        "INSERT INTO stock_movements (sku, change, cause, order_id, moved_by, trace_id)"
        " VALUES ('books', -2, 'sale', :order, '', '')",
        "moved instead of",
    ),
    "a balance that does not follow from the one before": (
        "PAID",
        "inventory",
        f"UPDATE stock_movements SET on_hand_after = on_hand_after + 1 {OF_ORDER}",
        "has the balance",
    ),
    "balances that follow from each other and not from on_hand": (
        "PAID",
        "inventory",
        "UPDATE stock_movements SET on_hand_after = on_hand_after + 1",
        "the last balance does not fit",
    ),
    "a total that its items do not cost": ("PAID", "order", f"UPDATE orders SET total = total + 1 {OF_ORDER}", "items"),
    "an order under way": ("PAID", "order", f"UPDATE orders SET status = 'RESERVED' {OF_ORDER}", "is RESERVED"),
    "an event not published": ("PAID", "order", UNPUBLISHED, "is not published"),
    "a paid order without stock": (
        "PAID",
        "inventory",
        f"UPDATE reservations SET state = 'RELEASED' {OF_ORDER}",
        "its reservation does not fit",
    ),
    "a paid order that was never committed": (
        "PAID",
        "inventory",
        f"UPDATE reservations SET state = 'RESERVED' {OF_ORDER}",
        "its reservation does not fit",
    ),
    "a paid order without a reservation": (
        "PAID",
        "inventory",
        "WITH gone AS (DELETE FROM reservation_items WHERE order_id = :order RETURNING order_id)"
        " UPDATE reservations SET kind = 'manual' FROM gone WHERE reservations.order_id = gone.order_id",
        "its reservation does not fit",
    ),
    "a paid order whose payment failed": (
        "PAID",
        "payment",
        f"UPDATE payments SET status = 'FAILED' {OF_ORDER}",
        "its payment does not fit",
    ),
    "a payment of another amount": (
        "PAID",
        "payment",
        f"UPDATE payments SET amount = amount - 1 {OF_ORDER}",
        "its payment does not fit",
    ),
    "a payment that the provider never took": (
        "PAID",
        "payment",
        f"DELETE FROM provider_ledger {OF_ORDER}",
        "its ledger does not fit",
    ),
    "a second charge": ("PAID", "payment", CHARGE, "is charged 2 times"),
    "a charge nobody asked for": ("out_of_stock", "payment", CHARGE, "that nobody here asked for"),
    "a cancelled order that was charged": ("payment_failed", "payment", CHARGE, "its ledger does not fit"),
    "a cancelled order that still holds stock": (
        "payment_failed",
        "inventory",
        f"UPDATE reservations SET state = 'RESERVED' {OF_ORDER}",
        "its reservation does not fit",
    ),
    "a cancelled order with an unknown payment": (
        "payment_failed",
        "payment",
        f"UPDATE payments SET status = 'PENDING' {OF_ORDER}",
        "its payment does not fit",
    ),
    "a release of what was sold": ("PAID", "inventory", RELEASE, "audited as 2, is None"),
    "a release that was not audited": (
        "payment_failed",
        "inventory",
        f"DELETE FROM inventory_release_events {OF_ORDER}",
        "audited as None, is 2",
    ),
    "a refund that the provider never made": (
        "order_cancelled",
        "payment",
        f"DELETE FROM provider_ledger {OF_ORDER} AND kind = 'refund'",
        "its ledger does not fit",
    ),
    "a paid order that was given back": ("PAID", "payment", CHARGE.replace("'charge'", "'refund'"), "its ledger"),
    "a cancelled order whose sale was not undone": (
        "order_cancelled",
        "inventory",
        f"DELETE FROM stock_movements {OF_ORDER} AND change > 0",
        "moved instead of",
    ),
    "a refund under way": (
        "order_cancelled",
        "order",
        f"UPDATE orders SET status = 'REFUND_PENDING' {OF_ORDER}",
        "is REFUND_PENDING",
    ),
    "a reservation for no order": (
        "PAID",
        "order",
        "WITH lines AS (DELETE FROM order_items WHERE order_id = :order),"
        " steps AS (DELETE FROM order_events WHERE order_id = :order)"
        f" UPDATE orders SET order_id = '{SOME_ID}' WHERE order_id = :order",
        "that is not there",
    ),
}


@pytest.fixture(scope="module")
def orders(system: System) -> dict[str, str]:
    """One order for each way to end."""
    flow = system.flow()
    flow.stock("books", 10)
    made = [
        flow.order("books", 2),
        flow.order("books", 1000),
        flow.order("books", 2, payment="mock_declined"),
    ]
    ended = [flow.at_rest(order["order_id"]) for order in made]
    paid = flow.at_rest(flow.order("books", 2)["order_id"])["order_id"]
    flow.timeline(paid, last="inventory.committed")
    flow.cancel(paid)
    ended.append(flow.at_rest(paid))
    system.wait_quiet()
    return {order["reason"] or order["status"]: order["order_id"] for order in ended}


@pytest.mark.parametrize("planted", PLANTED)
def test_the_checker_finds(system: System, orders: dict[str, str], planted: str) -> None:
    end, database, statement, said = PLANTED[planted]
    with system.databases.doctored() as doctored:
        assert disagreements(doctored) == []
        if "order_items WHERE" in statement:
            doctored.run(database, "SET CONSTRAINTS ALL DEFERRED")
            doctored.run(database, "SET session_replication_role = replica")
        if ":order" in statement:
            doctored.run(database, statement, order=orders[end])
        else:
            doctored.run(database, statement + " WHERE sku = 'books'")
        found = disagreements(doctored)
    assert any(said in line for line in found), found
    assert disagreements(system.databases) == []


def test_a_commit_under_way_is_no_disagreement(system: System, orders: dict[str, str]) -> None:
    with system.databases.doctored() as doctored:
        doctored.run("inventory", "DELETE FROM stock_movements WHERE order_id = :order", order=orders["PAID"])
        later = "WHERE sku = 'books' AND order_id IS NOT NULL"
        doctored.run("inventory", f"UPDATE stock_movements SET on_hand_after = on_hand_after + 2 {later}")
        doctored.run("inventory", "UPDATE stock_items SET on_hand = on_hand + 2, reserved = 2 WHERE sku = 'books'")
        statement = "UPDATE reservations SET state = 'RESERVED' WHERE order_id = :order"
        doctored.run("inventory", statement, order=orders["PAID"])
        assert disagreements(doctored) != []
        doctored.run("inventory", "DELETE FROM consumed_messages WHERE consumer = 'q.inventory.commit-requested'")
        assert disagreements(doctored) == []
        assert any("inventory.commit.requested" in line for line in under_way(doctored))
