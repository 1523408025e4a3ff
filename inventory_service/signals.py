"""What others are told about skus: found by comparing, never by the code that moves stock.

So no path that moves stock can forget to tell, and a sale pays nothing for it. What comes and goes between two looks is
not told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from inventory_service.domain import FEW
from shared import outbox
from shared.enumerations import Unit
from shared.envelope import envelope
from shared.events import AvailabilityChanged, Identity, LevelCrossed, Payload

SERVICE = "inventory_service"

# Few skus change in a second; after an import all have.
BATCH = 500

# They are told again within 3 s: a call is answered within 10 s, and 100,000 skus took 23 to 30 s.
MOST_AT_ONCE = 10_000

# No transaction that moves stock is open for so long. To compare all skus costs ten times as much as to find those that
# were written of late.
LATE_S = 60

# A sku is low at low_at, and is not any more when a fifth more is there, but at least one. In between it stays what it
# was, so that sales and returns around low_at tell nothing. `rules` and `told` are rows of the tables of that name.
IS_LOW = """
    CASE WHEN rules.low_at IS NULL THEN false
         WHEN available <= rules.low_at THEN true
         WHEN available >= rules.low_at + greatest(1, (rules.low_at + 4) / 5) THEN false
         ELSE coalesce(told.low, false)
    END
"""
# What is there of each sku, and what is to be told of it. Of a made sku so much is available as could be made of its
# components; of one that is made of nothing there is always enough: NULL. A sku that is neither stocked nor made any
# more has 0.
_COMPUTED = f"""
    SELECT sku, coalesce(available < 1, false) AS sold_out,
           CASE WHEN available BETWEEN 1 AND {FEW} THEN available END AS few,
           {IS_LOW} AS low, available, rules.low_at, coalesce(rules.unit, '{Unit.PIECE}') AS unit, written_at,
           told.sold_out AS told_sold_out, told.few AS told_few, coalesce(told.low, false) AS told_low,
           coalesce(told.version, 0) AS version
    FROM (
        SELECT sku, on_hand - reserved AS available, updated_at AS written_at FROM %(stocked)s
        UNION ALL
        SELECT made.sku, min((on_hand - reserved) / lines.quantity),
               greatest(max(made.changed_at), max(components.updated_at))
        FROM %(made)s AS made
        LEFT JOIN recipe_lines AS lines ON lines.sku = made.sku
        LEFT JOIN stock_items AS components ON components.sku = lines.component
        GROUP BY made.sku
        %(gone)s
    ) AS looked_at
    LEFT JOIN stock_rules AS rules USING (sku) LEFT JOIN stock_signals AS told USING (sku)
"""
_GONE = """
        UNION ALL
        SELECT sku, 0, NULL FROM stock_signals AS told
        WHERE NOT EXISTS (SELECT FROM stock_items WHERE stock_items.sku = told.sku)
          AND NOT EXISTS (SELECT FROM recipes WHERE recipes.sku = told.sku)
"""
_OF_ALL = _COMPUTED % {"stocked": "stock_items", "made": "recipes", "gone": _GONE}
# What is made is looked at when its recipe, or the stock of a component, was written of late.
_OF_LATE = _COMPUTED % {
    "stocked": "late",
    "made": f"""(
            SELECT sku, changed_at FROM recipes
            WHERE sku IN (SELECT lines.sku FROM recipe_lines AS lines JOIN late ON late.sku = lines.component)
            UNION
            SELECT sku, changed_at FROM recipes WHERE changed_at > now() - interval '{LATE_S} seconds'
        )""",
    "gone": "",
}
_OF_GIVEN = _COMPUTED % {
    "stocked": "(SELECT * FROM stock_items WHERE sku = ANY(CAST(:skus AS text[]))) AS stocked",
    "made": "(SELECT * FROM recipes WHERE sku = ANY(CAST(:skus AS text[])))",
    "gone": f"{_GONE} AND sku = ANY(CAST(:skus AS text[]))",
}
# Of which stock is looked at: one scan of narrow rows, since an index would have to be changed with each reservation.
_LATE = f"""
    late AS MATERIALIZED (
        SELECT sku, on_hand, reserved, updated_at FROM stock_items
        WHERE updated_at > now() - interval '{LATE_S} seconds'
    ),
"""
_AVAILABILITY_DIFFERS = "(told_sold_out IS DISTINCT FROM sold_out OR told_few IS DISTINCT FROM few)"
# The database plans the inner query for all of its rows, because mostly none has changed. With the limit in it, it
# would read the rows one by one by index.
_CHANGED = f"""
    WITH %s changed AS MATERIALIZED (
        SELECT *, {_AVAILABILITY_DIFFERS} AS availability_differs
        FROM (%s) AS computed WHERE {_AVAILABILITY_DIFFERS} OR told_low <> low
    )
    SELECT * FROM changed LIMIT {BATCH}
"""
_CHANGED_OF_LATE = text(_CHANGED % (_LATE, _OF_LATE))
_CHANGED_OF_ALL = text(_CHANGED % ("", _OF_ALL))
UNTOLD = f"SELECT sku, written_at FROM ({_OF_ALL}) AS computed WHERE {_AVAILABILITY_DIFFERS} OR told_low <> low"
_SOME = text(f"SELECT *, true AS availability_differs FROM ({_OF_GIVEN}) AS computed ORDER BY sku")
# All skus of which there is anything to tell. Since this is asked by people alone, scans are enough here, too.
_DUE = text(
    f"""
    SELECT sku, count(*) OVER () AS due
    FROM (SELECT sku FROM stock_items UNION SELECT sku FROM recipes UNION SELECT sku FROM stock_signals) AS known
    LEFT JOIN stock_signals AS told USING (sku)
    WHERE (CAST(:skus AS text[]) IS NULL OR sku = ANY(CAST(:skus AS text[])))
      AND (CAST(:before AS timestamptz) IS NULL OR told.since IS NULL OR told.since < CAST(:before AS timestamptz))
    ORDER BY told.since NULLS FIRST, sku LIMIT {MOST_AT_ONCE}
    """
)
_CLOCK = text("SELECT date_trunc('milliseconds', now())")
# The version that was seen guards the row: of two that look at once, one tells. It also grows after a backup was
# restored, since those who heard of a later version would not hear of an earlier one.
_TELL = text(
    """
    WITH given AS (
        SELECT * FROM unnest(
            CAST(:skus AS text[]), CAST(:sold_out AS boolean[]), CAST(:few AS bigint[]), CAST(:low AS boolean[]),
            CAST(:versions AS bigint[])
        ) AS given (sku, sold_out, few, low, seen)
    )
    INSERT INTO stock_signals AS told (sku, sold_out, few, low, version)
    SELECT sku, sold_out, few, low, greatest(seen + 1, CAST(extract(epoch FROM now()) * 1000 AS bigint))
    FROM given ORDER BY sku
    ON CONFLICT (sku) DO UPDATE
    SET sold_out = excluded.sold_out, few = excluded.few, low = excluded.low, version = excluded.version, since = now()
    WHERE told.version = (SELECT seen FROM given WHERE given.sku = told.sku)
    RETURNING sku, version
    """
)


def tell_changes(session: Session, of_all: bool, identity: Identity, trace_id: str) -> int:
    """Tell what differs from what was told last, of at most BATCH skus; how many. At most three statements.

    Looks at all skus, or at those written in the last LATE_S: they, their recipes or the stock of their components.
    Only the look at all finds skus that are neither stocked nor made any more, and rules that were changed.
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
    versions: dict[str, int] = {
        row.sku: row.version
        for row in session.execute(
            _TELL,
            {
                "skus": [row.sku for row in rows],
                "sold_out": [row.sold_out for row in rows],
                "few": [row.few for row in rows],
                "low": [row.low for row in rows],
                "versions": [row.version for row in rows],
            },
        )
    }
    events = [event for row in rows if row.sku in versions for event in _events(row, versions[row.sku])]
    outbox.emit(session, [envelope(SERVICE, event, trace_id, identity) for event in events])
    return len(versions)


def _events(row: Row[Any], version: int) -> Iterator[Payload]:
    if row.availability_differs:
        yield AvailabilityChanged(row.sku, row.sold_out, row.few, version)
    if row.low != row.told_low:
        yield LevelCrossed(row.sku, row.low, row.available, row.low_at, row.unit, version)
