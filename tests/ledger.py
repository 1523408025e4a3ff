"""Checks that the services' databases agree with each other and with the rules of the saga. Reads as the superuser."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, Protocol

from inventory_service.books.checks import MISCOUNTED, UNCHAINED
from shared.order_states import AT_REST
from tests.databases import Row
from topology.services import PUBLISHERS
from topology.table import QUEUES, hears


class Readable(Protocol):
    """What the checks need: the rows that a statement returns from one service's database, as dicts."""

    def rows(self, name: str, statement: str, **parameters: object) -> list[Row]: ...


def disagreements(databases: Readable) -> list[str]:
    """Every contradiction, one line each. Empty when the databases agree and every order is at rest."""
    return [line for check in CHECKS for line in check(databases)]


def under_way(databases: Readable) -> list[str]:
    """Published events that a queue's service has not consumed yet, one line each. Dead messages stay listed."""
    emitted: dict[str, list[Any]] = defaultdict(list)
    for name in PUBLISHERS:
        for row in databases.rows(name, "SELECT message_id, event_type FROM outbox"):
            emitted[row["event_type"]].append(row["message_id"])
    waiting = []
    for queue in QUEUES:
        statement = "SELECT message_id FROM consumed_messages WHERE consumer = :consumer"
        consumed = {row["message_id"] for row in databases.rows(queue.service, statement, consumer=queue.name)}
        waiting += [
            f"{event_type} {message_id} is not consumed from {queue.name}"
            for event_type, message_ids in emitted.items()
            if hears(queue, event_type)
            for message_id in message_ids
            if message_id not in consumed
        ]
    return waiting


def stock_is_the_sum_of_its_movements(databases: Readable) -> list[str]:
    """on_hand is the sum of the movements, reserved is the sum of what is held, and 0 <= reserved <= on_hand."""
    moved = databases.rows(
        "inventory",
        "SELECT sku, on_hand, coalesce((SELECT sum(change) FROM stock_movements m WHERE m.sku = s.sku), 0) AS moved"
        " FROM stock_items s",
    )
    held = databases.rows(
        "inventory",
        "SELECT sku, on_hand, reserved, coalesce((SELECT sum(quantity) FROM reservation_items i JOIN reservations r"
        " USING (order_id) WHERE i.sku = s.sku AND r.state = 'RESERVED'), 0) AS held FROM stock_items s",
    )
    return [
        *(
            f"{row['sku']}: {row['on_hand']} on hand, {row['moved']} moved"
            for row in moved
            if row["on_hand"] != row["moved"]
        ),
        *(
            f"{row['sku']}: {row['reserved']} reserved, {row['held']} held"
            for row in held
            if row["reserved"] != row["held"]
        ),
        *(f"{row['sku']}: impossible stock {row}" for row in held if not 0 <= row["reserved"] <= row["on_hand"]),
    ]


def balances_chain(databases: Readable) -> list[str]:
    """Every movement's balance is the one before it and its change, and on_hand is the last one."""
    return [
        *(
            f"{row['sku']}: movement {row['id']} has the balance {row['on_hand_after']} instead of {row['should_be']}"
            for row in databases.rows("inventory", UNCHAINED)
        ),
        *(f"{row['sku']}: the last balance does not fit: {row}" for row in databases.rows("inventory", MISCOUNTED)),
    ]


def movements_are_those_of_the_reservations(databases: Readable) -> list[str]:
    """A committed reservation moved its items once. Any other moved nothing, or gave the items back."""
    moved = databases.rows(
        "inventory",
        "SELECT order_id, sku, sum(change) AS moved FROM stock_movements WHERE order_id IS NOT NULL GROUP BY 1, 2",
    )
    sold = databases.rows(
        "inventory",
        "SELECT order_id, sku, quantity FROM reservation_items JOIN reservations USING (order_id)"
        " WHERE state = 'COMMITTED'",
    )
    seen = {(row["order_id"], row["sku"]): int(row["moved"]) for row in moved}
    due = {(row["order_id"], row["sku"]): -row["quantity"] for row in sold}
    return [
        f"order {key[0]}: {seen.get(key, 0)} of {key[1]} moved instead of {due.get(key, 0)}"
        for key in sorted(seen.keys() | due.keys(), key=str)
        if seen.get(key, 0) != due.get(key, 0)
    ]


def releases_are_those_of_released_reservations(databases: Readable) -> list[str]:
    """Every release event belongs to a RELEASED reservation, with its quantity, and each of these has its events."""
    rows = databases.rows(
        "inventory",
        "SELECT coalesce(e.order_id, i.order_id) AS order_id, coalesce(e.sku, i.sku) AS sku, e.quantity AS audited,"
        " i.quantity AS released FROM inventory_release_events e FULL JOIN ("
        "  SELECT order_id, reservation_id, sku, quantity FROM reservation_items JOIN reservations USING (order_id)"
        "  WHERE state = 'RELEASED') i USING (order_id, reservation_id, sku)"
        " WHERE e.quantity IS DISTINCT FROM i.quantity",
    )
    return [
        f"order {row['order_id']}: release of {row['sku']} audited as {row['audited']}, is {row['released']}"
        for row in rows
    ]


def totals_are_the_sum_of_the_items(databases: Readable) -> list[str]:
    """orders.total is the sum of the order's lines."""
    rows = databases.rows(
        "order",
        "SELECT order_id, total, coalesce((SELECT sum(quantity * unit_price) FROM order_items i"
        " WHERE i.order_id = o.order_id), 0) AS cost FROM orders o",
    )
    return [
        f"order {row['order_id']}: total {row['total']}, items {row['cost']}"
        for row in rows
        if row["total"] != row["cost"]
    ]


def orders_are_at_rest(databases: Readable) -> list[str]:
    """Every order is at rest."""
    rows = databases.rows(
        "order", "SELECT order_id, status, updated_at FROM orders WHERE status <> ALL(:rest)", rest=sorted(AT_REST)
    )
    return [f"order {row['order_id']} is {row['status']} since {row['updated_at']}" for row in rows]


def outboxes_are_empty(databases: Readable) -> list[str]:
    """Every emitted event is published."""
    return [
        f"{name}: {row['event_type']} of {row['aggregate_id']} is not published: {row['last_error']}"
        for name in PUBLISHERS
        for row in databases.rows(name, "SELECT * FROM outbox WHERE published_at IS NULL ORDER BY id")
    ]


def nobody_is_charged_twice(databases: Readable) -> list[str]:
    """No order has two successful charges, whatever its state."""
    rows = databases.rows(
        "payment",
        "SELECT order_id, count(*) AS charges FROM provider_ledger WHERE kind = 'charge' AND done"
        " GROUP BY 1 HAVING count(*) > 1",
    )
    return [f"order {row['order_id']} is charged {row['charges']} times" for row in rows]


def payments_are_those_of_the_provider(databases: Readable) -> list[str]:
    """Each payment of money agrees with the provider's ledger, and the provider has no key that we did not send."""
    rows = databases.rows(
        "payment",
        "SELECT p.order_id, p.status, l.done FROM payments p LEFT JOIN provider_ledger l ON l.key = p.payment_id"
        " WHERE (p.status IN ('COMPLETED', 'REFUND_PENDING', 'REFUNDED') AND p.amount > 0) <> coalesce(l.done, false)"
        " OR (l.done AND (l.amount, l.currency) <> (p.amount, p.currency))",
    )
    strange = databases.rows(
        "payment",
        "SELECT kind, key FROM provider_ledger WHERE key NOT IN (SELECT payment_id FROM payments)"
        " AND key NOT IN (SELECT refund_id FROM refunds)",
    )
    return [
        *(f"order {row['order_id']}: payment {row['status']}, the provider says done: {row['done']}" for row in rows),
        *(f"the provider has a {row['kind']} {row['key']} that nobody here asked for" for row in strange),
    ]


def services_agree_on_each_order(databases: Readable) -> list[str]:
    """Order, reservation, payment and the provider's ledger agree on each order."""
    orders = databases.rows("order", "SELECT order_id, status, total FROM orders")
    states = {
        row["order_id"]: row["state"]
        for row in databases.rows("inventory", "SELECT order_id, state FROM reservations WHERE kind = 'order'")
    }
    payments = {row["order_id"]: row for row in databases.rows("payment", "SELECT * FROM payments")}
    money: dict[Any, Counter[str]] = defaultdict(Counter)
    for row in databases.rows("payment", "SELECT order_id, kind, amount FROM provider_ledger WHERE done"):
        money[row["order_id"]][row["kind"]] += row["amount"]
        money[row["order_id"]][f"{row['kind']}s"] += 1
    committing = _commits_under_way(databases)

    wrong = []
    for order in orders:
        order_id, status = order["order_id"], order["status"]
        state = states.get(order_id, "none")
        payment = payments[order_id]["status"] if order_id in payments else "none"
        moved = money[order_id]
        charge = Counter(charges=1, charge=order["total"]) if order["total"] else Counter()
        if status == "PAID":
            fits = {
                "reservation": state == "COMMITTED" or (state == "RESERVED" and order_id in committing),
                "payment": payment == "COMPLETED" and payments[order_id]["amount"] == order["total"],
                "ledger": moved == charge,
            }
        elif status == "CANCELLED":
            fits = {
                "reservation": state in ("none", "REFUSED", "RELEASED"),
                "payment": payment in ("none", "FAILED", "VOID", "REFUNDED"),
                "ledger": moved["charge"] == moved["refund"],
            }
        elif status == "REFUND_FAILED":
            fits = {
                "reservation": state == "RELEASED",
                "payment": payment == "COMPLETED",
                "ledger": moved == charge,
            }
        else:
            continue  # not at rest, which another check reports
        wrong += [
            f"order {order_id} of {order['total']} is {status}, but its {book} does not fit: reservation {state},"
            f" payment {payment}, ledger {dict(moved)}"
            for book, good in fits.items()
            if not good
        ]
    known = {order["order_id"] for order in orders}
    wrong += [f"reservation for an order {order_id} that is not there" for order_id in states.keys() - known]
    wrong += [f"payment for an order {order_id} that is not there" for order_id in payments.keys() - known]
    return wrong


def _commits_under_way(databases: Readable) -> set[Any]:
    """Orders whose inventory.commit.requested is emitted, but neither consumed nor dead."""
    emitted = databases.rows(
        "order", "SELECT message_id, aggregate_id FROM outbox WHERE event_type = 'inventory.commit.requested'"
    )
    ended = databases.rows(
        "inventory",
        "SELECT message_id FROM consumed_messages WHERE consumer = 'q.inventory.commit-requested'"
        " UNION SELECT message_id FROM dead_messages WHERE queue = 'q.inventory.commit-requested'",
    )
    gone = {row["message_id"] for row in ended}
    return {row["aggregate_id"] for row in emitted if row["message_id"] not in gone}


CHECKS = (
    orders_are_at_rest,
    outboxes_are_empty,
    totals_are_the_sum_of_the_items,
    stock_is_the_sum_of_its_movements,
    balances_chain,
    movements_are_those_of_the_reservations,
    releases_are_those_of_released_reservations,
    nobody_is_charged_twice,
    payments_are_those_of_the_provider,
    services_agree_on_each_order,
)
