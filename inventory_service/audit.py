"""The release audit: its pages and totals, the chain of seals over it, and exports. Rows are only ever added."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Date,
    DateTime,
    RowMapping,
    Select,
    case,
    cast,
    func,
    insert,
    literal_column,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from inventory_service.models import ExportRow, ReleaseEvent, SealRow
from shared import seals
from shared.errors import CannotWork, Conflict, NotFound
from shared.events import Identity
from shared.ids import uuid7
from shared.paging import decode_cursor, encode_cursor, page_of
from shared.seals import Seal
from shared.times import timestamp

FILTERS = {"order_id": "order_id", "sku": "sku", "reason": "reason", "user_id": "requested_by", "trace_id": "trace_id"}

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
_NEWEST_FIRST = (_ROW.released_at, _ROW.id)
_SETTLED = (_ROW.xid, _ROW.id)


# --- pages and totals ---------------------------------------------------------------------------------------------


def page(
    session: Session, filters: Mapping[str, Any], limit: int, cursor: str | None = None, offset: int = 0
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of the audit, newest first, and the next cursor. An index stands behind each filter."""
    return _page(session, _chosen(select(*_ROW), filters).offset(offset or None), filters, limit, cursor)


def count(session: Session, filters: Mapping[str, Any]) -> int:
    """How many rows pass the filters. Reads them all in an index."""
    return session.scalar(_chosen(select(func.count()).select_from(ReleaseEvent), filters)) or 0


def totals(session: Session, filters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Releases and units by day (UTC) and reason, in this order. Reads all that pass the filters."""
    day = cast(func.timezone("UTC", _ROW.released_at), Date).label("day")
    query = _chosen(select(day, _ROW.reason, func.count().label("releases"), func.sum(_ROW.quantity)), filters)
    rows = session.execute(query.group_by(day, _ROW.reason).order_by(day, _ROW.reason))
    return [
        {"day": on.isoformat(), "reason": reason, "releases": releases, "quantity": int(quantity)}
        for on, reason, releases, quantity in rows
    ]


def find(session: Session, event_id: int) -> dict[str, Any]:
    """One release, with the seal that covers it or None. Raises NotFound."""
    row = session.execute(select(*_ROW).where(_ROW.id == event_id)).mappings().first()
    if row is None:
        raise NotFound(f"There is no release event {event_id}.")
    seal = SealRow.__table__.c
    covers = tuple_(seal.until_xid, seal.until_id) >= tuple_(row["xid"], row["id"])
    query = select(seal.seq, seal.sealed_at).where(covers).order_by(seal.until_xid, seal.until_id).limit(1)
    found = session.execute(query).first()
    return _told(row) | {"seal": {"seq": found.seq, "sealed_at": timestamp(found.sealed_at)} if found else None}


def _chosen(query: Select[Any], filters: Mapping[str, Any]) -> Select[Any]:
    for name, column in FILTERS.items():
        if filters.get(name) is not None:
            query = query.where(_ROW[column] == filters[name])
    if filters.get("from"):
        query = query.where(_ROW.released_at >= datetime.fromisoformat(filters["from"]))
    if filters.get("to"):
        query = query.where(_ROW.released_at < datetime.fromisoformat(filters["to"]))
    return query


def _page(
    session: Session, query: Select[Any], filters: Mapping[str, Any], limit: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    if cursor:
        at, last = decode_cursor(cursor, filters, [str, int])
        query = query.where(tuple_(*_NEWEST_FIRST) < tuple_(datetime.fromisoformat(at), last))
    query = query.order_by(*(column.desc() for column in _NEWEST_FIRST)).limit(limit + 1)
    rows, more = page_of(session.execute(query).mappings().all(), limit)
    next_cursor = encode_cursor([rows[-1]["released_at"].isoformat(), rows[-1]["id"]], filters) if more else None
    return [_told(row) for row in rows], next_cursor


def _told(row: RowMapping) -> dict[str, Any]:
    return {
        "id": row["id"],
        "order_id": str(row["order_id"]),
        "reservation_id": str(row["reservation_id"]),
        "sku": row["sku"],
        "quantity": row["quantity"],
        "reason": row["reason"],
        "requested_by": row["requested_by"],
        "roles": row["roles"],
        "trace_id": row["trace_id"],
        "released_at": timestamp(row["released_at"]),
    }


# --- the chain ----------------------------------------------------------------------------------------------------


def seal_once(session: Session, key: str, limit: int = ROWS_PER_SEAL) -> int:
    """Seal the oldest settled rows that no seal covers, at most `limit`; how many. In one transaction of its own.

    Nothing while somebody else seals. Raises CannotWork where a seal would be wrong.
    """
    if not session.scalar(_SEAL_ALONE):
        return 0
    newest = newest_seal(session)
    if wrong := trouble(session, newest):
        raise CannotWork(wrong)
    query = select(*_ROW).where(_ROW.xid < _HORIZON).order_by(*_SETTLED).limit(limit)
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


def trouble(session: Session, newest: Seal | None) -> str | None:
    """Why nothing can be sealed, or None. `newest` was read before: what is sealed later may lie beyond."""
    newest_row = select(func.max(_ROW.xid)).scalar_subquery()
    horizon, next_xid, last = session.execute(select(_HORIZON, _NEXT_XID, newest_row)).one()
    behind = newest is not None and newest.until_xid >= horizon
    return IDS_FELL_BACK if behind or (last is not None and last >= next_xid) else None


def rows_after(session: Session, position: Position, limit: int) -> Sequence[RowMapping]:
    """At most `limit` rows after a position, in the order of the chain."""
    query = select(*_dated(_ROW)).where(tuple_(*_SETTLED) > tuple_(*position)).order_by(*_SETTLED).limit(limit)
    return session.execute(query).mappings().all()


def chain(session: Session) -> dict[str, Any]:
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
        "trouble": trouble(session, newest),
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
    return query.where(tuple_(*_SETTLED) > tuple_(seal.until_xid, seal.until_id)) if seal else query


# --- exports ------------------------------------------------------------------------------------------------------


def open_export(session: Session, filters: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
    """Write down an export of every row up to the newest seal: {export_id, sealed_to}."""
    newest = newest_seal(session)
    export_id, sealed_to = uuid7(), newest.seq if newest else 0
    session.execute(
        insert(ExportRow).values(
            export_id=export_id,
            exported_by=identity.user_id,
            roles=list(identity.roles),
            filters=dict(filters),
            sealed_to=sealed_to,
            until_xid=newest.until_xid if newest else 0,
            until_id=newest.until_id if newest else 0,
        )
    )
    return {"export_id": str(export_id), "sealed_to": sealed_to}


def export_page(
    session: Session, export_id: uuid.UUID, limit: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of an export, in the order of `page`, and the next cursor. Raises NotFound.

    Under its bound no row can appear any more, so the pages are one snapshot and no transaction stays open.
    """
    export = _export(session, export_id)
    bounded = select(*_ROW).where(tuple_(*_SETTLED) <= tuple_(export["until_xid"], export["until_id"]))
    return _page(session, _chosen(bounded, export["filters"]), export["filters"], limit, cursor)


def close_export(session: Session, export_id: uuid.UUID, rows: int, sha256: str, key: str) -> dict[str, Any]:
    """Write down how an export ended; its signed manifest, the same one when it is told again.

    Raises NotFound, and Conflict when it has ended in another way.
    """
    values = {"rows": rows, "sha256": sha256, "finished_at": func.now()}
    session.execute(update(ExportRow).filter_by(export_id=export_id, finished_at=None).values(values))
    export = _export(session, export_id)
    if (export["rows"], export["sha256"]) != (rows, sha256):
        raise Conflict(f"Export {export_id} has ended before.")
    seal = SealRow.__table__.c
    manifest = {
        "version": 1,
        "export_id": str(export_id),
        "exported_by": export["exported_by"],
        "started_at": timestamp(export["started_at"]),
        "finished_at": timestamp(export["finished_at"]),
        "filters": export["filters"],
        "rows": rows,
        "sha256": sha256,
        "sealed_to": export["sealed_to"],
        "seal": session.scalar(select(seal.mac).where(seal.seq == export["sealed_to"])) or seals.GENESIS,
        "key_id": seals.key_id(key),
    }
    return manifest | {"mac": seals.manifest_mac(key, manifest)}


def exports(session: Session, limit: int, cursor: str | None = None) -> tuple[list[dict[str, Any]], str | None]:
    """A page of the record of exports, newest first, and the next cursor."""
    table = ExportRow.__table__.c
    query = select(*table).order_by(table.export_id.desc()).limit(limit + 1)
    if cursor:
        (last,) = decode_cursor(cursor, {}, [str])
        query = query.where(table.export_id < uuid.UUID(last))
    rows, more = page_of(session.execute(query).mappings().all(), limit)
    told = [
        {
            "export_id": str(row["export_id"]),
            "exported_by": row["exported_by"],
            "filters": row["filters"],
            "sealed_to": row["sealed_to"],
            "rows": row["rows"],
            "sha256": row["sha256"],
            "started_at": timestamp(row["started_at"]),
            "finished_at": timestamp(row["finished_at"]) if row["finished_at"] else None,
        }
        for row in rows
    ]
    return told, encode_cursor([told[-1]["export_id"]], {}) if more else None


def _export(session: Session, export_id: uuid.UUID) -> RowMapping:
    row = session.execute(select(*ExportRow.__table__.c).filter_by(export_id=export_id)).mappings().first()
    if row is None:
        raise NotFound(f"There is no export {export_id}.")
    return row
