"""What is proposed to be ordered again: found by comparing, like the signals of stock.

projected = available + what is open in purchase orders. So what is proposed or ordered is not proposed again, however
often this runs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from inventory_service.purchasing import domain
from inventory_service.purchasing.domain import Need, Proposal
from shared.ids import uuid7

# So many rules are looked at in one statement, and their skus proposed in one transaction.
BATCH = 500

_FROM_RULES = """
    {} AS rules JOIN stock_items USING (sku) JOIN suppliers ON suppliers.supplier_id = rules.supplier_id
    CROSS JOIN LATERAL (
        SELECT on_hand - reserved + CAST(coalesce(sum(lines.quantity - lines.received), 0) AS bigint) AS projected
        FROM purchase_order_lines AS lines JOIN purchase_orders USING (po_id)
        WHERE lines.sku = rules.sku AND lines.received < lines.quantity AND status IN ('PROPOSED', 'ORDERED')
    ) AS to_come
"""
_DUE = """
    projected <= reorder_at AND suppliers.active AND (snoozed_until IS NULL OR snoozed_until <= now())
"""
# One row for a page of rules, by their index: which of them are due, and where the next page begins.
_LOOK = text(
    f"""
    WITH page AS MATERIALIZED (
        SELECT * FROM stock_rules WHERE reorder_at IS NOT NULL AND sku > :after ORDER BY sku LIMIT {BATCH}
    ), due AS MATERIALIZED (
        SELECT rules.sku, rules.supplier_id FROM {_FROM_RULES.format("page")} WHERE {_DUE}
    )
    SELECT (SELECT count(*) FROM page) AS looked, (SELECT max(sku) FROM page) AS last,
           ARRAY(SELECT sku FROM due ORDER BY sku) AS skus,
           ARRAY(SELECT DISTINCT supplier_id FROM due ORDER BY supplier_id) AS suppliers
    """
)
_MAKE_PROPOSALS = text(
    """
    INSERT INTO purchase_orders (po_id, supplier_id, status, made_by)
    SELECT po_id, supplier_id, 'PROPOSED', :made_by
    FROM unnest(CAST(:po_ids AS uuid[]), CAST(:suppliers AS uuid[])) AS given (po_id, supplier_id)
    ORDER BY supplier_id
    ON CONFLICT (supplier_id) WHERE status = 'PROPOSED' DO NOTHING
    RETURNING po_id
    """
)
_LOCK_PROPOSALS = text(
    """
    SELECT po_id, supplier_id FROM purchase_orders
    WHERE supplier_id = ANY(CAST(:suppliers AS uuid[])) AND status = 'PROPOSED' ORDER BY po_id FOR UPDATE
    """
)
_LOCK_RULES = text("SELECT sku FROM stock_rules WHERE sku = ANY(CAST(:skus AS text[])) ORDER BY sku FOR UPDATE")
_NEEDS = text(
    f"""
    SELECT rules.sku, rules.supplier_id, projected, reorder_to, pack_size FROM {_FROM_RULES.format("stock_rules")}
    WHERE rules.sku = ANY(CAST(:skus AS text[])) AND reorder_at IS NOT NULL AND {_DUE} ORDER BY rules.sku
    """
)
_LINES = text(
    """
    SELECT po_id, count(*) AS lines, array_agg(sku) FILTER (WHERE sku = ANY(CAST(:skus AS text[]))) AS skus
    FROM purchase_order_lines WHERE po_id = ANY(CAST(:po_ids AS uuid[])) GROUP BY po_id
    """
)
# Nobody changes the quantity of a line, so a line that grows is replaced.
_TAKE = text(
    """
    DELETE FROM purchase_order_lines AS lines
    USING unnest(CAST(:po_ids AS uuid[]), CAST(:skus AS text[])) AS given (po_id, sku)
    WHERE lines.po_id = given.po_id AND lines.sku = given.sku
    RETURNING lines.po_id, lines.sku, lines.quantity, lines.unit_cost, lines.currency
    """
)
_ADD = text(
    """
    INSERT INTO purchase_order_lines (po_id, sku, quantity, unit_cost, currency)
    SELECT * FROM unnest(
        CAST(:po_ids AS uuid[]), CAST(:skus AS text[]), CAST(:quantities AS bigint[]), CAST(:unit_costs AS bigint[]),
        CAST(:currencies AS text[])
    ) AS given (po_id, sku, quantity, unit_cost, currency) ORDER BY sku
    """
)
_COUNT_VERSION = text("UPDATE purchase_orders SET version = version + 1 WHERE po_id = ANY(CAST(:po_ids AS uuid[]))")


@dataclass(frozen=True)
class Due:
    """The skus of a page of rules that may have to be ordered again, their suppliers, and after which sku to go on."""

    skus: list[str]
    suppliers: list[UUID]
    last: str  # "" if no rule is left


def look(session: Session, after: str) -> Due:
    """Which skus after this one are due, among the next BATCH rules. Locks nothing. One statement."""
    row = session.execute(_LOOK, {"after": after}).one()
    return Due(row.skus, row.suppliers, row.last if row.looked == BATCH else "")


def propose(session: Session, skus: Collection[str], suppliers: Collection[UUID], made_by: str) -> int:
    """Add what is due of these skus to the proposals of these suppliers; of how many skus. At most eight statements.

    Of two that propose at once the second waits for the locks of the first, and then sees its lines.
    """
    given = {"skus": list(skus), "suppliers": list(suppliers), "made_by": made_by}
    made = set(session.scalars(_MAKE_PROPOSALS, {**given, "po_ids": [uuid7() for _ in suppliers]}))
    proposed_by = {row.po_id: row.supplier_id for row in session.execute(_LOCK_PROPOSALS, given)}
    # The rules, too: a sku whose supplier is changed meanwhile would be proposed to both. The needs are read by a
    # statement of its own, since one that waits for a lock sees other tables as they were before the wait.
    session.execute(_LOCK_RULES, given)
    needs = [Need(*row) for row in session.execute(_NEEDS, given)]
    lines = {row.po_id: row for row in session.execute(_LINES, {**given, "po_ids": list(proposed_by)})}
    proposals = {
        supplier_id: Proposal(po_id, lines[po_id].lines, frozenset(lines[po_id].skus or ()))
        if po_id in lines
        else Proposal(po_id, 0, frozenset())
        for po_id, supplier_id in proposed_by.items()
    }
    added = domain.proposed(needs, proposals)
    touched = {po_id for po_id, _, _ in added}
    if made - touched:  # the need has gone since the look: no proposal is left that nobody asked for
        session.rollback()
        return 0
    if added:
        _add(session, added, {sku for proposal in proposals.values() for sku in proposal.skus})
        session.execute(_COUNT_VERSION, {"po_ids": list(touched - made)})
    return len(added)


def _add(session: Session, added: list[tuple[UUID, str, int]], there: set[str]) -> None:
    """Add lines, or let those grow that are there. At most two statements."""
    keys = {"po_ids": [po_id for po_id, _, _ in added], "skus": [sku for _, sku, _ in added]}
    grown = {(row.po_id, row.sku): row for row in session.execute(_TAKE, keys)} if there else {}
    lines = [(grown.get((po_id, sku)), quantity) for po_id, sku, quantity in added]
    values = {
        "quantities": [quantity + (line.quantity if line else 0) for line, quantity in lines],
        "unit_costs": [line.unit_cost if line else None for line, _ in lines],
        "currencies": [line.currency if line else None for line, _ in lines],
    }
    session.execute(_ADD, keys | values)
