"""FastStream, SQLAlchemy's asyncio with asyncpg, FastAPI and uvicorn, as a good engineer writes it.

    python -m benchmarks.peers.fast api PORT | order | inventory | payment

The API writes orders into the order database itself, so a POST needs no call to another process. Consumers handle 50
messages at a time, each in a transaction of its own. There is a relay in each process that writes events; a commit
wakes it, and it publishes up to 200 events at once.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import uvicorn
import uvloop
from fastapi import FastAPI, Header, Response
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitQueue
from pydantic import BaseModel, Field
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.queues import exchange_of, queue_of
from benchmarks.tables import (
    InventoryInbox,
    InventoryOutbox,
    Key,
    Movement,
    Order,
    OrderEvent,
    OrderInbox,
    OrderItem,
    OrderOutbox,
    Payment,
    PaymentInbox,
    PaymentLog,
    PaymentOutbox,
    Reservation,
    ReservationItem,
    Stock,
)

NAME = "faststream"
PREFETCH = 50
POOL = 20
RELAYED_AT_ONCE = 200
# After a commit the relay waits this long for others, so that it publishes and marks several events at once.
GATHER_S = 0.02
POLL_S = 1.0

EXCHANGE = RabbitExchange(exchange_of(NAME), declare=False)


class Line(BaseModel):
    """One line of an order."""

    sku: str = Field(min_length=1, max_length=64)
    quantity: int = Field(gt=0)
    unit_price: int = Field(ge=0)


class NewOrder(BaseModel):
    """What a customer posts."""

    currency: str = Field(pattern="^[A-Z]{3}$")
    payment_method: str = "mock_ok"
    items: list[Line] = Field(min_length=1, max_length=100)


class Event(BaseModel):
    """An event: the order that it is about, whole."""

    message_id: UUID
    type: str
    order_id: UUID
    customer_id: str
    currency: str
    total: int
    payment_method: str
    items: list[Line]

    def then(self, type_: str) -> Event:
        """The next event of the same order."""
        return self.model_copy(update={"type": type_, "message_id": uuid4()})


class Worker:
    """One process: its database, its broker and its relay."""

    def __init__(self, service: str, inbox: Any, outbox: Any) -> None:
        url = f"{os.environ['BENCH_DATABASES']}/{NAME}_{service}".replace("postgresql:", "postgresql+asyncpg:")
        self.engine = create_async_engine(url, pool_size=POOL, max_overflow=0)
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self.broker = RabbitBroker(os.environ["BENCH_AMQP_URI"], logger=None)
        self.inbox, self.outbox = inbox, outbox
        self.committed = asyncio.Event()

    def hears(self, queue: str) -> Any:
        """Decorates the handler of a queue."""
        return self.broker.subscriber(
            RabbitQueue(queue_of(NAME, queue), declare=False),
            EXCHANGE,
            channel=Channel(prefetch_count=PREFETCH),
            ack_policy=AckPolicy.NACK_ON_ERROR,
        )

    async def is_new(self, session: AsyncSession, consumer: str, event: Event) -> bool:
        """Note a message in the inbox; False if its effect is there already."""
        statement = (
            insert(self.inbox)
            .values(consumer=consumer, message_id=event.message_id)
            .on_conflict_do_nothing()
            .returning(self.inbox.message_id)
        )
        return await session.scalar(statement) is not None

    def emit(self, session: AsyncSession, *events: Event) -> None:
        """Put events into the outbox."""
        session.add_all(
            self.outbox(
                message_id=event.message_id,
                aggregate_id=event.order_id,
                event_type=event.type,
                body=event.model_dump_json(),
            )
            for event in events
        )

    async def relay(self) -> None:
        """Publish events for ever."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.committed.wait(), POLL_S)
                await asyncio.sleep(GATHER_S)
            self.committed.clear()
            while await self._relay_once() == RELAYED_AT_ONCE:
                pass

    async def _relay_once(self) -> int:
        async with self.sessions.begin() as session:
            waiting = (
                select(self.outbox.id, self.outbox.message_id, self.outbox.event_type, self.outbox.body)
                .where(self.outbox.published_at.is_(None))
                .order_by(self.outbox.id)
                .limit(RELAYED_AT_ONCE)
                .with_for_update(skip_locked=True)
            )
            rows = (await session.execute(waiting)).all()
            if rows:
                await asyncio.gather(*(self._publish(row) for row in rows))
                ids = [row.id for row in rows]
                await session.execute(
                    update(self.outbox).where(self.outbox.id.in_(ids)).values(published_at=func.now())
                )
            return len(rows)

    async def _publish(self, row: Any) -> None:
        await self.broker.publish(
            row.body.encode(),
            exchange=EXCHANGE,
            routing_key=row.event_type,
            message_id=str(row.message_id),
            content_type="application/json",
            mandatory=row.event_type != "order.paid",
            persist=True,
        )

    async def run(self) -> None:
        """Consume and relay until stopped."""
        app = FastStream(self.broker, logger=None)
        app.after_startup(self._start_relay)
        await app.run()

    async def _start_relay(self) -> None:
        self._relaying = asyncio.create_task(self.relay())


# Orders


def api() -> FastAPI:
    """The HTTP API, which makes orders."""
    worker = Worker("order", OrderInbox, OrderOutbox)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await worker.broker.connect()
        relaying = asyncio.create_task(worker.relay())
        yield
        relaying.cancel()
        await worker.broker.stop()

    app = FastAPI(lifespan=lifespan)

    @app.post("/api/orders", status_code=201)
    async def create(
        order: NewOrder, response: Response, idempotency_key: str = Header(), x_user_id: str = Header()
    ) -> Any:
        order_id, total = uuid4(), sum(item.quantity * item.unit_price for item in order.items)
        body = {"order_id": str(order_id), "status": "PENDING", "total": total, "currency": order.currency}
        answer = {**body, "items": [item.model_dump() for item in order.items]}
        event = Event(
            message_id=uuid4(),
            type="order.created",
            order_id=order_id,
            customer_id=x_user_id,
            total=total,
            **order.model_dump(),
        )
        async with worker.sessions.begin() as session:
            claimed = await session.scalar(
                insert(Key)
                .values(user_id=x_user_id, key=idempotency_key, body=event.model_dump_json())
                .on_conflict_do_nothing()
                .returning(Key.key)
            )
            if claimed is None:
                stored = await session.get_one(Key, (x_user_id, idempotency_key))
                return Response(stored.body, 200, media_type="application/json")
            session.add(
                Order(
                    order_id=order_id,
                    user_id=x_user_id,
                    status="PENDING",
                    currency=order.currency,
                    total=total,
                    payment_method=order.payment_method,
                    idempotency_key=idempotency_key,
                )
            )
            await session.flush()
            session.add_all(
                OrderItem(order_id=order_id, line=line, **item.model_dump()) for line, item in enumerate(order.items, 1)
            )
            session.add(OrderEvent(order_id=order_id, type="order.created", to_status="PENDING", details={}))
            worker.emit(session, event)
        worker.committed.set()
        response.headers["Location"] = f"/api/orders/{order_id}"
        return answer

    return app


BECOMES = {"inventory.reserved": "RESERVED", "payment.succeeded": "PAID", "inventory.committed": "PAID"}
PROGRESS = ["PENDING", "RESERVED", "PAID"]


def order_worker() -> Worker:
    """Applies the results of inventory and payment to orders."""
    worker = Worker("order", OrderInbox, OrderOutbox)

    async def follow(event: Event, consumer: str) -> None:
        async with worker.sessions.begin() as session:
            if not await worker.is_new(session, consumer, event):
                return
            order = await session.get_one(Order, event.order_id, with_for_update=True)
            before, order.status = order.status, max(order.status, BECOMES[event.type], key=PROGRESS.index)
            order.version += 1
            order.updated_at = func.now()
            session.add(
                OrderEvent(
                    order_id=event.order_id,
                    type=event.type,
                    from_status=before,
                    to_status=order.status,
                    message_id=event.message_id,
                    details={},
                )
            )
            if before != order.status == "PAID":
                worker.emit(session, event.then("order.paid"), event.then("inventory.commit.requested"))
        worker.committed.set()

    @worker.hears("order.inventory-result")
    async def follow_inventory(event: Event) -> None:
        await follow(event, "order.inventory-result")

    @worker.hears("order.payment-result")
    async def follow_payment(event: Event) -> None:
        await follow(event, "order.payment-result")

    return worker


# Stock


def inventory_worker() -> Worker:
    """Reserves stock for orders and turns reservations into sales."""
    worker = Worker("inventory", InventoryInbox, InventoryOutbox)

    async def lock_stock(session: AsyncSession, event: Event) -> dict[str, Stock]:
        skus = [item.sku for item in event.items]
        rows = await session.scalars(select(Stock).where(Stock.sku.in_(skus)).order_by(Stock.sku).with_for_update())
        return {row.sku: row for row in rows}

    @worker.hears("inventory.order-created")
    async def reserve(event: Event) -> None:
        async with worker.sessions.begin() as session:
            if not await worker.is_new(session, "inventory.order-created", event):
                return
            session.add(Reservation(order_id=event.order_id, state="RESERVED"))
            await session.flush()
            stock = await lock_stock(session, event)
            for item in event.items:
                stock[item.sku].reserved += item.quantity
                stock[item.sku].version += 1
                session.add(ReservationItem(order_id=event.order_id, sku=item.sku, quantity=item.quantity))
            worker.emit(session, event.then("inventory.reserved"))
        worker.committed.set()

    @worker.hears("inventory.commit-requested")
    async def commit(event: Event) -> None:
        async with worker.sessions.begin() as session:
            if not await worker.is_new(session, "inventory.commit-requested", event):
                return
            reservation = await session.get_one(Reservation, event.order_id, with_for_update=True)
            reservation.state = "COMMITTED"
            reservation.updated_at = func.now()
            stock = await lock_stock(session, event)
            for item in event.items:
                stock[item.sku].reserved -= item.quantity
                stock[item.sku].on_hand -= item.quantity
                stock[item.sku].version += 1
                session.add(Movement(sku=item.sku, change=-item.quantity, cause="sold", order_id=event.order_id))
            worker.emit(session, event.then("inventory.committed"))
        worker.committed.set()

    return worker


# Money


def payment_worker() -> Worker:
    """Charges orders. A payment is on record before the provider is asked."""
    worker = Worker("payment", PaymentInbox, PaymentOutbox)
    clients: list[aiohttp.ClientSession] = []

    async def charge(event: Event) -> str:
        if not clients:
            clients.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=POOL)))
        asked = {
            "order_id": str(event.order_id),
            "amount": event.total,
            "currency": event.currency,
            "method": event.payment_method,
            "customer": event.customer_id,
        }
        url, headers = f"{os.environ['BENCH_PROVIDER_URL']}/charges", {"Idempotency-Key": str(event.order_id)}
        async with clients[0].post(url, json=asked, headers=headers) as answer:
            answer.raise_for_status()
            return str((await answer.json())["reference"])

    @worker.hears("payment.inventory-reserved")
    async def pay(event: Event) -> None:
        async with worker.sessions.begin() as session:
            await session.execute(
                insert(Payment)
                .values(
                    order_id=event.order_id,
                    status="PENDING",
                    amount=event.total,
                    currency=event.currency,
                    method=event.payment_method,
                    user_id=event.customer_id,
                )
                .on_conflict_do_nothing()
            )
        reference = await charge(event)
        async with worker.sessions.begin() as session:
            if not await worker.is_new(session, "payment.inventory-reserved", event):
                return
            payment = await session.get_one(Payment, event.order_id, with_for_update=True)
            payment.status, payment.reference = "SUCCEEDED", reference
            payment.updated_at = func.now()
            session.add(PaymentLog(order_id=event.order_id, from_status="PENDING", to_status="SUCCEEDED"))
            worker.emit(session, event.then("payment.succeeded"))
        worker.committed.set()

    return worker


WORKERS = {"order": order_worker, "inventory": inventory_worker, "payment": payment_worker}


def main(role: str, rest: Sequence[str]) -> None:
    """Run one process."""
    if role == "api":
        uvicorn.run(api(), port=int(rest[0]), loop="uvloop", http="httptools", log_level="warning", access_log=False)
    else:
        uvloop.run(WORKERS[role]().run())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
