"""The operations ledger: each operation on dead messages with actor, time and reason.

Nothing is ever deleted from it: the role of the service may not.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    ForeignKey,
    Index,
    Uuid,
    any_,
    bindparam,
    case,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Mapped, mapped_column

from ops.domain import DeadLetter, Fate, Filter, Kind, Status, Tally
from ops.locks import holder_of
from shared.bulk import columns_of, unnest
from shared.errors import NotFound
from shared.ids import uuid7
from shared.paging import decode_cursor, encode_cursor, id_position, page_of
from shared.rights import Rights
from shared.tables import NOW, Base
from shared.times import timestamp


class Operation(Base):
    """One thing an operator did to a DLQ. Written as started before anything is changed."""

    __tablename__ = "operations"

    operation_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    queue: Mapped[str]
    actor: Mapped[str]
    why: Mapped[str]
    filter: Mapped[dict[str, Any]] = mapped_column(JSONB)
    options: Mapped[dict[str, Any]] = mapped_column(JSONB)
    status: Mapped[str]
    outcome: Mapped[str] = mapped_column(server_default="")  # a sentence
    counts: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    file: Mapped[str] = mapped_column(server_default="")
    sha256: Mapped[str] = mapped_column(server_default="")
    started_at: Mapped[datetime] = mapped_column(server_default=NOW)
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index(None, "queue", "operation_id"),
        Index(None, "actor", "operation_id"),
        Index("ix_operations_open", "queue", postgresql_where=text("status = 'started'")),
        Index("ix_operations_sha256", "sha256", postgresql_where=text("sha256 <> ''")),
    )


class OperationMessage(Base):
    """The result of an operation for one message."""

    __tablename__ = "operation_messages"

    operation_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(Operation.operation_id), primary_key=True)
    message_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    order_id: Mapped[uuid.UUID | None]
    trace_id: Mapped[str]
    event_type: Mapped[str]
    fate: Mapped[str]
    reason: Mapped[str] = mapped_column(server_default="")
    at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (Index(None, "order_id"), Index(None, "message_id"))


class AuditHead(Base):
    """A head of the release audit's chain, as ops saw it: cutting the chain's tail does not remove it here."""

    __tablename__ = "audit_heads"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    mac: Mapped[str]
    total: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime] = mapped_column(server_default=NOW)


class AuditVerification(Base):
    """A verification of the chain from its first seal to its head."""

    __tablename__ = "audit_verifications"

    verification_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    actor: Mapped[str]
    intact: Mapped[bool]
    seals: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int] = mapped_column(BigInteger)
    outcome: Mapped[str]  # a sentence
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime] = mapped_column(server_default=NOW)


RIGHTS = {
    # An operation says how far it is and how it ended.
    "operations": Rights(changed=("status", "outcome", "counts", "sha256", "finished_at")),
    "operation_messages": Rights(changed=("fate", "reason", "at")),
    "dlq_holders": Rights(changed=("pid", "actor", "command", "gives_way", "operation_id", "since")),
    "audit_heads": Rights(),
    "audit_verifications": Rights(),
}
TABLES = frozenset(RIGHTS)

FATES_AT_ONCE = 1000

# With these a message was put where its consumer finds it again.
BROUGHT_BACK = (
    Fate.STARTED,
    Fate.SENT,
    Fate.APPLIED,
    Fate.ALREADY_APPLIED,
    Fate.WITHOUT_EFFECT,
    Fate.DEAD_AGAIN,
    Fate.IMPORTED,
)

# An operation that no session works on any more, and whose process has not said how it ended. A process that lives
# says so as soon as it reaches the ledger again, and replaces these words.
SERVER_RESTARTED = "the database server was restarted while it ran"
DIED = "its process died, or was cut off from the ledger"
_ABANDONED = case((func.pg_postmaster_start_time() > Operation.started_at, SERVER_RESTARTED), else_=DIED)


def mark_abandoned(connection: Connection, queue: str) -> None:
    """Mark what is still STARTED as INTERRUPTED. The caller has just locked this DLQ, so no session works on it."""
    connection.execute(
        update(Operation)
        .where(Operation.queue == queue, Operation.status == Status.STARTED)
        .values(status=Status.INTERRUPTED, outcome=_ABANDONED, finished_at=func.now())
    )


@dataclass(frozen=True)
class NewOperation:
    """An operation that begins: what it does to which DLQ, who does it and why."""

    kind: Kind
    queue: str
    actor: str
    why: str
    chosen: Filter
    options: Mapping[str, Any]
    file: str = ""


def start(connection: Connection, new: NewOperation) -> uuid.UUID:
    """Save an operation as started; its id."""
    operation_id = uuid7()
    connection.execute(
        insert(Operation).values(
            operation_id=operation_id,
            kind=new.kind,
            queue=new.queue,
            actor=new.actor,
            why=new.why,
            filter=new.chosen.as_dict(),
            options=dict(new.options),
            status=Status.STARTED,
            file=new.file,
        )
    )
    return operation_id


def progress(connection: Connection, operation_id: uuid.UUID, tally: Tally, sha256: str = "") -> None:
    """Record how far it is."""
    connection.execute(
        update(Operation).filter_by(operation_id=operation_id).values(counts=tally.as_dict(), sha256=sha256)
    )


def finish(
    connection: Connection, operation_id: uuid.UUID, status: Status, outcome: str, tally: Tally, sha256: str = ""
) -> None:
    """Record how it ended."""
    connection.execute(
        update(Operation)
        .filter_by(operation_id=operation_id)
        .values(status=status, outcome=outcome, counts=tally.as_dict(), sha256=sha256, finished_at=func.now())
    )


_MESSAGE = ("message_id", "order_id", "trace_id", "event_type", "reason")
_given = unnest(OperationMessage, *_MESSAGE)
_WRITE = upsert(OperationMessage).from_select(
    ["operation_id", "fate", *_MESSAGE],
    select(
        bindparam("operation_id", type_=OperationMessage.operation_id.type),
        bindparam("fate", type_=OperationMessage.fate.type),
        *(_given.c[name] for name in _MESSAGE),
    ),
)
_WRITE = _WRITE.on_conflict_do_update(
    index_elements=["operation_id", "message_id"],
    set_={"fate": _WRITE.excluded.fate, "reason": _WRITE.excluded.reason, "at": func.now()},
)


def write_fates(
    connection: Connection, operation_id: uuid.UUID, fate: Fate, dead_letters: Sequence[DeadLetter], reason: str = ""
) -> None:
    """Record what became of these messages in an operation. One statement."""
    rows = {
        dead_letter.message_id: {
            "message_id": dead_letter.message_id,
            "order_id": dead_letter.order_id,
            "trace_id": dead_letter.trace_id,
            "event_type": dead_letter.event_type,
            "reason": reason,
        }
        for dead_letter in dead_letters
    }
    if rows:
        parameters = {"operation_id": operation_id, "fate": fate, **columns_of(rows.values(), _MESSAGE)}
        connection.execute(_WRITE, parameters)


def operation(connection: Connection, operation_id: uuid.UUID) -> dict[str, Any]:
    """One operation. Raises NotFound."""
    row = connection.execute(select(*Operation.__table__.c).filter_by(operation_id=operation_id)).mappings().first()
    if row is None:
        raise NotFound(f"There is no operation {operation_id}.")
    return _as_dict(dict(row))


def operation_now(connection: Connection, operation_id: uuid.UUID) -> dict[str, Any]:
    """The same, with INTERRUPTED for an operation that did not finish and that no session works on. Raises NotFound.

    Each statement must see committed rows: an operation unlocks its DLQ after it has saved its result.
    """
    found = operation(connection, operation_id)
    if found["status"] == Status.STARTED and holder_of(connection, found["queue"]) is None:
        found = operation(connection, operation_id)
        if found["status"] == Status.STARTED:
            words = connection.execute(select(_ABANDONED).filter_by(operation_id=operation_id)).scalar()
            found |= {"status": Status.INTERRUPTED, "outcome": words}
    return found


def history(
    connection: Connection, filters: Mapping[str, Any], limit: int, cursor: str | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of operations, newest first, and the next cursor. `filters`: queue, actor, since (a datetime)."""
    table = Operation.__table__.c
    query = select(*table).order_by(table.operation_id.desc()).limit(limit + 1)
    for name in ("queue", "actor"):
        if filters.get(name):
            query = query.where(table[name] == filters[name])
    if filters.get("since"):
        query = query.where(table.started_at >= filters["since"])
    if cursor:
        (last,) = decode_cursor(cursor, filters, [id_position])
        query = query.where(table.operation_id < last)
    rows, more = page_of(connection.execute(query).mappings().all(), limit)
    return [_as_dict(dict(row)) for row in rows], encode_cursor([rows[-1]["operation_id"]], filters) if more else None


def fates(connection: Connection, operation_id: uuid.UUID) -> Iterator[dict[str, Any]]:
    """The result of an operation for each message, read page by page."""
    table = OperationMessage.__table__.c
    query = select(*table).where(table.operation_id == operation_id).order_by(table.message_id).limit(FATES_AT_ONCE)
    last = uuid.UUID(int=0)
    while rows := connection.execute(query.where(table.message_id > last)).mappings().all():
        last = rows[-1]["message_id"]
        for row in rows:
            yield {
                "message_id": str(row["message_id"]),
                "order_id": str(row["order_id"]) if row["order_id"] else None,
                "trace_id": row["trace_id"],
                "event_type": row["event_type"],
                "fate": row["fate"],
                "reason": row["reason"],
                "at": timestamp(row["at"]),
            }


def operations_of(connection: Connection, order_ids: Sequence[uuid.UUID]) -> dict[str, list[dict[str, Any]]]:
    """The operators' replays and imports of messages of these orders, by order_id, oldest first. One statement."""
    message, operation = OperationMessage.__table__.c, Operation.__table__.c
    query = (
        select(
            message.order_id,
            message.message_id,
            message.event_type,
            message.at,
            operation.operation_id,
            operation.kind,
            operation.queue,
            operation.actor,
            operation.why,
        )
        .join_from(OperationMessage, Operation, message.operation_id == operation.operation_id)
        .where(message.order_id == any_(bindparam("order_ids", list(order_ids), type_=ARRAY(Uuid))))
        .where(message.fate.in_(BROUGHT_BACK))
        .order_by(message.order_id, message.at, message.message_id)
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(query).mappings():
        told = {name: row[name] for name in ("event_type", "kind", "queue", "actor", "why")}
        ids = {name: str(row[name]) for name in ("operation_id", "message_id")}
        found.setdefault(str(row["order_id"]), []).append({**ids, **told, "at": timestamp(row["at"])})
    return found


def exported_as(connection: Connection, sha256: str) -> dict[str, Any] | None:
    """The operation that wrote a file with this checksum, or None."""
    query = select(*Operation.__table__.c).filter_by(sha256=sha256).limit(1)
    row = connection.execute(query).mappings().first()
    return _as_dict(dict(row)) if row else None


def _as_dict(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "operation_id": str(row["operation_id"]),
        "started_at": timestamp(row["started_at"]),
        "finished_at": timestamp(row["finished_at"]) if row["finished_at"] else None,
    }
