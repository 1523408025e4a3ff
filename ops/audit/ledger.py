"""The release audit in the operations ledger: heads of its chain, and the results of verifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from ops.models import AuditHead, AuditVerification
from shared.ids import uuid7
from shared.seals import Seal
from shared.times import timestamp

_HEAD = AuditHead.__table__.c
_VERIFICATION = AuditVerification.__table__.c


def newest_head(connection: Connection) -> RowMapping | None:
    """The head seen last, {seq, mac, total, at}, or None."""
    return connection.execute(select(*_HEAD).order_by(_HEAD.seq.desc()).limit(1)).mappings().first()


def heads_between(connection: Connection, after: int, until: int) -> dict[int, str]:
    """The MACs of the heads after one seq and up to another, by seq."""
    query = select(_HEAD.seq, _HEAD.mac).where(_HEAD.seq > after, _HEAD.seq <= until).order_by(_HEAD.seq)
    return {row.seq: row.mac for row in connection.execute(query)}


def write_heads(connection: Connection, seen: Sequence[Seal]) -> None:
    """Save heads; a head that another replica saved before stays as it is."""
    rows = [{"seq": seal.seq, "mac": seal.mac, "total": seal.total} for seal in seen]
    if rows:
        connection.execute(upsert(AuditHead).on_conflict_do_nothing(), rows)


def write_verification(
    connection: Connection, actor: str, figures: Mapping[str, Any], outcome: str, started_at: datetime
) -> None:
    """Save the result of a verification; `figures` are {intact, seals, rows}."""
    values = {"actor": actor, "outcome": outcome, "started_at": started_at, **figures}
    connection.execute(insert(AuditVerification).values(verification_id=uuid7(), **values))


def verifications(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """The newest verifications, newest first."""
    query = select(*_VERIFICATION).order_by(_VERIFICATION.verification_id.desc()).limit(limit)
    return [
        {
            "verification_id": str(row["verification_id"]),
            **{name: row[name] for name in ("actor", "intact", "seals", "rows", "outcome")},
            "started_at": timestamp(row["started_at"]),
            "finished_at": timestamp(row["finished_at"]),
        }
        for row in connection.execute(query).mappings()
    ]
