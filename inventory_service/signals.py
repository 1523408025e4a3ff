"""What others are told about the availability of skus: found by comparing, never by the code that moves stock.

So no path that moves stock can forget to tell, and a sale pays nothing for it. What comes and goes between two looks is
not told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from inventory_service.domain import FEW
from shared import outbox
from shared.envelope import envelope
from shared.events import AvailabilityChanged, Identity

SERVICE = "inventory_service"

# Few skus change in a second; after an import all have.
BATCH = 500

# They are told again within 3 s: a call is answered within 10 s, and 100,000 skus took 23 to 30 s.
MOST_AT_ONCE = 10_000

# No transaction that moves stock is open for so long. To compare all skus costs ten times as much as to find those that
# were written of late.
LATE_S = 60

_COMPUTED = f"""
    SELECT sku, on_hand - reserved < 1 AS sold_out,
           CASE WHEN on_hand - reserved BETWEEN 1 AND {FEW} THEN on_hand - reserved END AS few
    FROM stock_items
"""
# The database plans the inner query for all of its rows, because mostly none has changed. With the limit in it, it
# would read the rows one by one by index.
_CHANGED = f"""
    WITH changed AS MATERIALIZED (
        SELECT computed.sku, computed.sold_out, computed.few, coalesce(told.version, 0) AS version
        FROM ({_COMPUTED} %s) AS computed LEFT JOIN stock_signals AS told USING (sku)
        WHERE told.sku IS NULL OR told.sold_out <> computed.sold_out OR told.few IS DISTINCT FROM computed.few
    )
    SELECT sku, sold_out, few, version FROM changed LIMIT {BATCH}
"""
# One scan of narrow rows: an index would have to be changed with each reservation.
_CHANGED_OF_LATE = text(_CHANGED % f"WHERE updated_at > now() - interval '{LATE_S} seconds'")
_CHANGED_OF_ALL = text(_CHANGED % "")
# Since this is asked by people alone, a scan of the narrow rows is enough here, too.
_DUE = text(
    f"""
    SELECT sku, count(*) OVER () AS due FROM stock_items LEFT JOIN stock_signals AS told USING (sku)
    WHERE (CAST(:skus AS text[]) IS NULL OR sku = ANY(CAST(:skus AS text[])))
      AND (CAST(:before AS timestamptz) IS NULL OR told.since IS NULL OR told.since < CAST(:before AS timestamptz))
    ORDER BY told.since NULLS FIRST, sku LIMIT {MOST_AT_ONCE}
    """
)
_CLOCK = text("SELECT date_trunc('milliseconds', now())")
_SOME = text(
    f"""
    SELECT computed.sku, computed.sold_out, computed.few, coalesce(told.version, 0) AS version
    FROM ({_COMPUTED} WHERE sku = ANY(CAST(:skus AS text[]))) AS computed
    LEFT JOIN stock_signals AS told USING (sku) ORDER BY computed.sku
    """
)
# The version that was seen guards the row: of two that look at once, one tells. It also grows after a backup was
# restored, since those who heard of a later version would not hear of an earlier one.
_TELL = text(
    """
    WITH given AS (
        SELECT * FROM unnest(
            CAST(:skus AS text[]), CAST(:sold_out AS boolean[]), CAST(:few AS bigint[]), CAST(:versions AS bigint[])
        ) AS given (sku, sold_out, few, seen)
    )
    INSERT INTO stock_signals AS told (sku, sold_out, few, version)
    SELECT sku, sold_out, few, greatest(seen + 1, CAST(extract(epoch FROM now()) * 1000 AS bigint))
    FROM given ORDER BY sku
    ON CONFLICT (sku) DO UPDATE
    SET sold_out = excluded.sold_out, few = excluded.few, version = excluded.version, since = now()
    WHERE told.version = (SELECT seen FROM given WHERE given.sku = told.sku)
    RETURNING sku, sold_out, few, version
    """
)


def tell_changes(session: Session, of_all: bool, identity: Identity, trace_id: str) -> int:
    """Tell what differs from what was told last, of at most BATCH skus; how many. At most three statements.

    Looks at all skus, or at those written in the last LATE_S.
    """
    rows = session.execute(_CHANGED_OF_ALL if of_all else _CHANGED_OF_LATE).all()
    return _tell(session, rows, identity, trace_id)


@dataclass(frozen=True)
class Due:
    """Skus whose availability is to be told again, sorted; how many more there are; and what `before` was."""

    skus: Sequence[str]
    left: int
    before: datetime


def due(session: Session, skus: Sequence[str] | None, before: datetime | None) -> Due:
    """Of these skus, or of all, the MOST_AT_ONCE that were told longest ago. Two statements.

    What was told at or after `before` is not among them: whoever asks again with the same moment comes to an end.
    Without it each sku is due, and the moment is now.
    """
    moment = before or session.execute(_CLOCK).scalar_one()
    rows = session.execute(_DUE, {"skus": skus if skus is None else list(skus), "before": before}).all()
    return Due(sorted(row.sku for row in rows), rows[0].due - len(rows) if rows else 0, moment)


def tell_again(session: Session, skus: Sequence[str], identity: Identity, trace_id: str) -> int:
    """Tell the availability of skus with a new version, whether it has changed or not; how many. Three statements."""
    return _tell(session, session.execute(_SOME, {"skus": list(skus)}).all(), identity, trace_id)


def _tell(session: Session, rows: Sequence[Row[Any]], identity: Identity, trace_id: str) -> int:
    if not rows:
        return 0
    told = session.execute(
        _TELL,
        {
            "skus": [row.sku for row in rows],
            "sold_out": [row.sold_out for row in rows],
            "few": [row.few for row in rows],
            "versions": [row.version for row in rows],
        },
    ).all()
    events = [AvailabilityChanged(row.sku, row.sold_out, row.few, row.version) for row in told]
    outbox.emit(session, [envelope(SERVICE, event, trace_id, identity) for event in events])
    return len(events)
