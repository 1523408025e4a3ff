"""What must be true of purchase orders and the books of stock together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

# Enough to see what is wrong.
MOST = 100

_MISRECEIVED = text(
    f"""
    WITH moved AS (
        SELECT purchase_order_id AS po_id, sku, sum(change) AS moved FROM stock_movements
        WHERE purchase_order_id IS NOT NULL GROUP BY purchase_order_id, sku
    ), lines AS (
        SELECT po_id, sku, received FROM purchase_order_lines WHERE received > 0
    )
    SELECT po_id, sku, coalesce(received, 0) AS received, CAST(coalesce(moved, 0) AS bigint) AS moved
    FROM lines FULL JOIN moved USING (po_id, sku)
    WHERE received IS DISTINCT FROM moved ORDER BY po_id, sku LIMIT {MOST}
    """
)


def misreceived(session: Session) -> Sequence[Row[Any]]:
    """The lines of purchase orders whose `received` is not the sum of their movements: (po_id, sku, received, moved).

    At most MOST. It reads every line of which something has come, and every movement of a purchase order, by its index.
    """
    return session.execute(_MISRECEIVED).all()
