"""The floor: the same work by raw psycopg2 and py-amqp, in batches of 50 and without HTTP for customers.

    python -m benchmarks.floor create COUNT | order | inventory | payment

Every guarantee that this project gives to a paid order is kept: idempotency key, inbox and outbox in the transaction of
the effect, a payment on record before the provider is asked, rows locked in one order, confirms, fsync. Everything
else is left out: validation, roles, limits, metrics, logs, retries, tracing, a relay of its own. Nobody would run this;
it shows what the work itself costs.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import amqp
import psycopg2
from psycopg2.extras import execute_values, register_uuid

from benchmarks.queues import exchange_of, queue_of

BATCH = 50
PREFETCH = 150
FULLER_S = 0.03  # how long a batch that is not full waits for more, so that it is as full here as it can be
NAME = "floor"
Rows = list[tuple[Any, ...]]
Handler = Callable[[Any, str, Rows], Rows]


class Service:
    """One process: a database, a channel that consumes and one that publishes with confirms."""

    def __init__(self, service: str, queues: Sequence[str]) -> None:
        self.service = service
        self.db = psycopg2.connect(f"{os.environ['BENCH_DATABASES']}/{NAME}_{service}")
        self.marks = psycopg2.connect(f"{os.environ['BENCH_DATABASES']}/{NAME}_{service}")
        self.marks.autocommit = True
        with self.marks.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")  # a lost mark repeats a message, which the inbox knows
        uri = urlsplit(os.environ["BENCH_AMQP_URI"])
        self.broker = amqp.Connection(
            host=f"{uri.hostname}:{uri.port}",
            userid=uri.username,
            password=uri.password,
            virtual_host=uri.path[1:],
            heartbeat=0,
        )
        self.broker.connect()
        self.out = self.broker.channel()
        self.out.confirm_select()
        self.sent = 0
        self.unconfirmed: set[int] = set()
        self.out.events["basic_ack"].add(self._confirm)
        self.incoming: list[tuple[str, Any]] = []
        self.channel = self.broker.channel()
        self.channel.basic_qos(0, PREFETCH, False)
        for queue in queues:
            self.channel.basic_consume(queue_of(NAME, queue), callback=self._hold(queue))

    def _hold(self, queue: str) -> Callable[[Any], None]:
        return lambda message: self.incoming.append((queue, message))

    def _confirm(self, tag: int, multiple: bool) -> None:
        self.unconfirmed -= {sent for sent in self.unconfirmed if sent <= tag} if multiple else {tag}

    def _read(self, timeout_s: float | None) -> bool:
        try:
            self.broker.drain_events(timeout=timeout_s)
            return True
        except (TimeoutError, BlockingIOError):
            return False

    def receive(self) -> list[tuple[str, Any]]:
        """The next batch."""
        while not self.incoming:
            self._read(None)
        until = time.monotonic() + FULLER_S
        while len(self.incoming) < BATCH and (left_s := until - time.monotonic()) > 0 and self._read(left_s):
            pass
        batch, self.incoming = self.incoming[:BATCH], self.incoming[BATCH:]
        return batch

    def run(self, handle: Handler, prepare: Callable[[list[dict[str, Any]]], None] | None = None) -> None:
        """Handle batches for ever. `handle` gets (cursor, queue, [(message_id, body)]) and returns rows to emit.

        `prepare` gets the bodies of a batch before its transaction.
        """
        while True:
            batch = self.receive()
            by_queue: dict[str, dict[UUID, dict[str, Any]]] = defaultdict(dict)
            for queue, message in batch:
                by_queue[queue][UUID(message.properties["message_id"])] = json.loads(message.body)
            if prepare:
                prepare([body for messages in by_queue.values() for body in messages.values()])
            emitted: Rows = []
            with self.db, self.db.cursor() as cursor:
                for queue, messages in by_queue.items():
                    fresh = _claim(cursor, queue, messages)
                    emitted += handle(cursor, queue, [(key, messages[key]) for key in fresh])
                emit(cursor, emitted)
            self.publish(emitted)
            self.channel.basic_ack(batch[-1][1].delivery_tag, multiple=True)

    def publish(self, rows: Rows) -> None:
        """Publish committed rows of the outbox, wait for the confirms and mark the rows."""
        for message_id, _, type_, body in rows:
            message = amqp.Message(
                body, message_id=str(message_id), type=type_, content_type="application/json", delivery_mode=2
            )
            self.sent += 1
            self.unconfirmed.add(self.sent)
            self.out.basic_publish(message, exchange_of(NAME), type_, mandatory=type_ != "order.paid")
        while self.unconfirmed:
            self._read(None)
        if rows:
            with self.marks.cursor() as cursor:
                cursor.execute(
                    "UPDATE outbox SET published_at = now() WHERE message_id = ANY(%s)", ([row[0] for row in rows],)
                )


def _claim(cursor: Any, queue: str, messages: dict[UUID, dict[str, Any]]) -> list[UUID]:
    rows = execute_values(
        cursor,
        "INSERT INTO consumed_messages (consumer, message_id) VALUES %s ON CONFLICT DO NOTHING RETURNING message_id",
        [(queue, key) for key in sorted(messages)],
        page_size=BATCH,
        fetch=True,
    )
    return [key for (key,) in rows]


def emit(cursor: Any, rows: Rows) -> None:
    """Put events into the outbox."""
    if rows:
        execute_values(
            cursor,
            "INSERT INTO outbox (message_id, aggregate_id, event_type, body) VALUES %s",
            rows,
            page_size=len(rows),
        )


def event(type_: str, order: dict[str, Any]) -> tuple[Any, ...]:
    """A row of the outbox. The body is the whole order, as in this project's events."""
    return uuid4(), UUID(order["order_id"]), type_, json.dumps(order)


# Orders


def create(count: int) -> None:
    """Create orders in batches, as fast as possible."""
    service = Service("order", ())
    run = uuid4().hex[:8]
    for first in range(0, count, BATCH):
        orders = [new_order(f"{run}-{n}") for n in range(first, min(first + BATCH, count))]
        emitted = [event("order.created", order) for order in orders]
        with service.db, service.db.cursor() as cursor:
            _create(cursor, orders)
            emit(cursor, emitted)
        service.publish(emitted)


def new_order(key: str) -> dict[str, Any]:
    """An order of two lines over 1,000 skus."""
    items = [
        {"sku": f"bench-{random.randrange(500)}", "quantity": 1, "unit_price": 100},
        {"sku": f"bench-{500 + random.randrange(500)}", "quantity": 2, "unit_price": 250},
    ]
    return {
        "order_id": str(uuid4()),
        "customer_id": f"user-{random.randrange(200)}",
        "key": key,
        "items": items,
        "total": 600,
        "currency": "EUR",
        "payment_method": "mock_ok",
    }


def _create(cursor: Any, orders: list[dict[str, Any]]) -> None:
    execute_values(
        cursor,
        "INSERT INTO idempotency_keys (user_id, key, body) VALUES %s ON CONFLICT DO NOTHING",
        [(order["customer_id"], order["key"], json.dumps(order)) for order in orders],
    )
    execute_values(
        cursor,
        "INSERT INTO orders (order_id, user_id, status, currency, total, payment_method, idempotency_key) VALUES %s",
        [
            (order["order_id"], order["customer_id"], "PENDING", "EUR", order["total"], "mock_ok", order["key"])
            for order in orders
        ],
    )
    execute_values(
        cursor,
        "INSERT INTO order_items (order_id, line, sku, quantity, unit_price) VALUES %s",
        [
            (order["order_id"], line, item["sku"], item["quantity"], item["unit_price"])
            for order in orders
            for line, item in enumerate(order["items"], 1)
        ],
        page_size=2 * BATCH,
    )
    execute_values(
        cursor,
        "INSERT INTO order_events (order_id, type, to_status) VALUES %s",
        [(order["order_id"], "order.created", "PENDING") for order in orders],
    )


# What an order becomes by each event, and how far on that is: queues may overtake each other.
BECOMES = {"inventory.reserved": "RESERVED", "payment.succeeded": "PAID", "inventory.committed": "PAID"}
PROGRESS = ["PENDING", "RESERVED", "PAID"]


def follow(cursor: Any, queue: str, messages: Rows) -> Rows:
    """Apply results to orders."""
    cursor.execute(
        "SELECT order_id, status FROM orders WHERE order_id = ANY(%s::uuid[]) ORDER BY order_id FOR UPDATE",
        ([body["order_id"] for _, body in messages],),
    )
    status = {str(order_id): word for order_id, word in cursor.fetchall()}
    steps, emitted = [], []
    for message_id, body in messages:
        order_id, before = body["order_id"], status[body["order_id"]]
        after = max(before, BECOMES[body["type"]], key=PROGRESS.index)
        status[order_id] = after
        steps.append((order_id, body["type"], before, after, message_id))
        if before != after == "PAID":
            emitted += [event("order.paid", body), event("inventory.commit.requested", body)]
    if steps:
        execute_values(
            cursor,
            "UPDATE orders o SET status = v.status, version = version + 1, updated_at = now()"
            " FROM (VALUES %s) v (order_id, status) WHERE o.order_id = v.order_id::uuid",
            list(status.items()),
        )
        execute_values(
            cursor,
            "INSERT INTO order_events (order_id, type, from_status, to_status, message_id) VALUES %s",
            steps,
        )
    return emitted


# Stock


def move_stock(cursor: Any, queue: str, messages: Rows) -> Rows:
    """Reserve stock for new orders; turn the reservations of paid ones into sales."""
    return (reserve if queue == "inventory.order-created" else commit)(cursor, [body for _, body in messages])


def reserve(cursor: Any, orders: list[dict[str, Any]]) -> Rows:
    """Reserve stock for each order."""
    if not orders:
        return []
    execute_values(
        cursor,
        "INSERT INTO reservations (order_id, state) VALUES %s ON CONFLICT DO NOTHING",
        sorted((order["order_id"], "RESERVED") for order in orders),
    )
    wanted = _quantities(orders)
    _lock_stock(cursor, wanted)
    execute_values(
        cursor,
        "INSERT INTO reservation_items (order_id, sku, quantity) VALUES %s",
        [(order["order_id"], item["sku"], item["quantity"]) for order in orders for item in order["items"]],
        page_size=2 * BATCH,
    )
    execute_values(
        cursor,
        "UPDATE stock_items s SET reserved = reserved + v.quantity, version = version + 1, updated_at = now()"
        " FROM (VALUES %s) v (sku, quantity) WHERE s.sku = v.sku",
        list(wanted.items()),
        page_size=2 * BATCH,
    )
    return [event("inventory.reserved", {**order, "type": "inventory.reserved"}) for order in orders]


def commit(cursor: Any, orders: list[dict[str, Any]]) -> Rows:
    """Turn reservations into sales."""
    if not orders:
        return []
    ids = [order["order_id"] for order in orders]
    cursor.execute(
        "SELECT order_id FROM reservations WHERE order_id = ANY(%s::uuid[]) ORDER BY order_id FOR UPDATE", (ids,)
    )
    sold = _quantities(orders)
    _lock_stock(cursor, sold)
    cursor.execute(
        "UPDATE reservations SET state = 'COMMITTED', updated_at = now() WHERE order_id = ANY(%s::uuid[])", (ids,)
    )
    execute_values(
        cursor,
        "UPDATE stock_items s SET reserved = reserved - v.quantity, on_hand = on_hand - v.quantity,"
        " version = version + 1, updated_at = now() FROM (VALUES %s) v (sku, quantity) WHERE s.sku = v.sku",
        list(sold.items()),
        page_size=2 * BATCH,
    )
    execute_values(
        cursor,
        "INSERT INTO stock_movements (sku, change, cause, order_id) VALUES %s",
        [(item["sku"], -item["quantity"], "sold", order["order_id"]) for order in orders for item in order["items"]],
        page_size=2 * BATCH,
    )
    return [event("inventory.committed", {**order, "type": "inventory.committed"}) for order in orders]


def _quantities(orders: list[dict[str, Any]]) -> dict[str, int]:
    wanted: dict[str, int] = defaultdict(int)
    for order in orders:
        for item in order["items"]:
            wanted[item["sku"]] += item["quantity"]
    return wanted


def _lock_stock(cursor: Any, skus: dict[str, int]) -> None:
    cursor.execute(
        "SELECT sku, on_hand, reserved FROM stock_items WHERE sku = ANY(%s) ORDER BY sku FOR UPDATE", (list(skus),)
    )


# Money


class Provider:
    """The benchmark's provider, over one connection with all charges of a batch at once."""

    def __init__(self) -> None:
        place = urlsplit(os.environ["BENCH_PROVIDER_URL"])
        self.socket = socket.create_connection((place.hostname, place.port))
        self.file = self.socket.makefile("rb")

    def charge(self, orders: list[dict[str, Any]]) -> list[str]:
        """Charge orders; the reference of each."""
        requests = []
        for order in orders:
            body = json.dumps(
                {
                    "order_id": order["order_id"],
                    "amount": order["total"],
                    "currency": order["currency"],
                    "method": order["payment_method"],
                    "customer": order["customer_id"],
                }
            )
            requests.append(
                f"POST /charges HTTP/1.1\r\nHost: provider\r\nIdempotency-Key: {order['order_id']}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            )
        self.socket.sendall("".join(requests).encode())
        return [self._reference() for _ in orders]

    def _reference(self) -> str:
        length = 0
        while (line := self.file.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return str(json.loads(self.file.read(length))["reference"])


class Charges:
    """Charges orders: a payment is on record before the provider is asked, and no transaction waits for the answer."""

    def __init__(self) -> None:
        self.provider = Provider()
        self.recorder = psycopg2.connect(f"{os.environ['BENCH_DATABASES']}/{NAME}_payment")
        self.recorder.autocommit = True
        self.references: dict[str, str] = {}

    def ask(self, orders: list[dict[str, Any]]) -> None:
        """Record the payments of a batch, then ask the provider for all of them."""
        with self.recorder.cursor() as cursor:
            execute_values(
                cursor,
                "INSERT INTO payments (order_id, status, amount, currency, method, user_id) VALUES %s"
                " ON CONFLICT DO NOTHING",
                sorted(
                    (order["order_id"], "PENDING", order["total"], order["currency"], "mock_ok", order["customer_id"])
                    for order in orders
                ),
            )
        references = self.provider.charge(orders)
        self.references = {order["order_id"]: ref for order, ref in zip(orders, references, strict=True)}

    def settle(self, cursor: Any, queue: str, messages: Rows) -> Rows:
        """Write the answers down."""
        orders = [body for _, body in messages]
        if not orders:
            return []
        ids = [order["order_id"] for order in orders]
        cursor.execute(
            "SELECT order_id FROM payments WHERE order_id = ANY(%s::uuid[]) ORDER BY order_id FOR UPDATE", (ids,)
        )
        execute_values(
            cursor,
            "UPDATE payments p SET status = 'SUCCEEDED', reference = v.reference, updated_at = now()"
            " FROM (VALUES %s) v (order_id, reference) WHERE p.order_id = v.order_id::uuid",
            [(order_id, self.references[order_id]) for order_id in ids],
        )
        execute_values(
            cursor,
            "INSERT INTO payment_log (order_id, from_status, to_status) VALUES %s",
            [(order_id, "PENDING", "SUCCEEDED") for order_id in ids],
        )
        return [event("payment.succeeded", {**order, "type": "payment.succeeded"}) for order in orders]


def main(role: str, *rest: str) -> None:
    """Run one process."""
    register_uuid()
    if role == "create":
        create(int(rest[0]))
    elif role == "order":
        Service("order", ("order.inventory-result", "order.payment-result")).run(follow)
    elif role == "inventory":
        Service("inventory", ("inventory.order-created", "inventory.commit-requested")).run(move_stock)
    else:
        charges = Charges()
        Service("payment", ("payment.inventory-reserved",)).run(charges.settle, prepare=charges.ask)


if __name__ == "__main__":
    main(*sys.argv[1:])
