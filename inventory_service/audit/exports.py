"""Exports of the release audit: each has a bound, a record of who made it, and a signed manifest."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import RowMapping, func, insert, select, tuple_, update
from sqlalchemy.orm import Session

from inventory_service.audit.chain import CHAIN_ORDER, newest_seal
from inventory_service.audit.pages import ROW, filtered, read_page
from inventory_service.models import ExportRow, SealRow
from shared import seals
from shared.errors import Conflict, NotFound
from shared.events import Identity
from shared.ids import uuid7
from shared.paging import decode_cursor, encode_cursor, id_position, page_of
from shared.times import timestamp


def open_export(session: Session, filters: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
    """Record an export of every row up to the newest seal: {export_id, sealed_to}."""
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
    """Return one page of an export, newest first, and the next cursor. Raises NotFound, InvalidCursor.

    No row can appear below the export's bound any more, so all pages show one snapshot without an open transaction.
    """
    export = _export(session, export_id)
    bounded = select(*ROW).where(tuple_(*CHAIN_ORDER) <= tuple_(export["until_xid"], export["until_id"]))
    return read_page(session, filtered(bounded, export["filters"]), export["filters"], limit, cursor)


def close_export(session: Session, export_id: uuid.UUID, rows: int, sha256: str, key: str) -> dict[str, Any]:
    """Record that an export finished, and return its signed manifest.

    A repeated call with the same result returns the same manifest. Raises NotFound, and Conflict if the export finished
    before with another number of rows or another checksum.
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


def list_exports(session: Session, limit: int, cursor: str | None = None) -> tuple[list[dict[str, Any]], str | None]:
    """Return one page of the recorded exports, newest first, and the next cursor."""
    table = ExportRow.__table__.c
    query = select(*table).order_by(table.export_id.desc()).limit(limit + 1)
    if cursor:
        (last,) = decode_cursor(cursor, {}, [id_position])
        query = query.where(table.export_id < last)
    rows, more = page_of(session.execute(query).mappings().all(), limit)
    found = [
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
    return found, encode_cursor([found[-1]["export_id"]], {}) if more else None


def _export(session: Session, export_id: uuid.UUID) -> RowMapping:
    row = session.execute(select(*ExportRow.__table__.c).filter_by(export_id=export_id)).mappings().first()
    if row is None:
        raise NotFound(f"There is no export {export_id}.")
    return row
