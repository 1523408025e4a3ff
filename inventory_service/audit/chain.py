"""The chain of seals over the release audit: `seal_once` is the only place where releases are sealed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    RowMapping,
    Select,
    case,
    func,
    insert,
    literal_column,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import Session

from inventory_service.models import ReleaseEvent, SealRow
from shared import seals
from shared.errors import CannotWork
from shared.seals import Seal
from shared.times import timestamp

# A seal's rows are hashed in one go, and nothing else in the process runs meanwhile: about 5 ms.
ROWS_PER_SEAL = 1000

# Where a seal has its rows from: every row below is settled, its transaction committed or rolled back, and no
# transaction to come can write one. Waits for nobody; what is still open keeps later rows out of this seal alone.
_HORIZON: ColumnElement[int] = literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint", BigInteger)
# No transaction that is over, or open, has this id or a later one.
_NEXT_XID: ColumnElement[int] = literal_column("pg_snapshot_xmax(pg_current_snapshot())::text::bigint", BigInteger)

# Whoever seals, the leader's timer or an export, does so alone, and nobody waits for him. Any constant will do. A
# sealer that is frozen between two statements loses its session, and with it the lock.
_SEAL_ALONE = text(
    "SELECT pg_try_advisory_xact_lock(1936023916), set_config('idle_in_transaction_session_timeout', '2000', true)"
)

# Transaction ids only grow, but in another cluster they begin anew: rows would come to lie under seals that are there.
IDS_FELL_BACK = (
    "this cluster's transaction ids are behind those of the release audit, as after a restore into a new one:"
    " nothing is sealed until they are set (docs/audit.md says how)"
)

# Where a row stands in the chain: (xid, id).
Position = tuple[int, int]

_ROW = ReleaseEvent.__table__.c
_DATES = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
CHAIN_ORDER = (_ROW.xid, _ROW.id)


def seal_once(session: Session, key: str, limit: int = ROWS_PER_SEAL) -> int:
    """Seal the oldest settled rows that no seal covers, at most `limit`; how many. In one transaction of its own.

    Nothing while somebody else seals. Raises CannotWork where a seal would be wrong.
    """
    if not session.scalar(_SEAL_ALONE):
        return 0
    newest = newest_seal(session)
    if wrong := blocked_reason(session, newest):
        raise CannotWork(wrong)
    query = select(*_ROW).where(_ROW.xid < _HORIZON).order_by(*CHAIN_ORDER).limit(limit)
    rows = session.execute(_after(query, newest)).mappings().all()
    if rows:
        until = rows[-1]["xid"], rows[-1]["id"]
        seq = newest.seq + 1 if newest else 1
        total = (newest.total if newest else 0) + len(rows)
        sealed_at: datetime = session.scalar(select(func.clock_timestamp()))  # type: ignore[assignment]
        before = newest.mac if newest else seals.GENESIS
        mac = seals.seal_mac(key, before, seq, until, total, sealed_at, [sealed_values(row) for row in rows])
        seal = Seal(seq, *until, len(rows), total, sealed_at, seals.key_id(key), mac)
        session.execute(insert(SealRow).values(vars(seal)))
    return len(rows)


def sealed_values(row: RowMapping) -> list[Any]:
    """A row as a seal hashes it: every column, to the microsecond."""
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
    """The columns of a query, with a time that Python has not as the end of time: no row breaks the reading of all."""
    return [
        case((column.between(*_DATES), column), else_=text("timestamptz 'infinity'")).label(column.name)
        if isinstance(column.type, DateTime)
        else column
        for column in columns
    ]


def newest_seal(session: Session) -> Seal | None:
    """The head of the chain, or None while nothing is sealed."""
    return next(seals_after(session, 0, 1, newest_first=True), None)


def seals_after(session: Session, seq: int, limit: int, newest_first: bool = False) -> Iterator[Seal]:
    """At most `limit` seals after one, in the order of the chain or from its head backwards."""
    table = SealRow.__table__.c
    order = table.seq.desc() if newest_first else table.seq
    query = select(*_dated(table)).where(table.seq > seq).order_by(order).limit(limit)
    return (Seal(**row) for row in session.execute(query).mappings())


def blocked_reason(session: Session, newest: Seal | None) -> str | None:
    """Why nothing can be sealed, or None. `newest` was read before: what is sealed later may lie beyond."""
    newest_row = select(func.max(_ROW.xid)).scalar_subquery()
    horizon, next_xid, last = session.execute(select(_HORIZON, _NEXT_XID, newest_row)).one()
    behind = newest is not None and newest.until_xid >= horizon
    return IDS_FELL_BACK if behind or (last is not None and last >= next_xid) else None


def rows_after(session: Session, position: Position, limit: int) -> Sequence[RowMapping]:
    """At most `limit` rows after a position, in the order of the chain."""
    query = select(*_dated(_ROW)).where(tuple_(*CHAIN_ORDER) > tuple_(*position)).order_by(*CHAIN_ORDER).limit(limit)
    return session.execute(query).mappings().all()


def status(session: Session) -> dict[str, Any]:
    """How far the chain is: {seals, rows, newest: {seq, mac, sealed_at} or None, waiting, oldest_waiting_at, trouble}.

    Reads the rows that wait, and those are few.
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
    """The transaction id that nobody has yet: what is committed now has a smaller one."""
    return int(session.scalar(select(_NEXT_XID)) or 0)


def is_open_below(session: Session, xid: int) -> bool:
    """Whether a transaction before this one may still write rows."""
    return bool(session.scalar(select(xid > _HORIZON)))


def is_behind(session: Session, xid: int) -> bool:
    """Whether rows of transactions before this one could be sealed and are not."""
    settled = _ROW.xid < xid, _ROW.xid < _HORIZON
    return session.scalar(_after(select(_ROW.id), newest_seal(session)).where(*settled).limit(1)) is not None


def _after(query: Select[*tuple[Any, ...]], seal: Seal | None) -> Select[*tuple[Any, ...]]:
    return query.where(tuple_(*CHAIN_ORDER) > tuple_(seal.until_xid, seal.until_id)) if seal else query
