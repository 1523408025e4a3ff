"""The tables of the floor and of the peers: those of this project, as far as the way of a paid order needs them.

Left out are indexes for lists, the feed, the release audit and the record of dead messages. So nobody here does more
work than this project. `order_events` has the same columns as ours, so one query measures all of them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Identity, Index, MetaData, Text, Uuid, text
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

NOW = text("now()")
TYPES: dict[Any, Any] = {str: Text, datetime: DateTime(timezone=True), UUID: Uuid}


class OrderBase(DeclarativeBase):
    """The order service's database."""

    type_annotation_map: ClassVar = TYPES
    metadata = MetaData()


class InventoryBase(DeclarativeBase):
    """The inventory service's database."""

    type_annotation_map: ClassVar = TYPES
    metadata = MetaData()


class PaymentBase(DeclarativeBase):
    """The payment service's database."""

    type_annotation_map: ClassVar = TYPES
    metadata = MetaData()


class Inbox:
    """A message whose effect is in this database."""

    __tablename__ = "consumed_messages"
    consumer: Mapped[str] = mapped_column(primary_key=True)
    message_id: Mapped[UUID] = mapped_column(primary_key=True)
    consumed_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Outbox:
    """An event, until the relay has published it."""

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    message_id: Mapped[UUID] = mapped_column(unique=True)
    aggregate_id: Mapped[UUID]
    event_type: Mapped[str]
    body: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    published_at: Mapped[datetime | None]

    @declared_attr.directive
    def __table_args__(cls) -> Any:
        return (Index("ix_outbox_unpublished", "id", postgresql_where=text("published_at IS NULL")),)


class OrderInbox(Inbox, OrderBase): ...


class OrderOutbox(Outbox, OrderBase): ...


class InventoryInbox(Inbox, InventoryBase): ...


class InventoryOutbox(Outbox, InventoryBase): ...


class PaymentInbox(Inbox, PaymentBase): ...


class PaymentOutbox(Outbox, PaymentBase): ...


class Key(OrderBase):
    """The stored answer of a POST."""

    __tablename__ = "idempotency_keys"
    user_id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Order(OrderBase):
    """An order as it is now."""

    __tablename__ = "orders"
    __table_args__ = (Unique("user_id", "idempotency_key"),)
    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    status: Mapped[str]
    currency: Mapped[str]
    total: Mapped[int] = mapped_column(BigInteger)
    payment_method: Mapped[str]
    idempotency_key: Mapped[str]
    version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)


class OrderItem(OrderBase):
    """One line of an order."""

    __tablename__ = "order_items"
    order_id: Mapped[UUID] = mapped_column(ForeignKey(Order.order_id), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str]
    quantity: Mapped[int]
    unit_price: Mapped[int] = mapped_column(BigInteger)


class OrderEvent(OrderBase):
    """Every step of an order."""

    __tablename__ = "order_events"
    __table_args__ = (Index(None, "order_id", "id"),)
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    order_id: Mapped[UUID] = mapped_column(ForeignKey(Order.order_id))
    type: Mapped[str]
    from_status: Mapped[str | None]
    to_status: Mapped[str]
    message_id: Mapped[UUID | None]
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))


class Stock(InventoryBase):
    """The stock of one sku."""

    __tablename__ = "stock_items"
    __table_args__ = (CheckConstraint("0 <= reserved AND reserved <= on_hand"),)
    sku: Mapped[str] = mapped_column(primary_key=True)
    on_hand: Mapped[int] = mapped_column(BigInteger)
    reserved: Mapped[int] = mapped_column(BigInteger, server_default="0")
    version: Mapped[int] = mapped_column(BigInteger, server_default="1")
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Movement(InventoryBase):
    """One change of on_hand with its cause."""

    __tablename__ = "stock_movements"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    sku: Mapped[str] = mapped_column(ForeignKey(Stock.sku))
    change: Mapped[int] = mapped_column(BigInteger)
    cause: Mapped[str]
    order_id: Mapped[UUID | None]
    moved_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Reservation(InventoryBase):
    """The reservation of one order."""

    __tablename__ = "reservations"
    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    state: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)


class ReservationItem(InventoryBase):
    """The quantity of one sku in a reservation."""

    __tablename__ = "reservation_items"
    order_id: Mapped[UUID] = mapped_column(ForeignKey(Reservation.order_id), primary_key=True)
    sku: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int] = mapped_column(BigInteger)


class Payment(PaymentBase):
    """The payment of one order; its order_id is the provider's idempotency key."""

    __tablename__ = "payments"
    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str]
    amount: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]
    method: Mapped[str]
    reference: Mapped[str] = mapped_column(server_default="")
    user_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)


class PaymentLog(PaymentBase):
    """One step of a payment."""

    __tablename__ = "payment_log"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    order_id: Mapped[UUID]
    from_status: Mapped[str | None]
    to_status: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))


BASES = {"order": OrderBase, "inventory": InventoryBase, "payment": PaymentBase}
