"""Nameko 2.14 with nameko-sqlalchemy as their documentation shows them: one message a transaction.

    python -m benchmarks.peers.plain gateway PORT | order | inventory | payment

An event is put into the outbox in the transaction of its change, published with a confirm after the commit, and then
marked. (Sending again what a crash left unpublished is left out.)
"""

import eventlet

eventlet.monkey_patch()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from typing import Any, ClassVar  # noqa: E402
from uuid import uuid4  # noqa: E402

import requests  # noqa: E402
from kombu import Exchange, Queue  # noqa: E402
from nameko.messaging import Publisher, consume  # noqa: E402
from nameko.rpc import RpcProxy, rpc  # noqa: E402
from nameko.runners import ServiceRunner  # noqa: E402
from nameko.web.handlers import http  # noqa: E402
from nameko_sqlalchemy import Database  # noqa: E402
from sqlalchemy import func, select  # noqa: E402
from sqlalchemy.dialects.postgresql import insert  # noqa: E402
from werkzeug.wrappers import Response  # noqa: E402

from benchmarks.queues import exchange_of, queue_of  # noqa: E402
from benchmarks.tables import (  # noqa: E402
    InventoryBase,
    InventoryInbox,
    InventoryOutbox,
    Key,
    Movement,
    Order,
    OrderBase,
    OrderEvent,
    OrderInbox,
    OrderItem,
    OrderOutbox,
    Payment,
    PaymentBase,
    PaymentInbox,
    PaymentLog,
    PaymentOutbox,
    Reservation,
    ReservationItem,
    Stock,
)

NAME = "nameko"
WORKERS = 20
EXCHANGE = Exchange(exchange_of(NAME), "topic", durable=True, no_declare=True)
POOL = {"pool_size": WORKERS, "max_overflow": 0}
Event = dict[str, Any]


def hears(queue: str) -> Callable[..., Any]:
    """The entrypoint of a queue."""
    return consume(queue=Queue(queue_of(NAME, queue), no_declare=True))


class Publishing:
    """What the three services have in common."""

    db: Any
    publish: Any
    inbox: ClassVar[Any]
    outbox: ClassVar[Any]

    @contextmanager
    def handling(self, consumer: str, event: Event) -> Iterator[tuple[Any, list[Event]] | None]:
        """A transaction with its list of events to emit; None if the message's effect is there already."""
        emitted: list[Event] = []
        with self.db.get_session() as session:
            claimed = session.scalar(
                insert(self.inbox)
                .values(consumer=consumer, message_id=event["message_id"])
                .on_conflict_do_nothing()
                .returning(self.inbox.message_id)
            )
            yield (session, emitted) if claimed else None
            self.keep(session, emitted)
        self.send(emitted)

    def keep(self, session: Any, events: list[Event]) -> None:
        """Put events into the outbox."""
        session.add_all(
            self.outbox(
                message_id=event["message_id"],
                aggregate_id=event["order_id"],
                event_type=event["type"],
                body=json.dumps(event),
            )
            for event in events
        )

    def send(self, events: list[Event]) -> None:
        """Publish committed events and mark them."""
        if not events:
            return
        for event in events:
            self.publish(event, routing_key=event["type"], mandatory=event["type"] != "order.paid")
        with self.db.get_session() as session:
            ids = [event["message_id"] for event in events]
            session.query(self.outbox).filter(self.outbox.message_id.in_(ids)).update(
                {"published_at": func.now()}, synchronize_session=False
            )


def then(event: Event, type_: str) -> Event:
    """The next event of the same order."""
    return {**event, "type": type_, "message_id": str(uuid4())}


class GatewayService:
    """The HTTP API."""

    name = "gateway"
    orders = RpcProxy("order_service")

    @http("POST", "/api/orders")
    def create(self, request: Any) -> Any:
        """Make an order."""
        order = json.loads(request.get_data(as_text=True))
        answer = self.orders.create_order(order, request.headers["Idempotency-Key"], request.headers["X-User-Id"])
        return Response(json.dumps(answer), 201, mimetype="application/json")


BECOMES = {"inventory.reserved": "RESERVED", "payment.succeeded": "PAID", "inventory.committed": "PAID"}
PROGRESS = ["PENDING", "RESERVED", "PAID"]


class OrderService(Publishing):
    """Owns orders."""

    name = "order_service"
    inbox, outbox = OrderInbox, OrderOutbox
    db = Database(OrderBase, engine_options=POOL)
    publish = Publisher(exchange=EXCHANGE)

    @rpc
    def create_order(self, order: dict[str, Any], key: str, user_id: str) -> dict[str, Any]:
        """Make an order; the same answer for the same key."""
        order_id = str(uuid4())
        total = sum(item["quantity"] * item["unit_price"] for item in order["items"])
        answer = {"order_id": order_id, "status": "PENDING", "total": total, **order}
        event = {
            "message_id": str(uuid4()),
            "type": "order.created",
            "order_id": order_id,
            "customer_id": user_id,
            "total": total,
            **order,
        }
        with self.db.get_session() as session:
            claimed = session.scalar(
                insert(Key)
                .values(user_id=user_id, key=key, body=json.dumps(answer))
                .on_conflict_do_nothing()
                .returning(Key.key)
            )
            if claimed is None:
                stored: dict[str, Any] = json.loads(session.get_one(Key, (user_id, key)).body)
                return stored
            session.add(
                Order(
                    order_id=order_id,
                    user_id=user_id,
                    status="PENDING",
                    currency=order["currency"],
                    total=total,
                    payment_method=order["payment_method"],
                    idempotency_key=key,
                )
            )
            session.flush()
            session.add_all(OrderItem(order_id=order_id, line=n, **item) for n, item in enumerate(order["items"], 1))
            session.add(OrderEvent(order_id=order_id, type="order.created", to_status="PENDING", details={}))
            self.keep(session, [event])
        self.send([event])
        return answer

    @hears("order.inventory-result")
    def follow_inventory(self, event: Event) -> None:
        """Apply a result of inventory_service."""
        self._follow(event, "order.inventory-result")

    @hears("order.payment-result")
    def follow_payment(self, event: Event) -> None:
        """Apply a result of payment_service."""
        self._follow(event, "order.payment-result")

    def _follow(self, event: Event, consumer: str) -> None:
        with self.handling(consumer, event) as new:
            if new is None:
                return
            session, emitted = new
            order = session.get_one(Order, event["order_id"], with_for_update=True)
            before, order.status = order.status, max(order.status, BECOMES[event["type"]], key=PROGRESS.index)
            order.version += 1
            order.updated_at = func.now()
            session.add(
                OrderEvent(
                    order_id=event["order_id"],
                    type=event["type"],
                    from_status=before,
                    to_status=order.status,
                    message_id=event["message_id"],
                    details={},
                )
            )
            if before != order.status == "PAID":
                emitted += [then(event, "order.paid"), then(event, "inventory.commit.requested")]


class InventoryService(Publishing):
    """Owns stock."""

    name = "inventory_service"
    inbox, outbox = InventoryInbox, InventoryOutbox
    db = Database(InventoryBase, engine_options=POOL)
    publish = Publisher(exchange=EXCHANGE)

    @hears("inventory.order-created")
    def reserve(self, event: Event) -> None:
        """Reserve stock for an order."""
        with self.handling("inventory.order-created", event) as new:
            if new is None:
                return
            session, emitted = new
            session.add(Reservation(order_id=event["order_id"], state="RESERVED"))
            session.flush()
            stock = self._lock_stock(session, event)
            for item in event["items"]:
                stock[item["sku"]].reserved += item["quantity"]
                stock[item["sku"]].version += 1
                session.add(ReservationItem(order_id=event["order_id"], sku=item["sku"], quantity=item["quantity"]))
            emitted.append(then(event, "inventory.reserved"))

    @hears("inventory.commit-requested")
    def commit(self, event: Event) -> None:
        """Turn the reservation of a paid order into a sale."""
        with self.handling("inventory.commit-requested", event) as new:
            if new is None:
                return
            session, emitted = new
            reservation = session.get_one(Reservation, event["order_id"], with_for_update=True)
            reservation.state = "COMMITTED"
            reservation.updated_at = func.now()
            stock = self._lock_stock(session, event)
            for item in event["items"]:
                stock[item["sku"]].reserved -= item["quantity"]
                stock[item["sku"]].on_hand -= item["quantity"]
                stock[item["sku"]].version += 1
                session.add(
                    Movement(sku=item["sku"], change=-item["quantity"], cause="sold", order_id=event["order_id"])
                )
            emitted.append(then(event, "inventory.committed"))

    def _lock_stock(self, session: Any, event: Event) -> dict[str, Stock]:
        skus = [item["sku"] for item in event["items"]]
        rows = session.scalars(select(Stock).where(Stock.sku.in_(skus)).order_by(Stock.sku).with_for_update())
        return {row.sku: row for row in rows}


class PaymentService(Publishing):
    """Charges orders. A payment is on record before the provider is asked."""

    name = "payment_service"
    inbox, outbox = PaymentInbox, PaymentOutbox
    db = Database(PaymentBase, engine_options=POOL)
    publish = Publisher(exchange=EXCHANGE)
    provider = requests.Session()

    @hears("payment.inventory-reserved")
    def pay(self, event: Event) -> None:
        """Charge an order."""
        with self.db.get_session() as session:
            session.execute(
                insert(Payment)
                .values(
                    order_id=event["order_id"],
                    status="PENDING",
                    amount=event["total"],
                    currency=event["currency"],
                    method=event["payment_method"],
                    user_id=event["customer_id"],
                )
                .on_conflict_do_nothing()
            )
        reference = self._charge(event)
        with self.handling("payment.inventory-reserved", event) as new:
            if new is None:
                return
            session, emitted = new
            payment = session.get_one(Payment, event["order_id"], with_for_update=True)
            payment.status, payment.reference = "SUCCEEDED", reference
            payment.updated_at = func.now()
            session.add(PaymentLog(order_id=event["order_id"], from_status="PENDING", to_status="SUCCEEDED"))
            emitted.append(then(event, "payment.succeeded"))

    def _charge(self, event: Event) -> str:
        answer = self.provider.post(
            f"{os.environ['BENCH_PROVIDER_URL']}/charges",
            json={
                "order_id": event["order_id"],
                "amount": event["total"],
                "currency": event["currency"],
                "method": event["payment_method"],
                "customer": event["customer_id"],
            },
            headers={"Idempotency-Key": event["order_id"]},
            timeout=5,
        )
        answer.raise_for_status()
        return str(answer.json()["reference"])


SERVICES = {
    "gateway": GatewayService,
    "order": OrderService,
    "inventory": InventoryService,
    "payment": PaymentService,
}


def main(role: str, port: str = "0") -> None:
    """Run one service."""
    databases = os.environ["BENCH_DATABASES"].replace("postgresql:", "postgresql+psycopg2:")
    runner = ServiceRunner(
        {
            "AMQP_URI": os.environ["BENCH_AMQP_URI"],
            "WEB_SERVER_ADDRESS": f"127.0.0.1:{port}",
            "max_workers": WORKERS,
            "DB_URIS": {
                f"{name}_service:{name.capitalize()}Base": f"{databases}/{NAME}_{name}"
                for name in ("order", "inventory", "payment")
            },
        }
    )
    runner.add_service(SERVICES[role])
    runner.start()
    runner.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
