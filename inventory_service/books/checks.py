"""What must always hold of the books, as questions to the database: each returns what breaks it, and [] is good.

They read every movement: they are for a command that reconciles, and for tests.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

# So many say enough.
MOST = 100

# on_hand_after less the sum of the changes so far is the same in every row of a sku: what was there before its first.
# Rows without a balance were written by a version that had none; their changes count.
UNCHAINED = f"""
    SELECT sku, id, change, on_hand_after, last_balance + change_since AS should_be FROM (
        SELECT sku, id, change, on_hand_after, moved - lag(moved) OVER known AS change_since,
               lag(on_hand_after) OVER known AS last_balance
        FROM (
            SELECT sku, id, change, on_hand_after, sum(change) OVER (PARTITION BY sku ORDER BY id) AS moved
            FROM stock_movements
        ) AS summed
        WHERE on_hand_after IS NOT NULL
        WINDOW known AS (PARTITION BY sku ORDER BY id)
    ) AS chained
    WHERE on_hand_after <> last_balance + change_since
    ORDER BY sku, id LIMIT {MOST}
"""
MISCOUNTED = f"""
    SELECT item.sku, item.on_hand, coalesce(moved.total, 0) AS moved, last.on_hand_after AS last_balance,
           item.reserved, coalesce(held.total, 0) AS held
    FROM stock_items AS item
    LEFT JOIN (SELECT sku, sum(change) AS total FROM stock_movements GROUP BY sku) AS moved USING (sku)
    LEFT JOIN LATERAL (
        SELECT on_hand_after FROM stock_movements AS movement WHERE movement.sku = item.sku ORDER BY id DESC LIMIT 1
    ) AS last ON true
    LEFT JOIN (
        SELECT line.sku, sum(line.quantity) AS total
        FROM reservations AS reservation JOIN reservation_items AS line USING (order_id)
        WHERE reservation.state = 'RESERVED' GROUP BY line.sku
    ) AS held USING (sku)
    WHERE item.on_hand <> coalesce(moved.total, 0) OR item.on_hand <> last.on_hand_after
       OR item.reserved <> coalesce(held.total, 0)
    ORDER BY item.sku LIMIT {MOST}
"""


def unchained(session: Session) -> list[dict[str, Any]]:
    """Movements whose balance is not the one before plus what has moved since: {sku, id, ..., should_be}."""
    return [dict(row) for row in session.execute(text(UNCHAINED)).mappings()]


def miscounted(session: Session) -> list[dict[str, Any]]:
    """Skus of which on_hand is not the sum of the movements or not their last balance, or reserved not what is held."""
    return [dict(row) for row in session.execute(text(MISCOUNTED)).mappings()]
