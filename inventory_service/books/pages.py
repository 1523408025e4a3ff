"""What is on hand and what has moved it, as people and programs read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import RowMapping, TextClause, text
from sqlalchemy.orm import Session

from inventory_service.books.domain import BY_ORDERS
from inventory_service.queries import stock_of
from inventory_service.signals import IS_LOW, LATE_S
from shared.enumerations import MovementCause, Unit
from shared.paging import decode_cursor, encode_cursor, name_position, page_of, row_position
from shared.times import timestamp

# What could be made of the components that are there, each sku alone: null is made of nothing, and never short.
_COULD_BE_MADE = """
    SELECT min((on_hand - reserved) / line.quantity) AS available
    FROM recipe_lines AS line JOIN stock_items AS component ON component.sku = line.component
    WHERE line.sku = recipe.sku
"""
# Both parts are read by their keys from `after` on. Without a filter that is a page. A filter may find few: then every
# sku is looked at, as the service does each second to tell what is sold out. Of 100,000 skus and 10,000 recipes that
# took 0.25 s; an index on what is available would have to be changed with each reservation.
_LEVELS = """
    WITH stocked AS (
        SELECT item.sku, false AS made, on_hand, reserved, available, item.version,
               coalesce(rules.unit, '{unit}') AS unit, rules.low_at, {low} AS low
        FROM stock_items AS item CROSS JOIN LATERAL (SELECT on_hand - reserved AS available) AS there
        LEFT JOIN stock_rules AS rules USING (sku) LEFT JOIN stock_signals AS told USING (sku)
        WHERE item.sku > :after AND {stocked}
        ORDER BY item.sku LIMIT :most
    ), made AS (
        SELECT recipe.sku, true AS made, CAST(NULL AS bigint) AS on_hand, CAST(NULL AS bigint) AS reserved,
               could_be.available, recipe.version, '{unit}' AS unit, CAST(NULL AS bigint) AS low_at, false AS low
        FROM recipes AS recipe CROSS JOIN LATERAL ({could_be_made}) AS could_be
        WHERE recipe.sku > :after AND {made}
        ORDER BY recipe.sku LIMIT :most
    ), page AS MATERIALIZED (SELECT * FROM stocked UNION ALL SELECT * FROM made ORDER BY sku LIMIT :most)
    SELECT page.*, (
        SELECT coalesce(sum(line.quantity - line.received), 0)
        FROM purchase_order_lines AS line JOIN purchase_orders AS purchase USING (po_id)
        WHERE line.sku = page.sku AND line.received < line.quantity AND purchase.status = 'ORDERED'
    ) AS on_order
    FROM page ORDER BY sku
"""
_FILTERS = {
    ("sku", None): ("item.sku = :sku", "recipe.sku = :sku"),
    ("low", True): (f"rules.low_at IS NOT NULL AND {IS_LOW}", "false"),
    ("low", False): (f"NOT {IS_LOW}", "true"),
    ("sold_out", True): ("available < 1", "could_be.available < 1"),
    ("sold_out", False): ("available >= 1", "coalesce(could_be.available, 1) >= 1"),
}


@lru_cache(len(_FILTERS) ** 2)
def _levels_statement(chosen: frozenset[tuple[str, bool | None]]) -> TextClause:
    conditions = [_FILTERS[one] for one in sorted(chosen, key=str)]
    stocked, made = (
        (" AND ".join(("true", *of)) for of in zip(*conditions, strict=True)) if conditions else ("true",) * 2
    )
    return text(_LEVELS.format(unit=Unit.PIECE, low=IS_LOW, could_be_made=_COULD_BE_MADE, stocked=stocked, made=made))


def levels(
    session: Session, limit: int, cursor: str | None, filters: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str | None]:
    """One page of what is on hand and of what could be made, by sku, and the next cursor. One statement."""
    values: dict[str, Any] = {"after": "", "most": limit + 1}
    if cursor:
        (values["after"],) = decode_cursor(cursor, filters, [name_position])
    chosen = {(name, filters[name]) for name in ("low", "sold_out") if filters.get(name) is not None}
    if filters.get("sku"):
        chosen.add(("sku", None))
        values["sku"] = filters["sku"]
    found = session.execute(_levels_statement(frozenset(chosen)), values).mappings().all()
    rows, more = page_of(found, limit)
    items = [dict(row) | {"on_order": int(row["on_order"]), "sold_out": is_sold_out(row["available"])} for row in rows]
    return items, encode_cursor([rows[-1]["sku"]], filters) if more else None


_MADE_OF_THESE = text(
    f"""
    SELECT recipe.sku, could_be.available
    FROM recipes AS recipe CROSS JOIN LATERAL ({_COULD_BE_MADE}) AS could_be
    WHERE recipe.sku = ANY(CAST(:skus AS text[]))
    """
)


def availability(session: Session, skus: Sequence[str]) -> dict[str, int | None]:
    """How much of each sku can be sold, of those that have stock or a recipe; None is made of nothing.

    At most two statements.
    """
    found: dict[str, int | None] = {sku: item.available for sku, item in stock_of(session, skus).items()}
    if missing := [sku for sku in skus if sku not in found]:
        found |= {row.sku: row.available for row in session.execute(_MADE_OF_THESE, {"skus": missing})}
    return found


def is_sold_out(available: int | None) -> bool:
    """Whether nothing of a sku is left; None is made of nothing, and never short."""
    return available is not None and available < 1


# The conditions under which an index of the table has a movement, as its definition says them.
_OF_PEOPLE = "cause NOT IN ('sale', 'return')"

_MOVEMENTS = """
    SELECT id, sku, change, on_hand_after, cause, reason, note, moved_by, trace_id, moved_at,
           order_id, purchase_order_id
    FROM stock_movements WHERE {scope} ORDER BY id DESC LIMIT :most
"""
# Movements are not indexed by time, since each sale would pay for it. Their ids grow with it: whoever moves a sku has
# locked it. So this halves the ids, forty times at most, and finds the last movement that was made before :at.
# `moved_at` is when its transaction began, and none is open for longer than LATE_S: by so much the place may be off.
_LAST_BEFORE = """
    WITH RECURSIVE place (low, high) AS (
        SELECT CAST(0 AS bigint), coalesce((SELECT max(id) FROM stock_movements WHERE {scope}), 0) + 1
        UNION ALL
        SELECT CASE WHEN here.moved_at < :at THEN here.id ELSE low END,
               CASE WHEN here.moved_at < :at THEN high ELSE middle END
        FROM (SELECT low, high, low + (high - low) / 2 AS middle FROM place WHERE high - low > 1) AS half
        LEFT JOIN LATERAL (
            SELECT id, moved_at FROM stock_movements WHERE {scope} AND id >= middle AND id < high ORDER BY id LIMIT 1
        ) AS here ON true
    )
    SELECT low FROM place WHERE high - low <= 1
"""


def movements(
    session: Session, limit: int, cursor: str | None, filters: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str | None]:
    """One page of movements, newest first, and the next cursor. Without a sku, those that people made.

    `from` is inclusive, `to` is exclusive. One statement, and one for each end of the period.
    """
    sku, cause = filters.get("sku"), filters.get("cause")
    scope = ["sku = :sku"] if sku else []
    if not sku or (cause and cause not in BY_ORDERS):
        scope.append(_OF_PEOPLE)
    elif cause == MovementCause.RETURN:
        scope.append("cause = 'return'")
    values: dict[str, Any] = {"sku": sku, "cause": cause, "most": limit + 1}
    conditions = [*scope, *(["cause = :cause"] if cause else [])]
    for name, late, within in (
        ("from", f"- interval '{LATE_S} seconds'", "id > :after_from AND moved_at >= :from"),
        ("to", f"+ interval '{LATE_S} seconds'", "id <= :last_to AND moved_at < :to"),
    ):
        if filters.get(name):
            values[name] = datetime.fromisoformat(filters[name])
            at = f"(CAST(:{name} AS timestamptz) {late})"
            statement = _LAST_BEFORE.format(scope=" AND ".join(scope)).replace(":at", at)
            values["after_from" if name == "from" else "last_to"] = session.execute(
                text(statement), {"sku": sku, name: values[name]}
            ).scalar_one()
            conditions.append(within)
    if cursor:
        (values["before"],) = decode_cursor(cursor, filters, [row_position])
        conditions.append("id < :before")
    found = session.execute(text(_MOVEMENTS.format(scope=" AND ".join(conditions))), values).mappings().all()
    rows, more = page_of(found, limit)
    return [_movement(row) for row in rows], encode_cursor([rows[-1]["id"]], filters) if more else None


def _movement(row: RowMapping) -> dict[str, Any]:
    ids = ("order_id", "purchase_order_id")
    return dict(row) | {name: row[name] and str(row[name]) for name in ids} | {"moved_at": timestamp(row["moved_at"])}
