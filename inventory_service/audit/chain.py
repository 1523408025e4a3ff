"""The chain of seals over the release audit: `seal_once` is the only place where releases are sealed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    DateTime,
    RowMapping,
    Select,
    case,
    func,
    insert,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import Session

from inventory_service.models import ReleaseEvent, SealRow
from shared import seals
from shared.errors import CannotWork
from shared.horizon import HORIZON, NEXT_XID
from shared.seals import Place, Seal
from shared.times import timestamp

# Hashing the rows of one seal blocks the whole process: about 5 ms for this many rows.
ROWS_PER_SEAL = 1000

# Only one process seals at a time: the leader's timer or an export. Others skip their turn instead of waiting. The lock
# number is arbitrary. If a sealer freezes between two statements, PostgreSQL ends its session, which frees the lock.
SEAL_LOCK = 1936023916
_SEAL_ALONE = text(
    f"SELECT pg_try_advisory_xact_lock({SEAL_LOCK}), set_config('idle_in_transaction_session_timeout', '2000', true)"
)

# Transaction ids only grow within one cluster. A new cluster starts again at low ids, so new rows would fall into
# ranges that existing seals already cover.
IDS_FELL_BACK = (
    "this cluster's transaction ids are behind those of the release audit, as after a restore into a new one:"
    " nothing is sealed until they are set (docs/audit.md says how)"
)

# The position of a row in the chain: (xid, id).
Position = tuple[int, int]

_ROW = ReleaseEvent.__table__.c
# The times that Python's datetime can hold in every time zone.
_DATES = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
CHAIN_ORDER = (_ROW.xid, _ROW.id)


def seal_once(session: Session, key: str, limit: int = ROWS_PER_SEAL) -> int:
    """Seal the oldest unsealed rows below the horizon, at most `limit`, and return their number.

    Needs a transaction of its own. Returns 0 if another process is sealing. Raises CannotWork if transaction ids fell
    back, because the seal would be wrong.
    """
    if not session.scalar(_SEAL_ALONE):
        return 0
    newest = newest_seal(session)
    if reason := blocked_reason(session, newest):
        raise CannotWork(reason)
    query = select(*_ROW).where(_ROW.xid < HORIZON).order_by(*CHAIN_ORDER).limit(limit)
    rows = session.execute(_after(query, newest)).mappings().all()
    if rows:
        until = rows[-1]["xid"], rows[-1]["id"]
        seq = newest.seq + 1 if newest else 1
        total = (newest.total if newest else 0) + len(rows)
        sealed_at: datetime = session.scalar(select(func.clock_timestamp()))  # type: ignore[assignment]
        before = newest.mac if newest else seals.GENESIS
        mac = seals.seal_mac(key, before, Place(seq, until, total, sealed_at), [sealed_values(row) for row in rows])
        seal = Seal(seq, *until, len(rows), total, sealed_at, seals.key_id(key), mac)
        session.execute(insert(SealRow).values(vars(seal)))
    return len(rows)


def sealed_values(row: RowMapping) -> list[Any]:
    """Return the values of a row that its seal hashes: every column, times to the microsecond."""
    return [
        row["xid"],
        row["id"],
        str(row["order_id"]),
        str(row["reservation_id"]),
        row["sku"],
        row["quantity"],
        row["reason"],
        row["requested_by"],
        list(row["roles"]),
        row["trace_id"],
        seals.moment(row["released_at"]),
    ]


def _dated(columns: Iterable[ColumnElement[Any]]) -> list[Any]:
    """Select these columns, with times outside the range of Python as infinity, so that one bad row breaks no query."""
    return [
        case((column.between(*_DATES), column), else_=text("timestamptz 'infinity'")).label(column.name)
        if isinstance(column.type, DateTime)
        else column
        for column in columns
    ]


def newest_seal(session: Session) -> Seal | None:
    """Return the head of the chain, or None if nothing is sealed yet."""
    return next(seals_after(session, 0, 1, newest_first=True), None)


def seals_after(session: Session, seq: int, limit: int, newest_first: bool = False) -> Iterator[Seal]:
    """Return at most `limit` seals after seal `seq`, oldest first. `newest_first=True` starts at the head instead."""
    table = SealRow.__table__.c
    order = table.seq.desc() if newest_first else table.seq
    query = select(*_dated(table)).where(table.seq > seq).order_by(order).limit(limit)
    return (Seal(**row) for row in session.execute(query).mappings())


def blocked_reason(session: Session, newest: Seal | None) -> str | None:
    """Return why nothing can be sealed, or None if sealing is possible.

    Read `newest` before this call: a seal that another process adds later may lie above the horizon read here.
    """
    newest_row = select(func.max(_ROW.xid)).scalar_subquery()
    horizon, next_xid, last = session.execute(select(HORIZON, NEXT_XID, newest_row)).one()
    behind = newest is not None and newest.until_xid >= horizon
    return IDS_FELL_BACK if behind or (last is not None and last >= next_xid) else None


def rows_after(session: Session, position: Position, limit: int) -> Sequence[RowMapping]:
    """Return at most `limit` rows after a position, in the order of the chain."""
    query = select(*_dated(_ROW)).where(tuple_(*CHAIN_ORDER) > tuple_(*position)).order_by(*CHAIN_ORDER).limit(limit)
    return session.execute(query).mappings().all()


def status(session: Session) -> dict[str, Any]:
    """Describe the chain: {seals, rows, newest: {seq, mac, sealed_at} or None, waiting, oldest_waiting_at, trouble}.

    `waiting` counts the unsealed rows; only those are read, and they are few.
    """
    newest = newest_seal(session)
    query = _after(select(func.count(), func.min(_ROW.released_at)), newest)
    waiting, oldest = session.execute(query).one()
    return {
        "seals": newest.seq if newest else 0,
        "rows": newest.total if newest else 0,
        "newest": newest and {"seq": newest.seq, "mac": newest.mac, "sealed_at": timestamp(newest.sealed_at)},
        "waiting": waiting,
        "oldest_waiting_at": timestamp(oldest) if oldest else None,
        "trouble": blocked_reason(session, newest),
    }


def next_xid(session: Session) -> int:
    """Return the next transaction id. Every row committed so far has a smaller one."""
    return int(session.scalar(select(NEXT_XID)) or 0)


def is_open_below(session: Session, xid: int) -> bool:
    """Whether a transaction with an id below `xid` is still open and may write rows."""
    return bool(session.scalar(select(xid > HORIZON)))


def is_behind(session: Session, xid: int) -> bool:
    """Whether rows of finished transactions with ids below `xid` are not sealed yet."""
    sealable = _ROW.xid < xid, _ROW.xid < HORIZON
    return session.scalar(_after(select(_ROW.id), newest_seal(session)).where(*sealable).limit(1)) is not None


def _after(query: Select[*tuple[Any, ...]], seal: Seal | None) -> Select[*tuple[Any, ...]]:
    return query.where(tuple_(*CHAIN_ORDER) > tuple_(seal.until_xid, seal.until_id)) if seal else query
