"""The tables every messaging service has, beside its own: inbox, outbox and the record of dead messages."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import ClassVar

from sqlalchemy import (
    BigInteger,
    DateTime,
    Identity,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.rights import Rights

NOW = text("now()")


class Base(DeclarativeBase):
    """One registry for all services' tables; each database holds its own service's and the messaging ones."""

    type_annotation_map: ClassVar = {str: Text, datetime: DateTime(timezone=True), uuid.UUID: Uuid}
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ConsumedMessage(Base):
    """The inbox: a row records that the effect of a message on a consumer is in this database."""

    __tablename__ = "consumed_messages"

    consumer: Mapped[str] = mapped_column(primary_key=True)
    message_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    consumed_at: Mapped[datetime] = mapped_column(server_default=NOW)

    # Rows come in time order, so a block-range index is enough for the purge and costs almost nothing.
    __table_args__ = (
        Index(None, "consumed_at", postgresql_using="brin"),
        {"postgresql_partition_by": "RANGE (message_id)"},
    )


class OutboxRow(Base):
    """An event, saved in the same transaction as the change it reports, until the relay has published it."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(BigInteger, Identity())
    message_id: Mapped[uuid.UUID]
    aggregate_id: Mapped[uuid.UUID]
    event_type: Mapped[str]
    traceparent: Mapped[str]
    body: Mapped[str]  # the envelope as it goes out, so that the relay only copies
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    published_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    last_error: Mapped[str | None]
    held_until: Mapped[datetime | None]

    __mapper_args__ = {"primary_key": [id]}  # noqa: RUF012 - no constraint: nobody looks for an event that is published
    __table_args__ = (
        Index("ix_outbox_unpublished", "id", postgresql_where=text("published_at IS NULL")),
        Index("ix_outbox_held", "aggregate_id", "id", postgresql_where=text("held_until IS NOT NULL")),
        {"postgresql_partition_by": "RANGE (published_at)"},
    )


class DeadMessageRow(Base):
    """A message that this service sent to a DLQ, and why; written before it is sent."""

    __tablename__ = "dead_messages"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    message_id: Mapped[uuid.UUID]
    queue: Mapped[str]
    service: Mapped[str]
    event_type: Mapped[str | None]
    order_id: Mapped[uuid.UUID | None]
    trace_id: Mapped[str | None]
    reason: Mapped[str]
    error_class: Mapped[str]
    error_message: Mapped[str]
    attempts: Mapped[int] = mapped_column(Integer)
    replays: Mapped[int] = mapped_column(Integer, server_default="0")
    copies: Mapped[int] = mapped_column(Integer, server_default="1")  # how many messages of this id lie in the DLQ
    first_failed_at: Mapped[datetime]
    died_at: Mapped[datetime] = mapped_column(server_default=NOW)
    left_at: Mapped[datetime | None]
    left_how: Mapped[str | None]

    __table_args__ = (
        UniqueConstraint("queue", "message_id"),
        Index(None, "order_id"),
        Index("ix_dead_messages_there", "queue", "died_at", postgresql_where=text("left_at IS NULL")),
    )


# What a death of a message says. A message that dies again has another story.
_STORY = (
    "service",
    "event_type",
    "order_id",
    "trace_id",
    "reason",
    "error_class",
    "error_message",
    "attempts",
    "replays",
    "copies",
    "first_failed_at",
    "died_at",
)
_LEFT = ("left_at", "left_how")

MESSAGING_RIGHTS = {
    "consumed_messages": Rights(
        deleted_because="a message whose effect failed is forgotten in the transaction that claimed it",
        purged_by="purge_consumed_messages(bigint)",
        read=("consumer", "message_id"),
    ),
    # The body of an event is nobody's but the relay's.
    "outbox": Rights(
        changed=("published_at", "attempts", "last_error", "held_until"),
        deleted_because="replicas of the version before delete an event 7 days after it was published",
        purged_by="purge_outbox(bigint)",
        read=(
            "id",
            "message_id",
            "aggregate_id",
            "event_type",
            "created_at",
            "published_at",
            "attempts",
            "last_error",
            "held_until",
        ),
    ),
    "dead_messages": Rights(
        changed=(*_STORY, *_LEFT),
        read=("id", "message_id", "queue", *_STORY, *_LEFT),
        operator_adds=("message_id", "queue", *_STORY),
        operator_changes=(*_STORY, *_LEFT),
    ),
}
MESSAGING_TABLES = frozenset(MESSAGING_RIGHTS)
